"""The seconds that a process may spend on measuring, shared by every compile in it."""

from __future__ import annotations

import threading
import time


class Budget:
    """Seconds spent so far. `with budget:` counts the time within; one thread at a time."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.measured = 0
        self._lock = threading.RLock()

    def __enter__(self) -> Budget:
        self._lock.acquire()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent += time.perf_counter() - self._started
        self._lock.release()

    def spend(self, seconds: float) -> None:
        with self._lock:
            self.spent += seconds

    def remaining(self, limit: float) -> float:
        """What is left of the limit, between measurements."""
        with self._lock:
            return limit - self.spent

    def left(self, limit: float) -> float:
        """What is left of it, within a measurement."""
        return limit - self.spent - (time.perf_counter() - self._started)


BUDGET = Budget()

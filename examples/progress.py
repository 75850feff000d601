"""A line that tells a waiting person what is going on."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO


class Progress:
    """`with Progress("compiling Wan"): …`. On a terminal one line that counts seconds and then goes
    away; elsewhere (a file, a log) one plain line.
    """

    def __init__(self, what: str, stream: TextIO | None = None, interval: float = 0.5) -> None:
        self.seconds = 0.0
        self._what = what
        self._stream = stream or sys.stdout
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._started = time.perf_counter()
        if self._stream.isatty():
            self._thread.start()
        else:
            print(f"{self._what} ...", file=self._stream, flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        if self._stream.isatty():
            self._thread.join()
            self._write("")

    def _tick(self) -> None:
        while not self._done.is_set():
            self._write(f"{self._what} ... {time.perf_counter() - self._started:.0f} s")
            self._done.wait(self._interval)

    def _write(self, text: str) -> None:
        # The escape sequence clears what the line had held before.
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

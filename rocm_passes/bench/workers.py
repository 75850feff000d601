"""Processes of a benchmark that share a GPU: each answers on a line of its own, and is told when to
go on.

A worker prints replies with `reply(...)` and reads commands with `commands()`; whatever else it
prints goes to its log. The parent starts it as a `Worker`, and admits so many at once that they fit
into the GPU's memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = "@reply "


class WorkerFailed(Exception):
    """A worker ended without a reply; the message is the end of its log."""


class Worker:
    """A `python -m module arguments...` that replies in lines of JSON."""

    def __init__(
        self, module: str, arguments: Sequence[str], env: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            env={**os.environ, **env},
            text=True,
        )

    def ask(self, *words: str) -> dict[str, Any]:
        """Send a command and wait for its reply. Raises WorkerFailed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(" ".join(words) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerFailed(self._end_of_log()) from error
        return self.wait()

    def wait(self) -> dict[str, Any]:
        """The next reply. Raises WorkerFailed where the process ends before it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        self.process.wait()
        raise WorkerFailed(self._end_of_log())

    def close(self) -> None:
        """End it by closing its input; by force where it does not listen."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-2500:]


def reply(**values: Any) -> None:
    print(MARK + json.dumps(values), flush=True)


def commands() -> Iterator[list[str]]:
    """The parent's commands, each as words, until it closes the pipe."""
    for line in sys.stdin:
        yield line.split()


class Admission:
    """How many may hold the GPU at once: a number of processes, and a sum of GiB."""

    def __init__(self, at_once: int, gib: float) -> None:
        self._at_once = at_once
        self._gib = gib
        self._running = 0
        self._used = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def admitted(self, gib: float, kept: float = 0.0) -> Iterator[None]:
        """Wait for a place; one that needs more than there is gets in alone. `kept` GiB stay in use
        afterwards.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fits(gib))
            self._running += 1
            self._used += gib
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._used += kept - gib
                self._changed.notify_all()

    def forget(self, gib: float) -> None:
        """Memory that was kept is free again."""
        with self._changed:
            self._used -= gib
            self._changed.notify_all()

    def _fits(self, gib: float) -> bool:
        return self._running == 0 or (
            self._running < self._at_once and self._used + gib <= self._gib
        )

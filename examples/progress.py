"""A line that tells a waiting person what is going on."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import Progress as Line
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn


class Progress:
    """`with Progress("compiling Wan"): …`. On a terminal one line that counts seconds and then goes
    away; elsewhere (a file, a log) one plain line.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self.seconds = 0.0
        self._what = what
        self._stream = stream or sys.stdout
        self._line: Line | None = None

    def __enter__(self) -> Progress:
        self._started = time.perf_counter()
        if self._stream.isatty():
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self._line = Line(*columns, console=Console(file=self._stream), transient=True)
            # No markup: a name in brackets is a name.
            self._line.add_task(self._what.replace("[", r"\["), total=None)
            self._line.start()
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
        if self._line is not None:
            self._line.stop()

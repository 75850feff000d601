"""Tables and progress on the terminal, by rich. Where the output is no terminal nothing is cut."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Wider than any row: a file or a pipe has no width to keep to.
_UNBOUNDED = 400


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a head. On a terminal long cells are folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else _UNBOUNDED, highlight=False).print(table)


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Each item in turn, under a bar on stderr that then goes away. No bar where stderr is no
    terminal.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, console=console, transient=True, disable=not console.is_terminal)

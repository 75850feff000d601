"""What can be shown as a page: in a notebook, in a file, as text."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from rocm_passes.errors import RocmPassesError
from rocm_passes.report import html
from rocm_passes.report.ledger import write_json


class Shown(ABC):
    """Gives `to_html`, `save` and a notebook's view to whatever has the ledger's JSON form.

    title: of the page, where none is given.
    """

    title = "rocm-passes"

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The documented JSON form (docs/ledger.md)."""

    def to_html(self, title: str | None = None) -> str:
        """One HTML page that loads nothing."""
        return html.page(self.to_dict(), title or self.title)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file: the page for `.html`, the JSON form for `.json`, the text for `.txt`.

        Folders are made where they are missing. Raises RocmPassesError on another ending.
        """
        target = Path(path)
        if target.suffix not in (".html", ".json", ".txt"):
            raise RocmPassesError(
                f"save: expected a path that ends in .html, .json or .txt, found {str(path)!r}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".json":
            write_json(str(target), self.to_dict())
        else:
            text = self.to_html() if target.suffix == ".html" else f"{self}\n"
            target.write_text(text, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        """What a notebook shows of the last line of a cell."""
        return html.framed(self.to_dict(), self.title)

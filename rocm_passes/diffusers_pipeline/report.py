"""What became of each part of a pipeline."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from rocm_passes.environment import document
from rocm_passes.errors import RocmPassesError
from rocm_passes.report.ledger import Ledger, history
from rocm_passes.report.shown import Shown


@dataclass(frozen=True)
class Part:
    """One line of the report.

    action: "compiled", "skipped", "changed", "tuned", "cache" or "warm"; detail: how, or why not.
    share: of a compiled part, the share (0 to 1) that compiled modules have of its weights in
    convolutions and linear layers, or of its time in eager: share_of says which. None for the other
    actions.
    """

    name: str
    action: str
    detail: str
    share: float | None = None
    share_of: str = "weights"

    def __str__(self) -> str:
        share = "" if self.share is None else f"; {percent(self.share)} of its {self.share_of}"
        return f"{self.name}: {self.action}: {self.detail}{share}"


def percent(share: float) -> str:
    """`0.8512` as "85 %", `0.9955` as "99.5 %": rounded down, with one decimal near the end."""
    digits = 1 if 0.95 <= share < 1 else 0
    steps = 10**digits
    return f"{math.floor(100 * steps * share + 1e-6) / steps:.{digits}f} %"


def _newest() -> Ledger | None:
    graphs = history()
    return graphs[-1] if graphs else None


@dataclass
class Report(Shown):
    """One line for each part, in the pipeline's order; `str(report)` is the whole text.

    Its page (`to_html`, `save`, in a notebook) has the parts, and the ledger of what this process
    has compiled with the backend since.
    """

    parts: list[Part] = field(default_factory=list)
    artifacts_path: str | None = None
    title: str = Shown.title
    #: The modules compiled for each part: `warm` watches them.
    modules: dict[str, list[nn.Module]] = field(default_factory=dict, repr=False)
    #: The newest ledger when the report was made; those behind it are the pipeline's.
    _before: Ledger | None = field(default_factory=_newest, repr=False)

    def add(self, name: str, action: str, detail: str, share: float | None = None) -> None:
        self.parts.append(Part(name, action, detail, share))

    def add_compiled(self, name: str, detail: str, share: float, modules: list[nn.Module]) -> None:
        self.add(name, "compiled", detail, share)
        self.modules.setdefault(name, []).extend(modules)

    @property
    def ledgers(self) -> list[Ledger]:
        """Those of the graphs compiled since; a pipeline compiles at its first call."""
        graphs = history()
        known = [i for i, graph in enumerate(graphs) if graph is self._before]
        return graphs[known[0] + 1 :] if known else graphs

    def to_dict(self) -> dict[str, Any]:
        """The ledger's JSON form, and `parts`: each line's name, action, detail and share."""
        return {**document(self.ledgers), "parts": [asdict(part) for part in self.parts]}

    def names(self, action: str) -> list[str]:
        return [p.name for p in self.parts if p.action == action]

    @property
    def compiled(self) -> list[str]:
        return self.names("compiled")

    @property
    def skipped(self) -> list[str]:
        return self.names("skipped")

    @property
    def shares(self) -> dict[str, float]:
        """Each compiled part's share of weights (convolutions and linear layers) in compiled
        modules; with `tune`, of its time in eager.
        """
        return {p.name: p.share for p in self.parts if p.share is not None}

    def save_cache_artifacts(self, path: str | os.PathLike[str] | None = None) -> int:
        """Write what this process has compiled so far to one file, for `cache_artifacts=` of
        another process.

        path: default: the path given to compile_pipeline. The file is replaced as a whole or not at
        all. Returns the number of artifacts. Raises RocmPassesError where there is no path or
        nothing to save.
        """
        target = os.fspath(path) if path is not None else self.artifacts_path
        if target is None:
            raise RocmPassesError("save_cache_artifacts: expected a path, found none")
        saved = torch.compiler.save_cache_artifacts()
        if saved is None:
            raise RocmPassesError(
                "save_cache_artifacts: nothing was compiled in this process yet; call the pipeline "
                "first"
            )
        content, info = saved
        _write_whole(target, content)
        return sum(map(len, info.artifacts.values()))

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts)) or "there was nothing to compile"


def _write_whole(path: str, content: bytes) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

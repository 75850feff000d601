"""`rocm_passes.explain(model, *args)`: compile afresh, run once, and show the ledger."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import ledger as ledgers
from .backend import rocm_diffusion
from .ledger import Entry, Ledger
from .target import Target


@dataclass(frozen=True)
class Explanation:
    """What the backend found and did. result: what the compiled callable returned."""

    ledgers: tuple[Ledger, ...]
    result: Any
    graph_breaks: int = 0

    @property
    def sites(self) -> tuple[Entry, ...]:
        return tuple(e for g in self.ledgers for e in g.entries)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON form (docs/ledger.md)."""
        return document(self.ledgers)

    def __str__(self) -> str:
        from .report import table

        return table(self.ledgers)


def explain(
    model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Explanation:
    """Compile `model` with the backend, past every cache, call it once on the arguments, and report.

    A warm cache would leave nothing to report, since the passes don't run on a hit. Like
    torch._dynamo.explain this resets Dynamo first, so whatever the process had compiled compiles again when
    next used.
    """
    target = getattr(model, "_orig_mod", model)
    found: list[Ledger] = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters["graph_break"].clear()
    backend = functools.partial(rocm_diffusion, options=options, listener=found.append, caches=False)
    result = torch.compile(target, backend=backend)(*args, **kwargs)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return Explanation(tuple(found), result, breaks)


def document(graphs: Iterable[Ledger]) -> dict[str, Any]:
    return ledgers.to_dict(graphs, environment())


def environment() -> dict[str, Any]:
    """What a reader of a ledger must know about the machine that it comes from."""
    import rocm_passes

    from .kernels.aiter import installation

    target = Target.current()
    aiter = installation.find()
    return {
        "rocm_passes": rocm_passes.__version__,
        "torch": target.torch_version,
        "triton": target.triton_version,
        "device": target.name,
        "architecture": target.label,
        "aiter": aiter.version if aiter.status == "usable" else aiter.status,
    }

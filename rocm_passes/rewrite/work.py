"""One graph on its way through the pass, as the whole-graph passes see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.report.ledger import Ledger
from rocm_passes.rewrite.match import Context


@dataclass
class Work:
    """graph, fake_mode: what is changed. channels_last: do the graph's convolutions run so, as a
    rule?

    rewritten: how many matches have been rewritten so far. changed: by a rewrite, or by a
    whole-graph pass that added or dropped nodes. entries: by a rewrite's result, its
    entry's place in the ledger.
    """

    graph: fx.Graph
    fake_mode: FakeTensorMode
    context: Context
    ledger: Ledger
    idioms: frozenset[str]
    channels_last: bool = False
    rewritten: int = 0
    changed: bool = False
    entries: dict[fx.Node, int] = field(default_factory=dict)

    @property
    def may_rewrite(self) -> bool:
        """What prepares a graph for a rewrite must not happen where none may."""
        options = self.context.options
        return options.select != "off" and 0 not in (options.fuel, options.fuel_total)

    @property
    def on_gpu(self) -> bool:
        return self.context.target.is_gpu

    def amend(self, result: fx.Node, parameters: Mapping[str, Any], *notes: str) -> None:
        """Add to the parameters and notes of the entry whose rewrite made `result`."""
        at = self.entries.get(result)
        if at is not None:
            found = self.ledger.entries[at]
            self.ledger.entries[at] = replace(
                found, parameters={**found.parameters, **parameters}, notes=(*found.notes, *notes)
            )


@dataclass(frozen=True)
class WholeGraphPass:
    """A pass over the whole graph, before the idioms are looked for or after they were rewritten.

    applies: whether it is worth looking. It must not change the graph.
    """

    name: str
    run: Callable[[Work], None]
    applies: Callable[[Work], bool]

"""One graph on its way through the pass, as the whole-graph passes see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import provenance
from rocm_passes.report.changes import Change
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


def change_at(
    node: fx.Node, did: str, reason: str, contract: str = "exact", **parameters: Any
) -> Change:
    """A change at the place in the user's code that the node comes from."""
    return Change(
        did,
        reason,
        contract,
        location=provenance.location(node),
        module=provenance.module(node),
        component=provenance.component(node),
        parameters=parameters,
    )


#: What keeps the readers' promises after the rewrites (`fx.promises`): what was done, and why.
_PROMISES = {
    "keep_apart": (
        "an output of the graph is copied",
        "after a rewrite it would share memory with another output or an input, and did not before",
    ),
    "keep_strides": (
        "a tensor is laid out as it was before the rewrites",
        "a reader sees its strides, or the caller does",
    ),
}


def kept_promises(step: str, nodes: Iterable[fx.Node]) -> list[Change]:
    return [replace(change_at(node, *_PROMISES[step]), step=step) for node in nodes]


@dataclass(frozen=True)
class WholeGraphPass:
    """A pass over the whole graph, before the idioms are looked for or after they were rewritten.

    run: returns what it changed, for the ledger.
    applies: whether it is worth looking. It must not change the graph.
    """

    name: str
    run: Callable[[Work], Sequence[Change]]
    applies: Callable[[Work], bool]

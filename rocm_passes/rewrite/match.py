"""What an idiom's `find` yields: sites, and near misses with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import fx

from rocm_passes.fx.convexity import Contraction
from rocm_passes.ops.operator import Call, Lowering, Operator
from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning.tuning import Picked

T = TypeVar("T")


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """An occurrence of an idiom that can be rewritten.

    anchor: the node whose provenance the site reports.
    nodes: what the rewrite makes dead (each used only inside, or listed among the outputs).
    outputs: the nodes that the rewrite's results take the place of, in the order of the operator's
    results.
    call: what is computed, with graph nodes for tensors.
    covers: the elementary idioms inside, by their names in the ledger.
    parameters: what was read off the graph, for the ledger.
    """

    anchor: fx.Node
    nodes: frozenset[fx.Node]
    outputs: tuple[fx.Node, ...]
    call: Call
    covers: Mapping[str, int]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> Any:
        """The call with each node replaced by its fake value, as lowerings are asked about it."""
        return self.call.values()

    def inputs(self) -> list[fx.Node]:
        return self.call.nodes()

    def obstacle(self, contraction: Contraction) -> str | None:
        """Why it cannot be computed at once, beside what was taken so far, or None where it can."""
        return contraction.obstacle(self.nodes, self.inputs(), self.outputs)


@dataclass(frozen=True)
class Miss:
    """A candidate that cannot be rewritten, and the reason in words for a user."""

    anchor: fx.Node
    reason: str
    covers: Mapping[str, int]
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a find may consult beside the graph."""

    options: Options
    target: Target = field(default_factory=lambda: Target.of_device("cpu"))
    _read: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def read_once(self, graph: fx.Graph, read: Callable[[fx.Graph, Context], T]) -> T:
        """What `read` gives for the graph, which nothing may change until then. Idioms that share a
        reader share its one result.
        """
        if (graph, read) not in self._read:
            self._read[graph, read] = read(graph, self)
        found: T = self._read[graph, read]
        return found


Found = Match | Miss


@dataclass(frozen=True)
class Idiom:
    """One recognisable computation.

    name: as in the ledger and in the options. operator: what a site becomes; None where every
    lowering writes plain ATen.
    preserves: ATen operators that must stay whole for the idiom to be seen.
    measured: asks for a choice by measurement of the call alone, `measured(able, call, target,
    options)`: what was picked, or None where it is not known and the rules decide (`policy/`).
    Without it a site is measured with its neighbours (`measuring.py`).
    fuses: it covers other idioms; where it isn't taken those get their own entries, and its reason
    is noted on them instead of standing alone.
    """

    name: str
    find: Callable[[fx.Graph, Context], Iterator[Found]]
    lowerings: Sequence[Lowering[Any]]
    operator: Operator[Any] | None = None
    preserves: tuple[str, ...] = ()
    fuses: bool = False
    measured: Callable[..., Picked | None] | None = None

    @property
    def rules(self) -> str:
        """The name that the rules know it by: its operator's, or its own where it has none."""
        return self.name if self.operator is None else self.operator.name


def guarded(
    anchor: fx.Node, covers: Mapping[str, int], read: Callable[..., Found | None], *arguments: Any
) -> list[Found]:
    """What `read` finds at the anchor. An exception is a fault of this package, and costs this
    candidate only.
    """

    def missed(reason: str) -> Found:
        return Miss(anchor, reason, covers)

    found = read_or(missed, anchor, read, *arguments)
    return [] if found is None else [found]


def read_or(
    missed: Callable[[str], T], anchor: fx.Node, read: Callable[..., T | None], *arguments: Any
) -> T | None:
    """What `read` gives for the anchor, or what `missed` makes of the exception that it raised."""
    try:
        return read(*arguments)
    except Exception as error:
        log.exception("rocm_passes: reading the candidate at %s failed", anchor)
        return missed(f"reading it failed: {type(error).__name__}: {error}")

"""What a match has bound so far, and how far a failed match came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n

#: Gives the node behind one that does not change the value, or None where the node is looked at
#: itself.
Look = Callable[[fx.Node], fx.Node | None]


def lossless(node: fx.Node) -> fx.Node | None:
    """What stands before a cast that loses nothing."""
    return n.argument(node) if n.is_widening(node) else None


@dataclass(frozen=True)
class Bound:
    """A match so far. nodes: those that it consists of; passed: what was looked through at its
    leaves; node: what the pattern asked last matched, a call or what was found in a name's place.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    nodes: frozenset[fx.Node] = frozenset()
    passed: frozenset[fx.Node] = frozenset()
    node: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def having(self, **values: Any) -> Bound:
        return replace(self, values={**self.values, **values})


@dataclass
class Trace:
    """The furthest that failed matches came. look: what is looked through."""

    look: Look = lossless
    bound: Bound = field(default_factory=Bound)
    node: fx.Node | None = None
    reason: str = ""
    _rank: tuple[int, bool] = (-1, False)

    def stop(
        self, bound: Bound, found: object, reason: str, stated: bool = False
    ) -> Iterator[Bound]:
        """Note a failure. stated: a condition failed on a node of the kind looked for, which says
        more.
        """
        rank = (len(bound.nodes), stated)
        if rank > self._rank:
            self._rank, self.bound, self.reason = rank, bound, reason
            self.node = found if isinstance(found, fx.Node) else None
        return iter(())

    def behind(self, node: Any) -> list[Any]:
        """The node, and those that it is equal to by what is looked through."""
        found = [node]
        while isinstance(node, fx.Node) and (node := self.look(node)) is not None:
            found.append(node)
        return found

"""Applies a chosen lowering to a match. A rewrite that fails, or can't be placed, leaves the graph
as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder, resolve
from rocm_passes.fx.strides import reader_of_strides, restrided, same_strides
from rocm_passes.ops.operator import Call, Lowering, Operator
from rocm_passes.rewrite.match import Match


class RewriteError(Exception):
    """The lowering did not give what the graph needs; the match is left as it was."""


@dataclass(frozen=True)
class Applied:
    """A rewrite that was placed: its results stand for the outputs, in their order."""

    match: Match
    results: tuple[fx.Node, ...]
    builder: Builder


class Rewriter:
    """strict: results keep the strides of what they replace, by which ATen may choose how to sum
    behind them.
    """

    def __init__(self, graph: fx.Graph, fake_mode: FakeTensorMode, strict: bool = False) -> None:
        self.graph = graph
        self._strict = strict
        self.applied: list[Applied] = []
        self._fake_mode = fake_mode
        self._replaced: dict[fx.Node, fx.Node] = {}

    @property
    def count(self) -> int:
        return len(self.applied)

    def apply(
        self, match: Match, lowering: Lowering[Any], operator: Operator[Any] | None
    ) -> Applied:
        """Write the lowering before the match's first output and let its results take the outputs'
        place.

        Raises RewriteError, with the graph untouched, where shapes, dtypes, or strides that a
        reader depends on would differ.
        """
        call = match.call.with_nodes(lambda node: resolve(node, self._replaced))
        b = Builder(self.graph, self._fake_mode, match.anchor)
        try:
            # The order is restored by a topological sort once every match is done.
            with self.graph.inserting_before(match.outputs[0]):
                results = self._write(b, lowering, operator, call)
                if not isinstance(results, (list, tuple)):
                    results = (results,)
                _check(match, results)
                results = tuple(
                    _with_strides(b, old, new, self._strict)
                    for old, new in zip(match.outputs, results, strict=True)
                )
        except RewriteError:
            b.discard()
            raise
        except Exception as error:
            b.discard()
            raise RewriteError(f"writing it failed: {type(error).__name__}: {error}") from error
        for old, new in zip(match.outputs, results, strict=True):
            old.replace_all_uses_with(new)
            self._replaced[old] = new
        applied = Applied(match, results, b)
        self.applied.append(applied)
        return applied

    def undo(self, applied: Applied) -> None:
        """Put the match's own nodes back. Later rewrites that read the results read these again."""
        for old, new in zip(applied.match.outputs, applied.results, strict=True):
            new.replace_all_uses_with(old)
            self._replaced.pop(old, None)
        applied.builder.discard()
        self.applied.remove(applied)

    def undo_cycles(self) -> Iterator[Applied]:
        """Undo rewrites, the last first, until the graph has no cycle. Yields those that were
        undone.
        """
        while self.applied:
            stuck = nodes_on_cycles(self.graph)
            if not stuck:
                return
            at_fault = [a for a in self.applied if not stuck.isdisjoint(a.builder.inserted)]
            if not at_fault:
                return
            self.undo(at_fault[-1])
            yield at_fault[-1]

    def _write(
        self, b: Builder, lowering: Lowering[Any], operator: Operator[Any] | None, call: Call
    ) -> Any:
        if lowering.write is not None:
            return lowering.write(b, call)
        assert operator is not None, f"{lowering.name} has neither a decomposition nor an operator"
        return operator.write(b, call, lowering.name)


def _check(match: Match, results: Sequence[fx.Node]) -> None:
    if len(results) != len(match.outputs):
        raise RewriteError(
            f"it gives {len(results)} results where the graph has {len(match.outputs)}"
        )
    for old, new in zip(match.outputs, results, strict=True):
        have, want = new.meta.get("val"), old.meta.get("val")
        if not isinstance(have, torch.Tensor) or not isinstance(want, torch.Tensor):
            raise RewriteError("it does not give a tensor")
        if have.dtype != want.dtype or not n.same_shape(have.shape, want.shape):
            raise RewriteError(f"it gives {_kind(have)} where the graph has {_kind(want)}")


def _with_strides(b: Builder, old: fx.Node, new: fx.Node, always: bool) -> fx.Node:
    """`new`, with the strides of `old` where these differ, and a reader depends on them or always
    is asked for.
    """
    if same_strides(n.tensor(new), n.tensor(old)):
        return new
    reader = reader_of_strides(old)
    if reader is None and not always:
        return new
    found = restrided(b, new, n.tensor(old))
    if found is None:
        who = "strict numerics" if reader is None else reader.name
        raise RewriteError(
            f"{who} depends on the strides {list(n.tensor(old).stride())}, which can't be asked for"
        )
    return found


def nodes_on_cycles(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that wait for themselves, and those behind them; empty where the graph has an
    order.
    """
    waiting = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready = [node for node, count in waiting.items() if count == 0]
    while ready:
        node = ready.pop()
        del waiting[node]
        for user in node.users:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    return set(waiting)


def _kind(found: torch.Tensor) -> str:
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"


def escapes(nodes: frozenset[fx.Node], outputs: Iterable[fx.Node]) -> fx.Node | None:
    """A node of a would-be match whose value something outside also uses, or None where it is
    closed.
    """
    allowed = set(outputs)
    for node in nodes:
        if node not in allowed and any(user not in nodes for user in node.users):
            return node
    return None

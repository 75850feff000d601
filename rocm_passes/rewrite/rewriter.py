"""Applies a chosen lowering to a site. A rewrite that fails leaves the graph as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder, resolve
from rocm_passes.ops.operator import Call, Lowering, Operator
from rocm_passes.rewrite.match import Match


class RewriteError(Exception):
    """The lowering did not give what the graph needs; the site is left as it was."""


class Rewriter:
    def __init__(self, graph: fx.Graph, fake_mode: FakeTensorMode) -> None:
        self.graph = graph
        self.count = 0
        self._fake_mode = fake_mode
        self._replaced: dict[fx.Node, fx.Node] = {}

    def apply(
        self, site: Match, lowering: Lowering[Any], operator: Operator[Any] | None
    ) -> tuple[fx.Node, ...]:
        """Write the lowering before the site's first output and let its results take the outputs' place.

        Returns the results. Raises RewriteError, with the graph untouched, where shapes or dtypes would differ.
        """
        call = site.call.with_nodes(lambda node: resolve(node, self._replaced))
        b = Builder(self.graph, self._fake_mode, site.anchor)
        try:
            # The order is restored by a topological sort once every site is done.
            with self.graph.inserting_before(site.outputs[0]):
                results = self._write(b, lowering, operator, call)
            if not isinstance(results, (list, tuple)):
                results = (results,)
            self._check(site, results)
        except RewriteError:
            b.discard()
            raise
        except Exception as error:
            b.discard()
            raise RewriteError(f"writing it failed: {type(error).__name__}: {error}") from error
        for old, new in zip(site.outputs, results, strict=True):
            old.replace_all_uses_with(new)
            self._replaced[old] = new
        self.count += 1
        return tuple(results)

    def _write(self, b: Builder, lowering: Lowering[Any], operator: Operator[Any] | None, call: Call) -> Any:
        if lowering.write is not None:
            return lowering.write(b, call)
        assert operator is not None, f"{lowering.name} has neither a decomposition nor an operator"
        return operator.write(b, call, lowering.name)

    def _check(self, site: Match, results: Iterable[fx.Node]) -> None:
        results = list(results)
        if len(results) != len(site.outputs):
            raise RewriteError(f"it gives {len(results)} results where the graph has {len(site.outputs)}")
        for old, new in zip(site.outputs, results, strict=True):
            have, want = new.meta.get("val"), old.meta.get("val")
            if not isinstance(have, torch.Tensor) or not isinstance(want, torch.Tensor):
                raise RewriteError("it does not give a tensor")
            if have.dtype != want.dtype or not n.same_shape(have.shape, want.shape):
                raise RewriteError(f"it gives {_kind(have)} where the graph has {_kind(want)}")


def _kind(found: torch.Tensor) -> str:
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"


def escapes(nodes: frozenset[fx.Node], outputs: Iterable[fx.Node]) -> fx.Node | None:
    """A node of a would-be site whose value something outside also uses, or None where the site is closed."""
    allowed = set(outputs)
    for node in nodes:
        if node not in allowed and any(user not in nodes for user in node.users):
            return node
    return None


def is_convex(site: Match, order: Mapping[fx.Node, int]) -> bool:
    """Can the site be computed at once, or does an input of it depend on one of its outputs from outside?"""
    inputs = set(site.inputs())
    last = max((order.get(i, -1) for i in inputs), default=-1)
    stack = [u for o in site.outputs for u in o.users if u not in site.nodes]
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in inputs:
            return False
        if node in seen or order.get(node, -1) > last:
            continue
        seen.add(node)
        stack.extend(node.users)
    return True

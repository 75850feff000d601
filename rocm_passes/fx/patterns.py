"""Patterns over ATen nodes that read like the formula that they match.

    X, EPS = bind("x"), number("eps")
    MEAN = mean(X**2 | X * X)
    NORM = X * rsqrt(MEAN + EPS) | X / sqrt(MEAN + EPS)

    found = NORM.match(node)        # found["x"], found["eps"], found.nodes

`|` gives alternatives, tried in order with backtracking. `add` and `mul` match their operands in
either order. A name that is bound twice must stand for the same value. Lossless casts are looked
through everywhere; a narrowing cast is only where the pattern says `rounded`.

A failed match leaves in its `Trace` how far it came: what was bound by then, the node that stopped
it, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound, Trace
from rocm_passes.fx.nodes import aten

Matcher = Callable[[Any, Bound, Trace], Iterator[Bound]]


@dataclass(frozen=True)
class Pattern:
    """matches: every way in which it matches what was found, which is a node or a literal."""

    matches: Matcher

    def match(self, found: Any, trace: Trace | None = None, **given: Any) -> Bound | None:
        """The first match, or None. given: values that are bound from the start."""
        return next(self.matches(found, Bound(given), trace or Trace()), None)

    def where(self, check: Callable[[Any, Bound], str | None]) -> Pattern:
        """Only where `check(found, bound)` gives None; else it gives the reason in words.
        `bound.node` is the call itself, where `found` may be a cast of it.
        """

        def matches(found: Any, bound: Bound, trace: Trace) -> Iterator[Bound]:
            for made in self.matches(found, bound, trace):
                reason = check(found, made)
                yield from (
                    (made,) if reason is None else trace.stop(made, found, reason, stated=True)
                )

        return Pattern(matches)

    def named(self, name: str) -> Pattern:
        """Also bind the name to the node."""
        return Pattern(lambda f, b, t: (m.having(**{name: m.node}) for m in self.matches(f, b, t)))

    def saying(self, **values: Any) -> Pattern:
        """Also bind the names to these constants: they say which alternative it was."""
        return Pattern(lambda f, b, t: (made.having(**values) for made in self.matches(f, b, t)))

    def __or__(self, other: Pattern) -> Pattern:
        return Pattern(lambda f, b, t: (m for p in (self, other) for m in p.matches(f, b, t)))

    def __add__(self, other: Pattern | float) -> Pattern:
        return add(self, other)

    def __sub__(self, other: Pattern | float) -> Pattern:
        return sub(self, other)

    def __mul__(self, other: Pattern | float) -> Pattern:
        return mul(self, other)

    def __truediv__(self, other: Pattern | float) -> Pattern:
        return div(self, other)

    def __pow__(self, other: float) -> Pattern:
        return power(self, other)


def bind(name: str) -> Pattern:
    """Any tensor; the name stands for it as it is before lossless casts."""

    def matches(found: Any, bound: Bound, trace: Trace) -> Iterator[Bound]:
        if n.value(found) is None:
            return trace.stop(bound, found, f"{_said(found)} is no tensor")
        behind, known, bound = trace.behind(found), bound.get(name), replace(bound, node=found)
        if known is None:
            plain = n.through_widening(found)
            passed = behind[: behind.index(plain)]
            return iter(
                (replace(bound.having(**{name: plain}), passed=bound.passed.union(passed)),)
            )
        behind_known = trace.behind(known)
        if behind[-1] is not behind_known[-1]:
            return trace.stop(bound, found, f"{_said(found)} is not {name}, {_said(known)}")
        return iter((replace(bound, passed=bound.passed.union(behind).difference(behind_known)),))

    return Pattern(matches)


def exactly(name: str) -> Pattern:
    """The node that the name was given for, with nothing looked through."""
    return Pattern(lambda found, bound, _: iter((bound,) if found is bound[name] else ()))


def number(name: str) -> Pattern:
    """A number (bound as a float), or a 0-d tensor (bound as its node)."""

    def matches(found: Any, bound: Bound, trace: Trace) -> Iterator[Bound]:
        if n.is_scalar(found):
            return iter((bound.having(**{name: float(found)}),))
        if n.value(found) is None or n.shape(found) != ():
            return trace.stop(bound, found, f"{_said(found)} is no number")
        # Under dynamic=True a module's number is a 0-d float64 tensor, made float32 on its way.
        while n.is_cast(found) and {n.dtype(found), n.dtype(found.args[0])} <= n.WIDE:
            found = n.argument(found)
        return iter((bound.having(**{name: found}),))

    return Pattern(matches)


def literal(value: float) -> Pattern:
    def matches(found: Any, bound: Bound, trace: Trace) -> Iterator[Bound]:
        if n.is_scalar(found) and found == value:
            return iter((bound,))
        return trace.stop(bound, found, f"{_said(found)} stands where {value} was looked for")

    return Pattern(matches)


def rounded(inner: Pattern) -> Pattern:
    """The pattern, or it behind a rounding to a 16-bit dtype."""

    def matches(found: Any, bound: Bound, trace: Trace) -> Iterator[Bound]:
        yield from inner.matches(found, bound, trace)
        behind = trace.behind(found)
        if n.is_cast(behind[-1]) and n.dtype(behind[-1]) in n.LOW_PRECISION:
            inside = replace(bound, nodes=bound.nodes.union(behind))
            yield from inner.matches(n.arg(behind[-1], 0), inside, trace)

    return Pattern(matches)


def call(*targets: Any, commutes: bool = False) -> Callable[..., Pattern]:
    """The pattern of a call of one of the targets; further positional arguments are free."""

    def matches(
        operands: tuple[Pattern, ...], found: Any, bound: Bound, trace: Trace
    ) -> Iterator[Bound]:
        behind = trace.behind(found)
        node = next((m for m in behind if n.is_call(m, *targets) and _is_plain(m)), None)
        if node is None:
            wanted = getattr(targets[0], "_opname", targets[0])
            return trace.stop(bound, found, f"{_said(found)} stands where {wanted} was looked for")
        inside = replace(bound, nodes=bound.nodes.union(behind[: behind.index(node) + 1]))
        orders = (node.args, node.args[1::-1]) if commutes else (node.args,)
        every = (made for order in orders for made in _all(operands, order, inside, trace))
        return (replace(made, node=node) for made in every)

    def make(*operands: Pattern | float) -> Pattern:
        patterns = tuple(o if isinstance(o, Pattern) else literal(o) for o in operands)
        return Pattern(lambda f, b, t: matches(patterns, f, b, t))

    return make


def _all(patterns: tuple[Pattern, ...], given: Any, bound: Bound, trace: Trace) -> Iterator[Bound]:
    if not patterns:
        yield bound
    elif given:
        for made in patterns[0].matches(given[0], bound, trace):
            yield from _all(patterns[1:], given[1:], made, trace)


def _is_plain(node: fx.Node) -> bool:
    """add and sub without a factor on the second operand; div without rounding."""
    return bool(node.kwargs.get("alpha", 1) == 1 and node.kwargs.get("rounding_mode") is None)


def _said(found: Any) -> str:
    if n.value(found) is not None and found.op == "call_function":
        return f"{found.name} ({getattr(found.target, '_opname', found.target)})"
    return str(found)


add = call(aten.add.Tensor, aten.add.Scalar, commutes=True)
sub = call(aten.sub.Tensor, aten.sub.Scalar)
mul = call(aten.mul.Tensor, aten.mul.Scalar, commutes=True)
div = call(aten.div.Tensor, aten.div.Scalar)
power = call(aten.pow.Tensor_Scalar)
sqrt = call(aten.sqrt.default)
rsqrt = call(aten.rsqrt.default)
reciprocal = call(aten.reciprocal.default)
mean = call(aten.mean.dim)
total = call(aten.sum.dim_IntList)

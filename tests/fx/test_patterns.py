"""Patterns over small graphs: what they match, what they bind, and what a failed match says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.fx.matching import Trace
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import add, bind, call, exactly, mean, number, rounded, rsqrt, sqrt

X, Y, EPS = bind("x"), bind("y"), number("eps")
BF16, F32 = torch.bfloat16, torch.float32


def result_of(fn: Callable[..., Tensor], *dtypes: torch.dtype) -> fx.Node:
    """The node that gives the function's result, for inputs [3, 4] of these dtypes."""
    with FakeTensorMode():
        inputs = [torch.empty(3, 4, dtype=dtype) for dtype in dtypes]
        graph = make_fx(fn)(*inputs).graph
    (node,) = graph.output_node().all_input_nodes
    return node


def placeholders(node: fx.Node) -> list[fx.Node]:
    return list(node.graph.find_nodes(op="placeholder"))


def test_commutes() -> None:
    root = X * rsqrt(Y)
    for fn in (lambda a, b: a * b.rsqrt(), lambda a, b: b.rsqrt() * a):
        node = result_of(fn, F32, F32)
        a, b = placeholders(node)
        found = root.match(node)
        assert found is not None and (found["x"], found["y"]) == (a, b)
        assert {m.target for m in found.nodes} == {aten.mul.Tensor, aten.rsqrt.default}


def test_a_difference_and_a_quotient_do_not_commute() -> None:
    for pattern, fn in (
        (X - rsqrt(Y), lambda a, b: b.rsqrt() - a),
        (X / rsqrt(Y), lambda a, b: b.rsqrt() / a),
    ):
        assert pattern.match(result_of(fn, F32, F32)) is None


def test_alternatives_are_tried_in_order_and_taken_back() -> None:
    """The first alternative binds x to the wrong operand; the second must not see that."""
    pattern = (X * sqrt(X)).saying(which=1) | (X * sqrt(Y)).saying(which=2)
    node = result_of(lambda a, b: a * b.sqrt(), F32, F32)
    found = pattern.match(node)
    assert found is not None
    assert (found["which"], found["x"], found["y"]) == (2, *placeholders(node))


def test_a_name_stands_for_one_value() -> None:
    assert (X * X).match(result_of(lambda a, b: a * a, F32, F32)) is not None
    assert (X * X).match(result_of(lambda a, b: a * b, F32, F32)) is None


def test_lossless_casts_are_looked_through() -> None:
    node = result_of(lambda a, b: a.float() * b.float().rsqrt(), BF16, BF16)
    found = (X * rsqrt(Y)).match(node)
    assert found is not None
    assert [found["x"], found["y"]] == placeholders(node)
    assert len(found.nodes) == 2 and len(found.passed) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, torch.float8_e4m3fn])
def test_other_casts_are_values(dtype: torch.dtype) -> None:
    node = result_of(lambda a, b: a * b.rsqrt().to(dtype).float(), F32, F32)
    assert (X * rsqrt(Y)).match(node) is None
    found = (X * rounded(rsqrt(Y))).match(node)
    assert (found is not None) == (dtype is torch.bfloat16)
    if found is not None:
        assert any(
            m.target is torch.ops.prims.convert_element_type.default for m in found.nodes
        ) or any(m.target is aten._to_copy.default for m in found.nodes)


def test_a_scaled_sum_is_no_sum() -> None:
    assert (X + Y).match(result_of(lambda a, b: torch.add(a, b, alpha=2), F32, F32)) is None
    assert (X - Y).match(result_of(lambda a, b: torch.sub(a, b, alpha=2), F32, F32)) is None
    floor = result_of(lambda a, b: torch.div(a, b, rounding_mode="floor"), F32, F32)
    assert (X / Y).match(floor) is None


def test_numbers_and_literals() -> None:
    found = (X**2 + EPS).match(result_of(lambda a: a**2 + 1e-3, F32))
    assert found is not None and found["eps"] == 1e-3
    assert (X**2).match(result_of(lambda a: a**3, F32)) is None
    assert (X + EPS).match(result_of(lambda a: a + a, F32)) is None


def test_further_arguments_are_free_and_operands_are_not() -> None:
    node = result_of(lambda a: a.mean(-1, keepdim=True), F32)
    assert mean(X).match(node) is not None
    assert add(rsqrt(X)).match(result_of(lambda a, b: b + a.rsqrt(), F32, F32)) is not None
    assert (
        call(aten.add.Tensor)(rsqrt(X)).match(result_of(lambda a, b: b + a.rsqrt(), F32, F32))
        is None
    )


def test_what_is_looked_through_can_be_chosen() -> None:
    node = result_of(lambda a: a.reshape(12).rsqrt().reshape(3, 4) * a, F32)

    def look(m: fx.Node) -> fx.Node | None:
        views = (aten.view.default, aten.reshape.default)
        return m.args[0] if m.target in views else None  # type: ignore[return-value]

    assert (X * rsqrt(X)).match(node) is None
    found = (X * rsqrt(X)).match(node, Trace(look))
    assert found is not None and [found["x"]] == placeholders(node)


def test_exactly_is_the_node_itself() -> None:
    node = result_of(lambda a, b: a.float() * b, BF16, F32)
    cast, b = node.args
    found = (exactly("here") * Y).match(node, here=cast)
    assert found is not None and found["y"] is b
    assert (exactly("here") * Y).match(node, here=placeholders(node)[0]) is None


def test_the_trace_says_how_far_a_match_came() -> None:
    """The furthest alternative counts, wherever it stands among the others."""
    node = result_of(lambda a, b: a * torch.rsqrt(b.pow(2).mean(-1, keepdim=True) + 1e-6), F32, F32)
    trace = Trace()
    square = (X**2).named("square")
    pattern = sqrt(X) | X * rsqrt(mean(square) + EPS) | X / sqrt(X)
    assert pattern.match(node, trace) is None
    a, b = placeholders(node)
    assert trace.node is b
    assert trace.bound["x"] is a and "eps" not in trace.bound.values
    assert a.name in trace.reason and b.name in trace.reason
    assert {m.target for m in trace.bound.nodes} >= {
        aten.mul.Tensor,
        aten.rsqrt.default,
        aten.mean.dim,
    }


def test_a_failed_condition_says_its_reason() -> None:
    node = result_of(lambda a: a.mean(0, keepdim=True).rsqrt(), F32)
    trace = Trace()
    checked = mean(X).where(lambda _, found: None if found.node.args[1] == [-1] else "another dim")
    assert rsqrt(checked).match(node, trace) is None
    assert trace.reason == "another dim"
    assert trace.node is node.args[0]

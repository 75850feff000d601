"""The Triton convolution takes over the addition behind it where that is cheaper, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.passes.fold_residual import fold_residual
from rocm_passes.target import triton_is_interpreted
from tests import suites
from tests.rewriting import rewrite

aten = torch.ops.aten
LAST = torch.channels_last_3d
X, W, R = (1, 8, 3, 5, 6), (8, 8, 3, 3, 3), (1, 8, 3, 5, 6)


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, lowering: str = "triton") -> Tensor:
    made: Tensor = torch.ops.rocm_passes.implicit_gemm_conv(
        x, None, w, b, [2, 0], [1, 1, 1], [1, 1], [1, 1, 1], [1, 1], lowering=lowering
    )
    return made


def inputs(r: tuple[int, ...] = R, layout: Any = LAST) -> list[Tensor]:
    torch.manual_seed(0)
    x, w, residual = torch.randn(X), torch.randn(W), torch.randn(r)
    placed = residual.contiguous(memory_format=layout) if residual.dim() == 5 else residual
    return [x.contiguous(memory_format=LAST), w.contiguous(memory_format=LAST), placed]


def folded(fn: Callable[..., Any], args: list[Tensor]) -> tuple[int, list[str], fx.Graph]:
    """How many, and why others were not; the value stays."""
    mode = FakeTensorMode()
    with mode:
        gm = make_fx(fn)(*[mode.from_tensor(a) for a in args])
    found, left = fold_residual(gm.graph, mode)
    gm.graph.lint()
    gm.recompile()
    torch.testing.assert_close(gm(*args), fn(*args), rtol=1e-5, atol=1e-5)
    return len(found), list(left.values()), gm.graph


def calls(graph: fx.Graph, target: Any) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


@pytest.mark.parametrize("swapped", [False, True])
def test_one_launch_for_both(swapped: bool) -> None:
    def fn(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return r + conv(x, w) if swapped else conv(x, w) + r

    count, left, graph = folded(fn, inputs())
    assert (count, left) == (1, [])
    assert calls(graph, aten.add.Tensor) == 0
    (node,) = graph.find_nodes(op="call_function", target=IMPLICIT_GEMM_CONV.overload)
    assert IMPLICIT_GEMM_CONV.call_of(node).residual is not None


def test_a_block_behind_a_block() -> None:
    """The sum of the first is the second's residual, and lies in memory by then."""

    def fn(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        z = conv(x, w) + r
        return conv(z.sin(), w) + z

    count, left, graph = folded(fn, inputs())
    assert (count, left, calls(graph, aten.add.Tensor)) == (2, [], 0)


def test_of_two_convolutions_one_adds_the_other() -> None:
    def fn(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return conv(x, w) + conv(r, w)

    count, left, graph = folded(fn, inputs())
    assert (count, left, calls(graph, aten.add.Tensor)) == (1, [], 0)


def test_a_conv2d_adds_an_image() -> None:
    def fn(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        y = torch.ops.rocm_passes.implicit_gemm_conv(
            x.select(2, 0).unsqueeze(2), None, w[:, :, :1], None, [0, 0], [1, 1, 1], [1, 1],
            [1, 1, 1], [1, 1], lowering="triton",
        )  # fmt: skip
        return y.squeeze(2) + r

    x, w, _ = inputs()
    image = torch.randn(1, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    count, left, graph = folded(fn, [x, w, image])
    assert (count, left, calls(graph, aten.add.Tensor)) == (1, [], 0)


def test_what_another_kernel_reads_is_in_memory() -> None:
    """Pointwise code for the addition alone is computed in it; for a convolution too, it is
    written.
    """

    def alone(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return conv(x, w) + r.sin()

    def read(x: Tensor, w: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        s = r.sin()
        return conv(x, w) + s, conv(s.permute(0, 1, 2, 3, 4), w)

    assert folded(read, inputs())[0] == 1
    count, (reason,), _ = folded(alone, inputs())
    assert count == 0 and "for the convolution alone" in reason


def test_a_library_s_bias_is_pointwise_code() -> None:
    def plain(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return conv(x, w) + F.conv3d(r, w, padding=1)

    def biased(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return conv(x, w) + F.conv3d(r, w, w[:, 0, 0, 0, 0], padding=1)

    assert folded(plain, inputs())[0] == 1
    assert folded(biased, inputs())[0] == 0


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "another lowering": (lambda x, w, r: conv(x, w, None, "reference") + r, "'reference'"),
    "a multiple": (lambda x, w, r: torch.add(conv(x, w), r, alpha=2), "a multiple"),
    "one channel": (lambda x, w, r: conv(x, w) + r[:, :1], "it has shape"),
    "another dtype": (lambda x, w, r: conv(x, w) + r.double(), "it is torch.float64"),
    "contiguous": (lambda x, w, r: conv(x, w) + r, "channels-last"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fn, reason = REFUSED[name]
    layout = torch.contiguous_format if name == "contiguous" else LAST
    count, left, graph = folded(fn, inputs(layout=layout))
    assert count == 0 and reason in left[0]
    assert calls(graph, aten.add.Tensor) == 1


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w, r: (lambda y: (y + r, y.sin()))(conv(x, w)),
        lambda x, w, r: (lambda y: y + y)(conv(x, w)),
        lambda x, w, r: conv(x, w) + 1.0,
        lambda x, w, r: conv(x, w) * r,
    ],
    ids=["read elsewhere", "added to itself", "a number", "a product"],
)
def test_no_addition_of_two_tensors(fn: Callable[..., Any]) -> None:
    assert folded(fn, inputs())[:2] == (0, [])


def test_a_second_tensor_stays_an_addition() -> None:
    def fn(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return (conv(x, w) + r) + r

    count, left, graph = folded(fn, inputs())
    assert (count, left, calls(graph, aten.add.Tensor)) == (1, [], 1)


def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), w, b) + r


OPTIONS = {"lowering": {"conv3d": "triton"}, "layout": "channels_last"}


@pytest.mark.skipif(not triton_is_interpreted(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_through_the_backend(dtype: torch.dtype) -> None:
    """One rounding: no further from float64 than the graph, and the ledger says so."""
    x, w, r = (t.to(dtype) for t in inputs())
    b = torch.randn(8).to(dtype)
    seen = rewrite(block, x, r, w, b, options=OPTIONS)
    entry = seen.only()
    assert entry.parameters["adds_residual"] is True
    assert aten.add.Tensor not in seen.targets()
    if suites.codegen():
        assert seen.result.stride() == block(x, r, w, b).stride()
    exact = block(*(t.double() for t in (x, r, w, b)))
    # The interpreter truncates to bf16: a whole unit, where rounding is off by half of one.
    unit = torch.finfo(dtype).eps
    error = (seen.result.double() - exact).abs()
    assert bool((error <= unit * exact.abs() + 2.0**-14).all())


def seen_by_strides(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.as_strided(block(x, r, w, b), (7, 10), (31, 3), 2) + 1


def turned(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Height and width are equal: only their places tell them apart."""
    other = F.conv3d(F.pad(r, (1, 1, 1, 1, 2, 0)), w).transpose(3, 4)
    return block(x, other, w, b)


@pytest.mark.skipif(not triton_is_interpreted(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("fn", [seen_by_strides, turned])
def test_memory_and_places_stay(fn: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    x, r = (torch.randn(1, 8, 3, 5, 5).half().contiguous(memory_format=LAST) for _ in range(2))
    w, b = torch.randn(W).half() * 0.1, torch.randn(8).half()
    seen = rewrite(fn, x, r, w, b, options=OPTIONS)
    assert any("adds_residual" in entry.parameters for entry in seen.sites)
    torch.testing.assert_close(seen.result, fn(x, r, w, b), rtol=2e-3, atol=4e-3)


@pytest.mark.skipif(not triton_is_interpreted(), reason="needs Triton's interpreter")
def test_the_ledger_says_why_not() -> None:
    x, w, r = (t.half() for t in inputs())
    seen = rewrite(
        lambda *args: block(args[0], args[1].sin(), *args[2:]),
        x, r, w, torch.randn(8).half(),
        options=OPTIONS,
    )  # fmt: skip
    entry = seen.only()
    assert "adds_residual" not in entry.parameters
    assert any("left to Inductor" in note for note in entry.notes)

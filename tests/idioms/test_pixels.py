"""What only moves pixels is read off the graph, and replayed, exactly; what does more ends the
reading.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.fx.builder import Eager
from rocm_passes.idioms.convolution import pixels
from rocm_passes.ops.upsampled_conv import Move, Moved, write_moves
from tests.idioms.norm_cases import BF16, F16, F32, draw

AT = torch.tensor([1, 0, 0, 2])
Function = Callable[[Tensor, Tensor], Tensor]


def read(fn: Function, x: Tensor) -> tuple[Moved, fx.GraphModule]:
    gm = make_fx(fn, tracing_mode="fake", decomposition_table={})(x, AT)
    (output,) = gm.graph.find_nodes(op="output")
    return pixels.read(output.args[0]), gm


def replayed(moved: Moved, gm: fx.GraphModule, x: Tensor) -> Tensor:
    """`moved` over real tensors, from a source that is the graph's input."""
    x_node, at_node = gm.graph.find_nodes(op="placeholder")

    def real(node: fx.Node) -> Tensor:
        if node.op == "placeholder":
            return {x_node: x, at_node: AT}[node]
        return node.target(*fx.map_arg(node.args, real), **node.kwargs)  # type: ignore[operator, no-any-return]

    parts = []
    for piece in moved.pieces:
        assert piece.source is x_node
        part = x
        for dtype in piece.casts:
            part = part.to(dtype)
        moves = [Move(m.target, fx.map_arg(m.args, real), m.kwargs) for m in piece.moves]
        parts.append(write_moves(Eager(), moves, part))
    return parts[0] if moved.dim is None else torch.cat(parts, moved.dim)


CASES: dict[str, Function] = {
    "gather": lambda x, at: x[:, :, :, at],
    "gathers in turn": lambda x, at: x[:, :, at][:, :, :, at],
    "slices, steps": lambda x, at: torch.cat(
        [x[:, :, :, ::2][:, :, at], x[:, :, :, 1::2][:, :, at]], 3
    ),
    "cat in time": lambda x, at: torch.cat([x[:, :, :1][:, :, :, at], x[:, :, 1:][:, :, :, at]], 2),
    "cat in width": lambda x, at: torch.cat([x[..., at], x[..., :1]], -1),
    "casts": lambda x, at: torch.cat([x.float()[:, :, at].to(F16), x.to(F16)], 2).float(),
    "clones": lambda x, at: x[:, :, at].clone()[:, :, :, at].clone(),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_replayed_it_is_the_same(name: str, dtype: torch.dtype) -> None:
    x = draw(2, 3, 3, 4, 5, dtype=dtype)
    moved, gm = read(CASES[name], x)
    assert pixels.repeats(moved)
    got, want = replayed(moved, gm, x), CASES[name](x, AT)
    assert got.dtype is want.dtype
    assert torch.equal(got, want)


def test_source_pixels_are_counted_once() -> None:
    moved, _ = read(CASES["cat in time"], draw(1, 3, 3, 4, 5))
    assert (len(moved.pieces), moved.dim, pixels.source_pixels(moved)) == (2, 2, 60)


def test_of_a_slice_alone_only_the_slice_is_read() -> None:
    moved, _ = read(lambda x, at: x[:, :, :1][:, :, :, at], draw(1, 3, 3, 4, 5))
    assert pixels.source_pixels(moved) == 20
    assert [len(p.moves) for p in moved.pieces] == [1]


@pytest.mark.parametrize(
    ("fn", "casts"),
    [
        (lambda x, at: x.float()[:, :, at].to(x.dtype), ()),
        (lambda x, at: x.to(F32)[:, :, at], (F32,)),
        # float16 holds less than bfloat16's range, and bfloat16 fewer digits.
        (lambda x, at: x.to(F16)[:, :, at].to(x.dtype), (F16, BF16)),
        (lambda x, at: x.to(torch.int32)[:, :, at].to(x.dtype), (torch.int32, BF16)),
    ],
    ids=["widened and back", "widened", "lossy", "integers"],
)
def test_casts_that_change_nothing_are_left_out(
    fn: Function, casts: tuple[torch.dtype, ...]
) -> None:
    moved, _ = read(fn, draw(1, 3, 3, 4, 5, dtype=BF16))
    assert moved.pieces[0].casts == casts


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, at: x[at % 2],
        lambda x, at: x[:, at],
        lambda x, at: x[:, :, at, :, at],
        lambda x, at: x[:, :, at[:, None]],
        lambda x, at: torch.cat([x[:, :, at], x[:, :, at]], 1),
        lambda x, at: F.interpolate(x, scale_factor=2.0, mode="trilinear"),
        lambda x, at: x[:, :, at] * 2,
    ],
    ids=[
        "samples",
        "channels",
        "dims that are no neighbours",
        "a new dim",
        "cat of channels",
        "mix",
        "product",
    ],
)
def test_what_is_not_read(fn: Function) -> None:
    moved, _ = read(fn, draw(2, 3, 3, 4, 5))
    assert not pixels.repeats(moved)
    (piece,) = moved.pieces
    assert piece.source.op == "call_function"


def test_masks_are_not_read() -> None:
    x = draw(1, 3, 3, 4, 5)
    graph = fx.Graph()
    given, at = graph.placeholder("x"), graph.placeholder("at")
    given.meta["val"], at.meta["val"] = x, torch.tensor([True, False, True])
    node = graph.call_function(torch.ops.aten.index.Tensor, (given, [None, None, at]))
    node.meta["val"] = x[:, :, at.meta["val"]]
    assert not pixels.repeats(pixels.read(node))
    at.meta["val"] = torch.tensor([0, 2])
    assert pixels.repeats(pixels.read(node))


def test_casts_through_8_bits_are_kept() -> None:
    """torch promotes no 8-bit floats: the question may not raise."""
    from rocm_passes.idioms.convolution.pixels import _loses_nothing

    assert not _loses_nothing(torch.bfloat16, torch.float8_e4m3fn)
    assert not _loses_nothing(torch.float8_e4m3fn, torch.bfloat16)
    assert _loses_nothing(torch.bfloat16, torch.float32)

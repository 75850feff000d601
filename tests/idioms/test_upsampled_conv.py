"""1x1 and 1x1x1 convolutions of nearest-upsampled tensors: computed on the small tensor, exactly,
or left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes.report.ledger import Entry
from tests.idioms.norm_cases import BF16, F16, F32, check, draw
from tests.rewriting import Rewritten, rewrite
from tests.suites import examples

aten = torch.ops.aten
C, OUT = 4, 6


def weights(rank: int, dtype: torch.dtype = F32, groups: int = 1) -> tuple[Tensor, Tensor]:
    return draw(OUT, C // groups, *[1] * rank, dtype=dtype, seed=1), draw(OUT, dtype=dtype, seed=2)


def video(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv3d(F.interpolate(x, size=(4, 6, 10)), w, b)


def first_and_rest(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """CogVideoX: the first frame is upsampled in space only."""
    first = F.interpolate(x[:, :, :1], size=(1, 6, 10))
    rest = F.interpolate(x[:, :, 1:], size=(4, 6, 10))
    return F.conv3d(torch.cat([first, rest], 2), w, b)


def image(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0), w, b)


def site(r: Rewritten) -> Entry:
    (entry,) = [e for e in r.sites if e.idiom == "upsampled_conv"]
    return entry


def rewritten(fn: Callable[..., Any], *args: Tensor, **options: Any) -> Rewritten:
    """Taken by the rule for this machine, and within the accuracy bar."""
    r = check(fn, *args, options={"select": "auto", **options})
    assert (site(r).outcome, site(r).lowering) == ("rewritten", "before_upsampling")
    return r


def products(r: Rewritten) -> list[int]:
    """The rows of each matrix product in the rewritten graph: the pixels that it is
    computed for.
    """
    found = []
    for node in r.after[0].nodes:
        if node.target is aten.addmm.default:
            found.append(node.args[1].meta["val"].shape[0])
        if node.target is aten.mm.default:
            found.append(node.args[0].meta["val"].shape[0])
    return found


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(
    ("fn", "shape"),
    [(video, (2, C, 2, 3, 5)), (first_and_rest, (2, C, 3, 3, 5)), (image, (2, C, 3, 5))],
)
def test_computed_once_for_each_pixel_of_the_source(
    fn: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    r = rewritten(fn, draw(*shape, dtype=dtype), *weights(len(shape) - 2, dtype))
    assert aten.convolution.default not in r.targets()
    assert products(r) == [shape[0] * math.prod(shape[2:])]
    assert site(r).covers == ({"conv3d": 1} if len(shape) == 5 else {})
    assert site(r).parameters["source_pixels"] == math.prod(shape[2:])
    assert site(r).parameters["pixels"] == math.prod(r.result.shape[2:])


def test_the_ledger_says_how_many_copies_are_saved() -> None:
    r = rewritten(video, draw(1, C, 2, 3, 5), *weights(3))
    assert site(r).reason == "computed once for each pixel of the source, not for its 8 copies"


def test_the_upsampled_tensor_stays_for_whoever_else_uses_it() -> None:
    """CogVideoX's convolutions keep their input as a cache."""

    def fn(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        up = F.interpolate(x, size=(4, 6, 10))
        return F.conv3d(up, w, b), up

    x = draw(1, C, 2, 3, 5, dtype=BF16)
    r = rewritten(fn, x, *weights(3, BF16))
    assert torch.equal(r.result[1], F.interpolate(x, size=(4, 6, 10)))


def test_two_convolutions_of_one_source() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        up = F.interpolate(x, size=(4, 6, 10))
        return F.conv3d(up, w, b) * F.conv3d(up, w.sin(), b)

    r = check(fn, draw(1, C, 2, 3, 5), *weights(3), options={"select": "auto"})
    assert [e.outcome for e in r.sites] == ["rewritten", "rewritten"]
    assert products(r) == [30, 30]


@pytest.mark.parametrize("groups", [2, C])
def test_groups(groups: int) -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x, size=(4, 6, 10)), w, b, groups=groups)

    weight = draw(8, C // groups, 1, 1, 1, seed=1)
    r = rewritten(fn, draw(1, C, 2, 3, 5), weight, draw(8, seed=2))
    (convolution,) = r.after[0].find_nodes(op="call_function", target=aten.convolution.default)
    assert tuple(convolution.meta["val"].shape) == (1, 8, 2, 3, 5)


def test_without_bias() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0), w)

    assert site(rewritten(fn, draw(1, C, 3, 5), weights(2)[0])).parameters["bias"] is False


def test_any_gather_of_pixels_commutes() -> None:
    """nearest-exact, a replicate pad, an odd ratio, and indices that come from outside."""
    at = torch.tensor([2, 0, 1, 1, -1, 2, 2])

    def exact(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, size=(7, 11), mode="nearest-exact"), w, b)

    def odd(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, size=(7, 13)), w, b)

    def indexed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x[:, :, at], w, b)

    for fn in (exact, odd, indexed):
        rewritten(fn, draw(2, C, 3, 5), *weights(2))


def test_a_narrowing_cast_stays_before_the_convolution() -> None:
    """float32 latents, upsampled, then rounded: the product is of the rounded values."""

    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x, size=(4, 6, 10)).to(w.dtype), w, b)

    x, (w, b) = draw(1, C, 2, 3, 5), weights(3, BF16)
    r = rewrite(fn, x, w, b, options={"select": "auto"})
    assert site(r).outcome == "rewritten"
    # One product of bfloat16 values, and one rounding of its result.
    exact = fn(x.to(BF16).double(), w.double(), b.double())
    assert (
        torch.equal(r.result, exact.to(BF16))
        or (r.result - exact).abs().max() <= exact.abs().max() / 128
    )


def test_a_cast_to_a_wider_dtype_and_back_is_left_out() -> None:
    r = rewritten(video, draw(1, C, 2, 3, 5, dtype=BF16), *weights(3, BF16))
    (product,) = r.after[0].find_nodes(op="call_function", target=aten.addmm.default)
    seen, stack = set(), [product.args[1]]
    while stack:
        node = stack.pop()
        seen.add(node.target)
        stack += node.all_input_nodes
    assert torch.ops.prims.convert_element_type.default not in seen


def test_a_short_slice_of_a_long_video_is_not_convolved_whole() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x[:, :, :1], size=(1, 6, 10)), w, b)

    assert products(rewritten(fn, draw(1, C, 9, 3, 5), *weights(3))) == [15]


def test_a_piece_that_is_not_upsampled_joins_in() -> None:
    def fn(x: Tensor, cached: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(torch.cat([cached, F.interpolate(x, size=(4, 6, 10))], 2), w, b)

    r = rewritten(fn, draw(1, C, 2, 3, 5), draw(1, C, 1, 6, 10), *weights(3))
    assert sorted(products(r)) == [30, 60]


def test_kept_where_there_are_fewer_than_two_copies() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x, size=(2, 3, 5)), w, b)

    r = check(fn, draw(1, C, 2, 3, 5), *weights(3), options={"select": "auto"})
    assert [e.idiom for e in r.sites] == ["conv3d"]
    assert (
        "upsampled_conv: left to Inductor: before_upsampling: the input has only 1 times"
        in r.only().considered[0]
    )
    rewritten(fn, draw(1, C, 2, 3, 5), *weights(3), select="always")


def refused(fn: Callable[..., Tensor], *args: Tensor) -> str:
    """The reason, which stands on the conv3d that it remains."""
    r = check(fn, *args)
    assert r.only().idiom == "conv3d"
    (reason,) = r.only().considered
    return reason


def test_refuses_padding() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x, size=(4, 6, 10)), w, b, padding=(0, 1, 1))

    assert (
        refused(fn, draw(1, C, 2, 3, 5), *weights(3))
        == "upsampled_conv: its padding is convolved, too"
    )


def test_refuses_a_stride() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x, size=(4, 6, 10)), w, b, stride=(1, 2, 2))

    assert refused(fn, draw(1, C, 2, 3, 5), *weights(3)) == "upsampled_conv: stride=[1, 2, 2]"


def test_refuses_symbolic_sizes() -> None:
    def fn(x: Tensor, at: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(x[:, :, at], w, b)

    x, at = draw(1, C, 3, 3, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    torch._dynamo.mark_dynamic(x, 2)
    r = rewrite(fn, x, at, *weights(3))
    assert r.only().idiom == "conv3d"
    assert r.only().considered == ("upsampled_conv: its sizes are symbolic",)
    torch.testing.assert_close(r.result, fn(x, at, *weights(3)))


def no_site(fn: Callable[..., Any], *args: Tensor) -> None:
    r = rewrite(fn, *args)
    assert not [e for e in r.sites if e.idiom == "upsampled_conv"]
    assert not [c for e in r.sites for c in e.considered]
    torch.testing.assert_close(r.result, fn(*args))


def test_no_site_where_nothing_is_gathered() -> None:
    no_site(
        lambda x, w, b: F.conv3d(torch.cat([x[:, :, :1], x], 2), w, b),
        draw(1, C, 2, 3, 5),
        *weights(3),
    )


def test_no_site_where_pixels_are_mixed() -> None:
    def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv3d(F.interpolate(x, size=(4, 6, 10), mode="trilinear") * 2, w, b)

    no_site(linear, draw(1, C, 2, 3, 5), *weights(3))


def test_no_site_where_the_kernel_sees_several_pixels() -> None:
    w = draw(OUT, C, 1, 3, 3)
    no_site(
        lambda x, b: F.conv3d(F.interpolate(x, size=(4, 6, 10)), w, b),
        draw(1, C, 2, 3, 5),
        draw(OUT),
    )


def test_no_site_where_samples_or_channels_are_gathered() -> None:
    at = torch.tensor([1, 1, 0, 2, 0, 3, 3, 1])
    w, b = weights(3)
    wide = draw(OUT, 8, 1, 1, 1)
    no_site(lambda x: F.conv3d(x[at], w, b), draw(4, C, 2, 3, 5))
    no_site(lambda x: F.conv3d(x[:, at], wide, b), draw(1, C, 2, 3, 5))


def test_no_site_where_a_gather_moves_dims() -> None:
    """Over dims that are no neighbours, its result's channels are what was time and width."""
    at = torch.tensor([0, 1, 1, 0])
    x, (w, b) = draw(1, C, 2, 3, 5), weights(3)
    assert x[:, :, at[:, None], :, at].shape == (4, C, 1, C, 3)
    no_site(lambda x: F.conv3d(x[:, :, at[:, None], :, at], w, b), x)


def test_no_site_where_a_gather_makes_dims() -> None:
    at = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0]])
    w, b = weights(3)
    no_site(lambda x: F.conv3d(x[:, :, at], w, b), draw(1, C, 3, 5))


def test_no_site_where_cats_join_channels() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        up = F.interpolate(x, size=(4, 6, 10))
        return F.conv3d(torch.cat([up[:, :2], up[:, 2:]], 1), w, b)

    no_site(fn, draw(1, C, 2, 3, 5), *weights(3))


def test_no_site_where_the_convolution_is_transposed() -> None:
    w = draw(C, OUT, 1, 1, 1)
    no_site(lambda x: F.conv_transpose3d(F.interpolate(x, size=(4, 6, 10)), w), draw(1, C, 2, 3, 5))


def test_gradients_are_those_of_the_original() -> None:
    x, y = (draw(1, C, 2, 3, 5).requires_grad_() for _ in range(2))
    w, b = weights(3)
    r = rewrite(video, x, w, b, options={"select": "auto"}, grad=True)
    assert site(r).outcome == "rewritten"
    r.result.square().sum().backward()
    video(y, w, b).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


@settings(max_examples=examples(8), deadline=None)
@given(
    small=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    times=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    odd=st.booleans(),
    split=st.booleans(),
)
def test_shapes_and_scales(
    small: tuple[int, ...], times: tuple[int, ...], odd: bool, split: bool
) -> None:
    size = [s * k + (odd and k > 1) for s, k in zip(small, times, strict=True)]

    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if not split or x.shape[2] == 1:
            return F.conv3d(F.interpolate(x, size=size), w, b)
        first = F.interpolate(x[:, :, :1], size=(1, *size[1:]))
        return F.conv3d(torch.cat([first, F.interpolate(x[:, :, 1:], size=size)], 2), w, b)

    r = check(fn, draw(1, C, *small), *weights(3))
    assert site(r).outcome == "rewritten"


@pytest.mark.parametrize(("options", "kind"), [
    ({"rewrite_numerics": "strict", "select": "always"}, "refused"),
    ({"select": "off"}, "kept"),
])  # fmt: skip
def test_an_image_that_is_left_has_an_entry(options: dict[str, Any], kind: str) -> None:
    """No smaller idiom has its nodes, on whose entry the larger fusion would be noted."""
    r = rewrite(image, draw(1, C, 3, 5), *weights(2), options=options)
    (entry,) = r.sites
    assert (entry.idiom, entry.outcome, entry.covers) == ("upsampled_conv", kind, {})
    assert "strict" in entry.reason or "off" in entry.reason


def test_an_image_that_is_padded_has_an_entry() -> None:
    def padded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0), w, b, padding=1)

    (entry,) = rewrite(padded, draw(1, C, 3, 5), *weights(2)).sites
    assert (entry.outcome, entry.reason) == ("refused", "its padding is convolved, too")
    assert not entry.considered


def test_a_video_that_is_left_has_one_entry() -> None:
    """The refusal is noted on the conv3d that it stays."""
    options = {"rewrite_numerics": "strict", "select": "always"}
    (entry,) = rewrite(video, draw(1, C, 2, 3, 5), *weights(3), options=options).sites
    assert entry.idiom == "conv3d"
    assert any(c.startswith("upsampled_conv: ") for c in entry.considered)

"""Conv3d in a compiled graph: what is absorbed, what each form becomes, what is refused, and the
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import inductor_prims

from rocm_passes.idioms.convolution import conv3d as idiom
from rocm_passes.ops import conv3d as op
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.rewrite.choose import asked
from rocm_passes.rewrite.match import Context, Match
from rocm_passes.target import Target, triton_is_interpreted
from rocm_passes.tuning import ahead
from tests.ops.conv3d_calls import call
from tests.rewriting import ON_CPU, Rewritten, rewrite

pytestmark = pytest.mark.pairwise

aten = torch.ops.aten
WEIGHT = torch.randn(6, 4, 3, 3, 3, generator=torch.Generator().manual_seed(1)) / 10
BIAS = torch.randn(6, generator=torch.Generator().manual_seed(2))
H200 = Target("nvidia", "sm_90", "H200", "2.11", "3.6")


def video(frames: int, channels: int = 4, batch: int = 1, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, frames, 6, 7, generator=draw)


def causal(x: Tensor, cache: Tensor | None = None) -> Tensor:
    """Wan's and Qwen-Image's convolution."""
    pads = [1, 1, 1, 1, 2, 0]
    if cache is not None:
        x = torch.cat([cache, x], 2)
        pads[4] -= cache.shape[2]
    return F.conv3d(F.pad(x, pads), WEIGHT, BIAS)


def conv3d(r: Rewritten) -> Any:
    (entry,) = [e for e in r.sites if e.idiom == "conv3d"]
    return entry


def check(fn: Callable[..., Tensor], *args: Tensor, **options: Any) -> Rewritten:
    """Rewritten and run, against eager in float32; tests/ops holds the lowerings to float64."""
    r = rewrite(fn, *args, options={"select": "auto", **options})
    torch.testing.assert_close(r.result, fn(*args))
    return r


def test_an_image_becomes_one_conv2d_without_a_padded_copy() -> None:
    r = check(causal, video(1))
    entry = conv3d(r)
    assert entry.lowering == "conv2d"
    assert "one of 3 temporal taps" in entry.reason
    assert aten.constant_pad_nd.default not in r.targets()
    assert [len(n.args[1].meta["val"].shape) for n in r.after[0].find_nodes(
        op="call_function", target=aten.convolution.default)] == [4]  # fmt: skip


@pytest.mark.parametrize("cached", [1, 2])
@pytest.mark.parametrize("lowering", ["direct", "taps", "unfold"])
@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
def test_a_cached_chunk(cached: int, lowering: str, layout: str) -> None:
    r = check(causal, video(3), video(cached, seed=5), lowering={"conv3d": lowering}, layout=layout)
    entry = conv3d(r)
    assert entry.lowering == lowering
    assert entry.parameters["pieces"] == 2
    assert entry.parameters["zero_frames"] == [2 - cached, 0]
    assert entry.parameters["padding"] == [1, 1]


@pytest.mark.parametrize("cached", [0, 1, 2])
@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
def test_the_kernel_reads_a_cached_chunk_without_copies(cached: int, layout: str) -> None:
    """Compiled, in Triton's interpreter where there is no GPU: no cat and no padding stand in the
    graph.
    """

    def halves(x: Tensor, cache: Tensor | None = None) -> Tensor:
        pads = [1, 1, 1, 1, 2 - cached, 0]
        x = x if cache is None else torch.cat([cache, x], 2)
        return F.conv3d(F.pad(x, pads), WEIGHT.half(), BIAS.half()) * 2

    inputs = [video(3).half(), *([video(cached, seed=5).half()] if cached else [])]
    options = {"lowering": {"conv3d": "triton"}, "layout": layout}
    r = rewrite(halves, *inputs, options={"select": "auto", **options})
    assert conv3d(r).lowering == ("triton" if triton_is_interpreted() else None)
    if triton_is_interpreted():
        targets = r.targets()
        assert targets.count(IMPLICIT_GEMM_CONV.overload) == 1
        assert not {aten.cat.default, aten.constant_pad_nd.default, aten.convolution.default} & {
            *targets
        }
    eager = halves(*inputs)
    if layout == "as_is":
        assert r.result.stride() == eager.stride()
    torch.testing.assert_close(r.result, eager, rtol=2.0**-9, atol=2.0**-9)


def test_zeros_in_a_cat_are_zero_frames() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.conv3d(torch.cat([torch.zeros_like(x), torch.zeros_like(x), x], 2), WEIGHT, BIAS)

    entry = conv3d(check(fn, video(1)))
    assert (entry.lowering, entry.parameters["zero_frames"]) == ("conv2d", [2, 0])


def test_repeated_frames_are_pieces() -> None:
    """CogVideoX and LTX: the first frame stands before itself."""

    def fn(x: Tensor) -> Tensor:
        return F.conv3d(
            torch.cat([x[:, :, :1], x[:, :, :1], x], 2), WEIGHT, BIAS, padding=(0, 1, 1)
        )

    entry = conv3d(check(fn, video(4), lowering={"conv3d": "taps"}))
    assert entry.parameters["pieces"] == 3


@pytest.mark.parametrize(
    ("pads", "value"),
    [
        ([1, 0, 0, 0, 0, 0], 0.0),
        ([1, 1, 0, 1, 0, 0], 0.0),
        ([1, 1, 1, 1, 0, 0], 1.0),
        ([-1, -1, 0, 0], 0.0),
    ],
    ids=["one side", "one side of H", "ones", "a crop"],
)
def test_padding_that_is_none_of_a_convolution_s_is_left_in_place(
    pads: list[int], value: float
) -> None:
    def fn(x: Tensor) -> Tensor:
        return F.conv3d(F.pad(x, pads, value=value), WEIGHT, BIAS)

    r = check(fn, video(3), select="always")
    assert conv3d(r).parameters["padding"] == [0, 0]


def test_padding_that_is_used_elsewhere_stays() -> None:
    def fn(x: Tensor) -> Tensor:
        padded = F.pad(x, [1, 1, 1, 1, 0, 0])
        return F.conv3d(padded, WEIGHT, BIAS) + padded.mean()

    assert conv3d(check(fn, video(3), select="always")).parameters["padding"] == [0, 0]


def test_a_cat_over_other_dims_is_no_time_axis() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.conv3d(torch.cat([x[:, :2], x[:, 2:]], 1), WEIGHT, BIAS)

    assert conv3d(check(fn, video(3), select="always")).parameters["pieces"] == 1


def test_a_patch_embedding_is_a_matrix_product() -> None:
    weight = torch.randn(5, 4, 1, 2, 2)

    def fn(x: Tensor) -> Tensor:
        return F.conv3d(x, weight, stride=(1, 2, 2))

    r = rewrite(fn, video(3, batch=2))
    assert conv3d(r).lowering == "matmul"
    assert aten.convolution.default not in r.targets()
    torch.testing.assert_close(r.result, fn(video(3, batch=2)))


def test_batches_larger_than_one() -> None:
    for lowering in ("taps", "unfold", "tiled"):
        check(causal, video(7, batch=3), lowering={"conv3d": lowering}, layout="channels_last")


@pytest.mark.parametrize(
    ("name", "words", "bits"),
    [
        (
            "bf16",
            "convolved in bfloat16 (conv_dtype): an error of about 0.28% of the result's rms",
            8,
        ),
        (
            "fp16",
            "convolved in float16, scaled into its range (conv_dtype): an error of about 0.03%",
            11,
        ),
    ],
)
def test_conv_dtype_is_used_and_said(name: str, words: str, bits: int) -> None:
    r = rewrite(causal, video(3), options={"select": "auto", "conv_dtype": name})
    assert any(note.startswith(words) for note in conv3d(r).notes)
    assert r.result.dtype is torch.float32
    tolerance = 12 * 2.0**-bits
    torch.testing.assert_close(r.result, causal(video(3)), rtol=tolerance, atol=tolerance)


def test_fp16_takes_what_float16_cannot_hold() -> None:
    x = 1e6 * video(3)
    assert not causal(x).half().isfinite().all()
    r = rewrite(causal, x, options={"select": "auto", "conv_dtype": "fp16"})
    torch.testing.assert_close(r.result, causal(x), rtol=0, atol=2e-3 * float(causal(x).std()))


@pytest.mark.parametrize(("name", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_conv_dtype_is_refused_by_strict_numerics(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the environment, say; both among the options of a call are an error
    (tests/test_options.py).
    """
    monkeypatch.setenv("ROCM_PASSES_CONV_DTYPE", name)
    r = rewrite(causal, video(3), options={"rewrite_numerics": "strict"})
    assert conv3d(r).outcome == "refused"
    assert f"rewrite_numerics='strict': convolved in {dtype}" in conv3d(r).reason


def test_nothing_changes_on_a_cpu_where_nothing_can_be_won() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.conv3d(x, WEIGHT, BIAS, padding=1)

    r = rewrite(fn, video(3), options={"select": "auto"})
    assert conv3d(r).outcome == "kept"
    assert "direct: it is what the graph has" in conv3d(r).reason


def test_a_symbolic_number_of_frames_takes_what_needs_no_number() -> None:
    x = video(3)
    torch._dynamo.mark_dynamic(x, 2)
    r = rewrite(causal, x, options={"select": "always", "conv_frames_bucket": 4})
    assert "extra_frames" not in conv3d(r).parameters
    assert any(
        isinstance(n.meta.get("val"), torch.SymInt) for n in r.after[0].find_nodes(op="placeholder")
    )
    assert conv3d(r).lowering == "direct"
    torch.testing.assert_close(r.result, causal(video(3)))


def test_layout_reaches_the_conv2d_beside_it() -> None:
    weight = torch.randn(6, 6, 3, 3)

    def fn(x: Tensor) -> Tensor:
        y = causal(x)
        return F.conv2d(F.silu(y[:, :, 0]), weight, padding=1)

    r = check(fn, video(3), layout="channels_last", select="auto")
    assert {e.idiom: e.outcome for e in r.sites} == {"conv3d": "rewritten", "conv2d": "rewritten"}
    as_is = check(fn, video(3), layout="as_is", select="auto")
    assert [e.idiom for e in as_is.sites] == ["conv3d"]


def test_gradients_are_those_of_the_original() -> None:
    x = video(3).requires_grad_()
    y = video(3).requires_grad_()
    rewrite(causal, x, options={"select": "always"}, grad=True).result.square().sum().backward()
    causal(y).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


def test_symbolic_sizes_keep_their_layout() -> None:
    x = video(3)
    torch._dynamo.mark_dynamic(x, 2)
    r = rewrite(causal, x, options={"select": "auto", "layout": "channels_last"})
    assert conv3d(r).parameters["channels_last"] is False
    torch.testing.assert_close(r.result, causal(video(3)))


def test_norms_of_a_channels_last_graph_are_given_that_layout() -> None:
    norm = torch.nn.GroupNorm(2, 6)

    def fn(x: Tensor) -> Tensor:
        y = causal(x)
        return causal(F.silu(norm(y * y.mean()))[:, :4])

    options = {"select": "auto", "layout": "channels_last", "lowering": {"group_norm": ON_CPU}}
    r = rewrite(fn, video(3), options=options)
    (op,) = [n for n in r.after[0].nodes if n.target is torch.ops.rocm_passes.group_norm.default]
    assert op.args[0].target is inductor_prims.force_stride_order
    torch.testing.assert_close(r.result, fn(video(3)), rtol=1e-4, atol=1e-5)  # the norm's own sums


def test_each_call_knows_the_largest_of_its_graph() -> None:
    """The memory bound of a small call is what the largest one may take (policy/memory.py)."""

    def fn(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.conv3d(x, WEIGHT, BIAS), F.conv3d(y, WEIGHT, BIAS)

    graph = rewrite(fn, video(3), video(12), options={"select": "auto"}).before[0]
    sites = [site for site in idiom.find(graph, Context(Options())) if isinstance(site, Match)]
    # 4 channels in 12 frames of 6 x 7, 6 channels in 10 frames of 4 x 5; float32.
    mib = (4 * 12 * 42 + 6 * 10 * 20) * 4 / 2**20
    assert [site.call.largest_mib for site in sites] == [mib, mib]


@pytest.mark.parametrize("lowering", ["direct", "taps", "unfold"])
def test_frames_are_rounded_up_where_asked(lowering: str) -> None:
    r = check(
        causal, video(3), video(2, seed=1), lowering={"conv3d": lowering}, conv_frames_bucket=4
    )
    assert conv3d(r).parameters["extra_frames"] == 1
    assert r.result.shape[2] == 3
    assert (
        "extra_frames"
        not in conv3d(check(causal, video(4), video(2), conv_frames_bucket=4)).parameters
    )
    assert "extra_frames" not in conv3d(check(causal, video(3), video(2))).parameters


def timed(c: op.Conv3d) -> set[str]:
    """The lowerings that would be timed for the call on a GPU."""
    able = [low for low in op.CONV3D.lowerings if asked(low, c, H200, Options()).verdict == "able"]
    with ahead.noting() as noted:
        assert idiom.measured(able, c, H200, Options()) is None
    return {name for met in noted.calls for name in met.able}


PATCHES = {"kernel": (1, 2, 2), "stride": (1, 2, 2), "padding": (0, 0), "size": (6, 6)}


@pytest.mark.parametrize(
    ("c", "lowerings"),
    [
        (call((3,), kernel=(1, 1, 1), padding=(0, 0)), {"matmul", "conv2d", "direct"}),
        (call((3,), kernel=(1, 3, 3)), {"conv2d", "direct"}),
        (call((2, 2)), {"taps", "taps_tiled", "direct", "unfold"}),
        (call((1,), zeros=(2, 0)), {"conv2d", "taps", "unfold"}),
        (call((1, 1), zeros=(1, 0)), {"taps", "direct", "unfold"}),
        (call((3,), **PATCHES), set()),
        (call((2, 2), dtype=torch.bfloat16), {"triton", "direct", "unfold"}),
        (call((1,), zeros=(2, 0), dtype=torch.bfloat16), {"conv2d", "triton", "taps", "unfold"}),
    ],
    ids=[
        "1x1x1",
        "one tap",
        "cached",
        "one live tap of three",
        "two live taps",
        "patch embedding",
        "16 bits",
        "16 bits, one live tap of three",
    ],
)
def test_what_is_timed(monkeypatch: pytest.MonkeyPatch, c: op.Conv3d, lowerings: set[str]) -> None:
    monkeypatch.setattr(bounds, "WORTH_MEASURING", replace(bounds.WORTH_MEASURING, value=0))
    assert timed(c) == lowerings


def test_small_calls_are_not_timed() -> None:
    small = call((2, 2))
    assert timed(small) == set()
    assert small.flops() < 1e6
    assert small.tensors_mib() < 1


def test_many_bytes_are_timed_though_they_are_few_operations() -> None:
    wide = call(
        (2,),
        channels=4,
        out=16,
        kernel=(1, 1, 1),
        padding=(0, 0),
        size=(256, 256),
        dtype=torch.float32,
    )
    assert wide.flops() < 1e8
    assert wide.tensors_mib() == 10
    assert timed(wide) == {"matmul", "conv2d", "direct"}

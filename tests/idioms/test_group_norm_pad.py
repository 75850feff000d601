"""GroupNorm whose result is padded for a convolution: one site of both, or each by itself with the
reason.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes import policy
from rocm_passes.ops import group_norm_pad as op
from rocm_passes.policy import Verdict
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.idioms.norm_cases import BF16, F16, F32, check, covered, draw, outcomes, use_reference
from tests.rewriting import rewrite
from tests.zoo import tensors_in, traced

aten = torch.ops.aten
OURS = torch.ops.rocm_passes.group_norm_pad.default
C = 8
CAUSAL = [1, 1, 1, 1, 2, 0]
#: A convolution rewritten, too, would round elsewhere.
PADS = {"idioms": "group_norm_pad,group_norm,pad"}


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def resnet(x: Tensor, w: Tensor, b: Tensor, kernel: Tensor, mode: str = "replicate") -> Tensor:
    """One half of HunyuanVideo's."""
    return F.conv3d(F.pad(F.silu(F.group_norm(x, 4, w, b, 1e-6)), CAUSAL, mode=mode), kernel)


def drawn(dtype: torch.dtype = F32) -> tuple[Tensor, ...]:
    shapes = ((2, C, 3, 4, 5), (C,), (C,), (3, C, 3, 3, 3))
    return tuple(draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
def test_with_silu(layout: str, dtype: torch.dtype) -> None:
    # The convolution's sums are the eager ones only where it runs in the same layout: two units for
    # it.
    seen = check(resnet, *drawn(dtype), options={**PADS, "layout": layout}, units=2.0)
    assert outcomes(seen) == [("group_norm_pad", "rewritten")]
    assert dict(seen.only().covers) == {"group_norm": 1, "pad": 1}
    (node,) = [n for g in seen.after for n in g.find_nodes(op="call_function", target=OURS)]
    assert node.args[6] is True and node.args[9:12] == (
        CAUSAL,
        "replicate",
        layout == "channels_last",
    )
    assert not {aten._unsafe_index.Tensor, aten.native_group_norm.default} & set(seen.targets())


def test_in_a_channels_last_graph_it_is_written_in_that_layout() -> None:
    seen = rewrite(resnet, *drawn(), options={"layout": "channels_last"})
    (node,) = [n for g in seen.after for n in g.find_nodes(op="call_function", target=OURS)]
    found = node.meta["val"]
    assert found.stride() == torch.empty(found.shape, memory_format=torch.channels_last_3d).stride()
    assert node.args[11] is True
    torch.testing.assert_close(seen.result, resnet(*drawn()))


def test_its_input_is_asked_for_in_that_layout() -> None:
    pointwise = draw(C, C, 1, 1, 1, seed=9)

    def two(x: Tensor, w: Tensor, b: Tensor, kernel: Tensor) -> Tensor:
        return resnet(torch.relu(F.conv3d(x, pointwise)), w, b, kernel)

    seen = rewrite(two, *drawn(), options={"layout": "channels_last"})
    (node,) = [n for g in seen.after for n in g.find_nodes(op="call_function", target=OURS)]
    assert "force_stride_order" in str(node.args[0])
    torch.testing.assert_close(seen.result, two(*drawn()))


def test_reflect_without_silu() -> None:
    def plain(x: Tensor, w: Tensor, b: Tensor, kernel: Tensor) -> Tensor:
        return F.conv3d(F.pad(F.group_norm(x, 2, w, b), CAUSAL, mode="reflect"), kernel)

    seen = check(plain, *drawn(), options=PADS)
    assert (seen.only().parameters["silu"], seen.only().parameters["mode"]) == (False, "reflect")


def test_an_image_padded_with_zeros_on_one_side() -> None:
    def image(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(F.pad(F.silu(F.group_norm(x, 2)), [0, 1, 0, 1]), kernel, stride=2)

    seen = check(image, draw(2, C, 6, 6), draw(3, C, 3, 3, seed=1), options=PADS)
    assert dict(seen.only().covers) == {"group_norm": 1}


def apart(fn: Any, *args: Tensor) -> list[tuple[str, str]]:
    """What becomes of the norm and of the pad, by themselves."""
    seen = rewrite(fn, *args, options=PADS)
    torch.testing.assert_close(seen.result, fn(*args))
    assert OURS not in seen.targets()
    return sorted(outcomes(seen))


def test_a_norm_that_something_else_reads() -> None:
    def both(x: Tensor, w: Tensor, b: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        y = F.silu(F.group_norm(x, 4, w, b, 1e-6))
        return F.conv3d(F.pad(y, CAUSAL, mode="replicate"), kernel), y

    assert apart(both, *drawn()) == [("group_norm", "rewritten"), ("pad", "rewritten")]


def test_spatial_norm() -> None:
    def spatial(x: Tensor, w: Tensor, b: Tensor, kernel: Tensor) -> Tensor:
        y = F.silu(F.group_norm(x, 4, w, b, 1e-6) * torch.sin(x) + torch.cos(x))
        return F.conv3d(F.pad(y, CAUSAL, mode="replicate"), kernel)

    assert apart(spatial, *drawn()) == [("group_norm", "rewritten"), ("pad", "rewritten")]
    seen = rewrite(spatial, *drawn(), options=PADS)
    norm = next(e for e in seen.sites if e.idiom == "group_norm")
    assert any("SpatialNorm3D" in reason for reason in norm.considered)


def test_a_pad_that_no_convolution_reads() -> None:
    def padded(x: Tensor) -> Tensor:
        return F.pad(F.group_norm(x, 4), CAUSAL, mode="replicate") * 2

    assert apart(padded, drawn()[0]) == [("group_norm", "rewritten"), ("pad", "refused")]


def test_a_pad_by_nothing() -> None:
    def padded(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv3d(F.pad(F.group_norm(x, 4), [0] * 6, mode="replicate"), kernel)

    assert apart(padded, drawn()[0], drawn()[3]) == [
        ("group_norm", "rewritten"),
        ("pad", "rewritten"),
    ]


def test_symbolic_sizes() -> None:
    x, *weights = drawn()
    # Inductor has no code for this convolution where all of its sizes are symbolic.
    torch._dynamo.mark_dynamic(x, 3)
    seen = rewrite(resnet, x, *weights, options=PADS)
    assert outcomes(seen) == [("group_norm_pad", "rewritten")]
    (node,) = [n for g in seen.after for n in g.find_nodes(op="call_function", target=OURS)]
    assert not all(isinstance(size, int) for size in node.meta["val"].shape)
    torch.testing.assert_close(seen.result, resnet(x, *weights))


def test_the_bias_of_the_convolution_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the norm takes it over, as `group_norm` does."""
    from rocm_passes.passes.fold_conv_bias import fold_conv_bias

    def biased(x: Tensor, w: Tensor, b: Tensor, kernel: Tensor) -> Tensor:
        return resnet(F.conv3d(x, torch.eye(C).reshape(C, C, 1, 1, 1), b), w, b, kernel)

    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: True)
    seen = rewrite(biased, *drawn(), options={**PADS, "lowering": {"group_norm_pad": "triton"}})
    assert outcomes(seen)[0] == ("group_norm_pad", "rewritten")
    (graph,) = seen.after
    assert len(fold_conv_bias(graph)) == 1
    (node,) = graph.find_nodes(op="call_function", target=OURS)
    first = next(n for n in graph.nodes if n.target is aten.convolution.default)
    assert node.args[1] is not None and first.args[2] is None


GPU = Target("nvidia", "sm_90", "a GPU", torch.__version__, None)


def verdict(shape: tuple[int, ...], last: bool) -> tuple[bool, str]:
    x = torch.empty(shape, dtype=BF16, device="meta")
    return ruled(x, GPU, last)


def ruled(x: torch.Tensor, target: Target, last: bool) -> Verdict:
    call = op.GroupNormPad(
        x, None, 32, None, None, 1e-6, True, False, x.dtype, CAUSAL, "replicate", last
    )
    return policy.verdict("group_norm_pad", "triton", call, target)


def test_the_rule() -> None:
    large, small = (1, 128, 17, 256, 256), (1, 128, 3, 32, 32)
    assert verdict(large, True)[0] and "measured on an H200" in verdict(large, True)[1]
    assert not verdict(large, False)[0] and "contiguous" in verdict(large, False)[1]
    assert not verdict(small, True)[0] and "required >= 4,194,304" in verdict(small, True)[1]
    x = torch.empty(large, dtype=BF16, device="meta")
    cpu = Target("cpu", "", "a CPU", torch.__version__, None)
    assert not ruled(x, cpu, True).pays


@pytest.mark.model("vae_hunyuan_video")
def test_hunyuan_videos_decoder() -> None:
    """Every norm but the attention's is padded; each is counted once."""
    name = "vae_hunyuan_video"
    seen = traced.passed(name, runs=True, select="always", **PADS)
    assert outcomes(seen).count(("group_norm_pad", "rewritten")) == 2 * 10 + 1
    assert {k: v for k, v in covered(seen).items() if v} == {
        "group_norm": 2 * 10 + 2,
        "pad": 2 * 10 + 2 + 3,
    }
    (found,), (eager,), (exact,) = tensors_in(seen.result), traced.results(name), traced.exact(name)
    assert_no_worse(found, eager, exact)

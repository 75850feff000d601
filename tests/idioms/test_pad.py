"""Pads in front of convolutions: every mode, behind upsampling, in any layout; the copies are
exact, or left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rocm_passes import policy
from rocm_passes.ops import pad as op
from rocm_passes.report.ledger import Entry
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.idioms.norm_cases import BF16, F16, F32, draw, use_reference
from tests.rewriting import Rewritten, rewrite
from tests.suites import examples
from tests.zoo import tensors_in, traced

aten = torch.ops.aten
OURS = torch.ops.rocm_passes.pad.default
C, OUT = 4, 6
CAUSAL = [1, 1, 1, 1, 2, 0]
KERNEL3, KERNEL2 = draw(OUT, C, 3, 3, 3, seed=1), draw(OUT, C, 3, 3, seed=2)
LAST = {"layout": "channels_last"}


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def causal(x: Tensor, mode: str = "replicate") -> Tensor:
    return F.conv3d(F.pad(x, CAUSAL, mode=mode), KERNEL3.to(x.dtype))


def image(x: Tensor, padding: list[int], mode: str) -> Tensor:
    return F.conv2d(F.pad(x, padding, mode=mode), KERNEL2.to(x.dtype))


def site(seen: Rewritten) -> Entry:
    (entry,) = [e for e in seen.sites if e.idiom == "pad"]
    return entry


def check(fn: Callable[..., Any], *args: Any, options: Any = None, **given_too: Any) -> Rewritten:
    """Rewritten; the result is eager's. Only pads: a convolution rewritten would round
    elsewhere.
    """
    seen = rewrite(fn, *args, options={"idioms": "pad", **(options or {})}, **given_too)
    assert site(seen).outcome == "rewritten", site(seen).reason
    torch.testing.assert_close(seen.result, fn(*args))
    return seen


def node_of(seen: Rewritten) -> torch.fx.Node:
    (found,) = [n for g in seen.after for n in g.find_nodes(op="call_function", target=OURS)]
    return found


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("mode", ["replicate", "reflect"])
def test_in_front_of_a_conv3d(mode: str, dtype: torch.dtype) -> None:
    seen = check(lambda x: causal(x, mode), draw(2, C, 3, 4, 5, dtype=dtype))
    entry = site(seen)
    assert (entry.lowering, dict(entry.covers)) == ("reference", {"pad": 1})
    assert (entry.parameters["mode"], entry.parameters["padding"]) == (mode, CAUSAL)
    assert node_of(seen).args[1:-1] == (CAUSAL, mode, [1, 1, 1], 0, False)
    assert aten._unsafe_index.Tensor not in seen.targets()


@pytest.mark.parametrize("mode", ["replicate", "reflect"])
def test_in_front_of_a_conv2d(mode: str) -> None:
    seen = check(lambda x: image(x, [1, 2, 0, 1], mode), draw(2, C, 4, 5))
    assert node_of(seen).args[1:-1] == ([1, 2, 0, 1], mode, [1, 1], 0, False)


def test_a_convolutions_own_padding_mode() -> None:
    conv = nn.Conv2d(C, OUT, 3, padding=1, padding_mode="reflect")
    assert site(check(conv, draw(2, C, 4, 5))).parameters["mode"] == "reflect"


def test_zeros_on_one_side() -> None:
    """AutoencoderKL's downsampler."""
    seen = check(lambda x: image(x, [0, 1, 0, 1], "constant"), draw(2, C, 4, 5))
    assert node_of(seen).args[1:3] == ([0, 1, 0, 1], "zeros")
    # No idiom by itself: an eager run's constant pads are not counted.
    assert dict(site(seen).covers) == {}


def test_zeros_on_one_side_of_a_video() -> None:
    def padded(x: Tensor) -> Tensor:
        return F.conv3d(F.pad(x, [0, 1, 0, 1]), KERNEL3)

    assert node_of(check(padded, draw(2, C, 3, 4, 5))).args[1] == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("padding", "value"),
    [([1, 1, 2, 2], 0.0), ([0, 1, 0, 1], 0.5)],
    ids=["alike on both sides", "not zeros"],
)
def test_other_constants_are_no_site(padding: list[int], value: float) -> None:
    seen = rewrite(lambda x: F.conv2d(F.pad(x, padding, value=value), KERNEL2), draw(2, C, 4, 5))
    assert [e for e in seen.sites if e.idiom == "pad"] == []


def test_zeros_that_conv3d_takes_are_no_site() -> None:
    seen = rewrite(lambda x: F.conv3d(F.pad(x, CAUSAL), KERNEL3), draw(1, C, 3, 4, 5))
    assert [e.idiom for e in seen.sites] == ["conv3d"]


def test_channels_last_graphs_get_it_in_that_layout() -> None:
    seen = check(causal, draw(2, C, 3, 4, 5), options=LAST)
    found = node_of(seen).meta["val"]
    assert found.stride() == torch.empty(found.shape, memory_format=torch.channels_last_3d).stride()
    assert site(seen).parameters["channels_last"] is True


def test_grouped_convolutions_keep_their_layout() -> None:
    weight = draw(4, 2, 3, 3)
    seen = check(
        lambda x: F.conv2d(F.pad(x, [1, 1, 1, 1], mode="replicate"), weight, groups=2),
        draw(2, C, 4, 5),
        options=LAST,
    )
    assert site(seen).parameters["channels_last"] is False


def test_its_input_is_asked_for_in_that_layout_unless_it_is_the_graphs() -> None:
    weight = draw(C, C, 1, 1, 1)

    def twice(x: Tensor) -> Tensor:
        return causal(torch.relu(F.conv3d(x, weight)))

    for fn, forced in ((twice, True), (causal, False)):
        seen = rewrite(fn, draw(2, C, 3, 4, 5), options=LAST)
        torch.testing.assert_close(seen.result, fn(draw(2, C, 3, 4, 5)))
        assert ("force_stride_order" in str(node_of(seen).args[0])) is forced


def test_any_layout_of_the_input() -> None:
    x = draw(2, C, 3, 4, 5)
    for given_x in (x.transpose(3, 4), x[..., ::2]):
        check(causal, given_x)


@pytest.mark.parametrize("mode", ["replicate", "reflect"])
def test_a_channels_last_video_on_a_cpu_is_inductors_and_said_to_be(mode: str) -> None:
    """Eager lays its pad out as the video, and the traced operator says that it is contiguous."""
    x = draw(2, C, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    seen = rewrite(causal, x, mode, options={"idioms": "pad"})
    assert not seen.sites
    (note,) = (n for ledger in seen.ledgers for n in ledger.notes if "channels-last" in n)
    assert note.startswith(
        {"replicate": "replication", "reflect": "reflection"}[mode] + "_pad3d: 1"
    )
    torch.testing.assert_close(seen.result, causal(x, mode))


def test_a_pad_by_nothing_is_left_out() -> None:
    """HunyuanVideo's shortcuts: a causal convolution of kernel 1."""
    weight = draw(OUT, C, 1, 1, 1)

    def shortcut(x: Tensor) -> Tensor:
        return F.conv3d(F.pad(torch.relu(x), [0] * 6, mode="replicate"), weight)

    seen = check(shortcut, draw(2, C, 3, 4, 5), options={"select": "auto"})
    assert (site(seen).lowering, dict(site(seen).covers)) == ("drop", {"pad": 1})
    assert OURS not in seen.targets() and aten._unsafe_index.Tensor not in seen.targets()


def hunyuan(x: Tensor, factors: tuple[int, int, int] = (2, 2, 2)) -> Tensor:
    """HunyuanVideo's upsampler, up to its convolution."""
    first, rest = x.split((1, x.size(2) - 1), dim=2)
    scale = tuple(float(f) for f in factors)
    first = F.interpolate(first.squeeze(2), scale_factor=scale[1:], mode="nearest").unsqueeze(2)
    return torch.cat(
        (first, F.interpolate(rest.contiguous(), scale_factor=scale, mode="nearest")), dim=2
    )


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2)])
def test_behind_causal_upsampling(factors: tuple[int, int, int], dtype: torch.dtype) -> None:
    seen = check(
        lambda x: causal(hunyuan(torch.relu(x), factors)), draw(2, C, 3, 4, 5, dtype=dtype)
    )
    assert node_of(seen).args[3:5] == (list(factors), factors[0] - 1)
    assert not {aten._unsafe_index.Tensor, aten.cat.default, aten.clone.default} & set(
        seen.targets()
    )


def test_behind_causal_upsampling_spelled_otherwise() -> None:
    """Cut by slices, to given sizes, by "nearest-exact": the same elements stand in the same
    places.
    """

    def sliced(x: Tensor) -> Tensor:
        x = torch.relu(x)
        first = F.interpolate(x[:, :, :1], size=(1, 8, 10), mode="nearest")
        return causal(
            torch.cat([first, F.interpolate(x[:, :, 1:], size=(4, 8, 10), mode="nearest-exact")], 2)
        )

    # x itself is read by two slices, and made in any case: it is the source.
    assert node_of(check(sliced, draw(2, C, 3, 4, 5))).args[3:5] == ([2, 2, 2], 1)


def test_behind_upsampling_of_an_image() -> None:
    def upsampled(x: Tensor) -> Tensor:
        return image(
            F.interpolate(torch.relu(x), scale_factor=2.0, mode="nearest"),
            [1, 1, 1, 1],
            "replicate",
        )

    for dtype in (BF16, F32):
        assert node_of(check(upsampled, draw(2, C, 4, 5, dtype=dtype))).args[3:5] == ([2, 2], 0)


@given(
    frames=st.integers(2, 4),
    factors=st.tuples(*[st.sampled_from([1, 2, 4])] * 3),
    mode=st.sampled_from(["replicate", "reflect"]),
    last=st.booleans(),
)
@settings(max_examples=examples(8), deadline=None)
def test_any_factors(frames: int, factors: tuple[int, int, int], mode: str, last: bool) -> None:
    # Two frames in front are reflected from three at least.
    assume(mode != "reflect" or 1 + (frames - 1) * factors[0] > 2)
    seen = check(
        lambda x: causal(hunyuan(torch.relu(x), factors), mode),
        draw(1, C, frames, 3, 4),
        options=LAST if last else None,
    )
    skipped = 0 if factors == (1, 1, 1) else factors[0] - 1
    assert node_of(seen).args[3:5] == (list(factors), skipped)


def plain(fn: Callable[[Tensor], Tensor], *shape: int) -> None:
    """The pad alone is rewritten: what stands before it is no whole upsampling of one tensor."""
    seen = check(lambda x: causal(fn(torch.relu(x))), draw(*(shape or (1, C, 3, 4, 5))))
    assert node_of(seen).args[3:5] == ([1, 1, 1], 0)


def test_factors_that_are_not_whole() -> None:
    plain(lambda x: F.interpolate(x, size=(3, 6, 7), mode="nearest"))


def test_smooth_interpolation() -> None:
    plain(lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear"))


def test_a_part_of_an_upsampled_tensor() -> None:
    plain(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")[..., 1:])


def test_upsampled_frames_in_another_order() -> None:
    def swapped(x: Tensor) -> Tensor:
        first, rest = x.split((1, 2), dim=2)
        enlarged = [
            F.interpolate(p.contiguous(), scale_factor=(1.0, 2.0, 2.0)) for p in (rest, first)
        ]
        return torch.cat(enlarged, 2)

    plain(swapped)


def test_frames_of_two_tensors() -> None:
    plain(lambda x: torch.cat([F.interpolate(y, scale_factor=2.0) for y in (x, x * 2)], 2))


def test_an_upsampled_tensor_that_is_used_elsewhere_too() -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        enlarged = F.interpolate(torch.relu(x), scale_factor=2.0, mode="nearest")
        return causal(enlarged), enlarged

    seen = check(both, draw(1, C, 3, 4, 5))
    assert node_of(seen).args[3:5] == ([1, 1, 1], 0)


def test_a_cast_that_changes_values() -> None:
    def narrowed(x: Tensor) -> Tensor:
        return causal(F.interpolate(torch.relu(x).bfloat16(), scale_factor=2.0, mode="nearest"))

    seen = check(narrowed, draw(1, C, 3, 4, 5))
    source = node_of(seen).args[0]
    assert isinstance(source, torch.fx.Node) and source.meta["val"].dtype is BF16


def test_symbolic_sizes() -> None:
    x = draw(2, C, 3, 6, 7)
    seen = check(causal, x, dynamic=True)
    found = node_of(seen)
    assert not all(isinstance(s, int) for s in found.meta["val"].shape)
    seen = check(lambda x: causal(hunyuan(torch.relu(x))), x, dynamic=True)
    assert node_of(seen).args[3:5] == ([1, 1, 1], 0)


def refused(fn: Callable[..., Any], *args: Tensor) -> str:
    seen = rewrite(fn, *args, options={"idioms": "pad"})
    assert (site(seen).outcome, dict(site(seen).covers)) == ("refused", {"pad": 1})
    torch.testing.assert_close(seen.result, fn(*args))
    return site(seen).reason


def test_refuses_a_pad_that_no_convolution_reads() -> None:
    assert "no convolution" in refused(
        lambda x: F.pad(x, CAUSAL, mode="replicate") + 1, draw(1, C, 3, 4, 5)
    )


def test_refuses_negative_padding() -> None:
    reason = refused(
        lambda x: F.conv2d(F.pad(x, [1, 1, -1, 1], mode="replicate"), KERNEL2), draw(1, C, 4, 5)
    )
    assert "negative" in reason


def test_refuses_a_pad_by_nothing_that_is_used_elsewhere() -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        copy = F.pad(x, [0] * 4, mode="replicate")
        return F.conv2d(copy, KERNEL2), copy

    assert "pads by nothing" in refused(both, draw(1, C, 4, 5))


def test_training_graphs_have_an_entry() -> None:
    x = draw(1, C, 3, 4, 5).requires_grad_()
    seen = rewrite(causal, x, grad=True, options={"idioms": "pad"})
    assert "training graph" in site(seen).reason


def test_what_is_kept_is_decomposed_as_ever() -> None:
    seen = rewrite(causal, draw(1, C, 3, 4, 5), options={"idioms": "pad", "select": "auto"})
    assert (site(seen).outcome, "on a CPU" in site(seen).reason) == ("kept", True)
    assert aten.replication_pad3d.default not in seen.targets()
    assert aten._unsafe_index.Tensor in seen.targets()


GPU = Target("nvidia", "sm_90", "a GPU", torch.__version__, None)


def verdict(shape: tuple[int, ...], last: bool, repeat: int = 2) -> tuple[bool, str]:
    x = torch.empty(shape, dtype=BF16, device="meta")
    call = op.Pad(x, CAUSAL, "replicate", [repeat] * 3, 0, last)
    return policy.verdict("pad", "triton", call, GPU)


def test_the_rule() -> None:
    large, small = (1, 128, 17, 256, 256), (1, 128, 3, 16, 16)
    assert verdict(large, True)[0] and "measured on an H200" in verdict(large, True)[1]
    assert (
        not verdict(large, True, repeat=1)[0]
        and "without upsampling" in verdict(large, True, repeat=1)[1]
    )
    assert not verdict(large, False)[0] and "contiguous" in verdict(large, False)[1]
    assert not verdict(small, True)[0] and "required >= 4,194,304" in verdict(small, True)[1]


@pytest.mark.model("vae_hunyuan_video")
def test_hunyuan_videos_decoder() -> None:
    """Every padding of the real class, its three upsamplers inside; the result is the decomposed
    one's.
    """
    name = "vae_hunyuan_video"
    seen = traced.passed(name, runs=True, select="always", idioms="pad")
    sites = [e for e in seen.sites if e.idiom == "pad"]
    assert {e.outcome for e in sites} == {"rewritten"}
    assert sum(e.covers["pad"] for e in sites) == traced.live(name)["pad"] == 2 * 10 + 2 + 3
    repeats = [tuple(e.parameters["repeats"]) for e in sites]
    assert sorted(r for r in repeats if r != (1, 1, 1)) == [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert aten.cat.default not in seen.targets()
    (found,), (eager,), (exact,) = tensors_in(seen.result), traced.results(name), traced.exact(name)
    assert_no_worse(found, eager, exact)

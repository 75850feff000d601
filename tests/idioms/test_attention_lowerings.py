"""Attention is given to the lowering that serves it: by rule, by measurement, or torch's own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rocm_passes.idioms.attention.sdpa import KERNELS
from rocm_passes.kernels.aiter import attention_contract
from rocm_passes.ops.attention import ATTENTION, Attention
from rocm_passes.policy import bounds
from rocm_passes.report.ledger import Entry
from rocm_passes.target import Target
from rocm_passes.tuning.measure import measure
from rocm_passes.tuning.meter import TIMED
from rocm_passes.tuning.store import Measured
from tests.accuracy import assert_no_worse
from tests.doubles import aiter_attention
from tests.doubles.aiter_double import installed
from tests.idioms.attention_calls import (
    BF16,
    CHUNKED,
    aten,
    cudnn,
    efficient,
    exact,
    flash,
    operands,
    run,
    sdpa,
    spelled,
)
from tests.rewriting import rewrite


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let graphs be of an AMD GPU; aiter: with aiter's double installed."""
    with contextlib.ExitStack() as stack:

        def set_target(arch: str, aiter: bool = False) -> None:
            vendor = "nvidia" if arch.startswith("sm_") else "amd"
            made = Target(vendor, arch, arch, torch.__version__, "3.6", interpreted=True)
            monkeypatch.setattr("rocm_passes.backend.Target.of_inputs", lambda _: made)
            if aiter:
                attention_contract._LOADED.clear()
                aiter_attention.calls.clear()
                stack.enter_context(installed(arch=arch))

        yield set_target


def decided(fn: Any, *args: Any, **options: Any) -> tuple[Entry, dict[str, str]]:
    """The entry of select="auto", and the reason of each lowering."""
    site = run(fn, *args, select="auto", **options).only()
    return site, {v.lowering: v.reason for v in site.verdicts}


@pytest.mark.parametrize(("arch", "size"), [("gfx1100", 384), ("gfx1151", 512)])
@pytest.mark.parametrize("kernel", [flash, efficient])
def test_heads_that_torch_is_wrong_for_are_computed_in_tiles(
    on: Any, arch: str, size: int, kernel: Any
) -> None:
    """A VAE's mid-block: one head, q, k and v parts of one convolution's result."""
    on(arch)
    torch.manual_seed(0)
    packed = torch.randn(2, 3 * size, 30).to(BF16)

    def mid_block(packed: Tensor) -> Tensor:
        return kernel(*packed.unsqueeze(1).transpose(2, 3).contiguous().chunk(3, dim=-1))

    seen = run(mid_block, packed, select="auto")
    site = seen.only()
    assert (site.outcome, site.lowering) == ("rewritten", "chunked")
    assert f"torch's kernel gives wrong values for heads of {size} on {arch}" in site.reason
    assert "published: " in site.reason and "#" in site.reason
    said = {v.lowering: v for v in site.verdicts}
    assert said["sdpa"].verdict == "refused" and "#" in said["sdpa"].reason
    q, k, v = packed.unsqueeze(1).transpose(2, 3).chunk(3, dim=-1)
    assert_no_worse(seen.result, sdpa(q, k, v), exact(q, k, v))
    always = run(mid_block, packed, select="always").only()
    assert always.lowering == "chunked"


@pytest.mark.parametrize(("arch", "size"), [("gfx1100", 512), ("gfx1201", 384), ("gfx942", 512)])
def test_other_heads_are_left_to_torch(on: Any, arch: str, size: int) -> None:
    on(arch)
    site, said = decided(flash, *operands(1, 1, 30, size))
    assert site.outcome == "kept"
    assert "in one launch" in said["chunked"] and "it is what the graph has" in said["sdpa"]


@pytest.mark.parametrize("rocm", ["7.0.51831", "7.1.2"])
def test_a_v_that_rocm_7_0_reads_wrongly_is_copied_first(
    on: Any, monkeypatch: pytest.MonkeyPatch, rocm: str
) -> None:
    on("gfx942")
    monkeypatch.setattr(torch.version, "hip", rocm)
    q, k, _ = operands()
    v = operands(1, 36, 2, 16)[2].transpose(1, 2)
    site, said = decided(flash, q, k, v)
    if rocm.startswith("7.0"):
        assert site.lowering == "sdpa" and "it is copied first" in site.reason
    else:
        assert site.outcome == "kept" and "it is what the graph has" in said["sdpa"]
    alike, _ = decided(flash, q, k, v.contiguous())
    assert alike.outcome == "kept"


def test_the_copy_is_in_the_graph_and_only_where_it_is_needed() -> None:
    q, k, _ = operands()
    v = operands(1, 36, 2, 16)[2].transpose(1, 2)
    for value, copies in ((v, 1), (v.contiguous(), 0)):
        seen = run(sdpa, q, k, value, lowering={"attention": "sdpa"})
        assert seen.targets("after").count(aten.clone.default) == copies
        assert torch.equal(seen.result, sdpa(q, k, v))


@pytest.mark.parametrize("kernel", [flash, efficient, cudnn])
@pytest.mark.parametrize("how", [{}, {"is_causal": True, "scale": 0.3}], ids=str)
def test_the_graphs_operator_again_has_its_arguments(kernel: Any, how: dict[str, Any]) -> None:
    """It cannot run here: the graphs before and after are compared."""
    seen = run(functools.partial(kernel, **how), *operands(), lowering={"attention": "sdpa"})
    written = [
        next(n for n in g.nodes if "_scaled_dot" in str(n.target))
        for g in (*seen.before, *seen.after)
    ]
    before, after = ({**dict(zip(SCHEMA[kernel], n.args, strict=False)), **n.kwargs}
                     for n in written)  # fmt: skip
    assert written[0].target is written[1].target
    assert after.pop("scale") == before.pop("scale", 0.25)
    defaults = {"dropout_p": 0.0, "is_causal": False, "return_debug_mask": False}
    for name, value in after.items():
        if name not in ("query", "key", "value"):
            assert value == before.get(name, defaults.get(name)), name


SCHEMA = {
    kernel: [argument.name for argument in operator.default._schema.arguments]
    for kernel, operator in (
        (flash, aten._scaled_dot_product_flash_attention),
        (efficient, aten._scaled_dot_product_efficient_attention),
        (cudnn, aten._scaled_dot_product_cudnn_attention),
    )
}


def test_scores_above_the_bound_are_not_held_on_amd(
    on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 x 36 scores of two heads take 10 KiB."""
    q, k, v = operands(width=8)
    at_11, at_9 = (replace(bounds.ATTENTION_MIB, value=kib / 1024) for kib in (11, 9))
    monkeypatch.setattr(bounds, "ATTENTION_MIB", at_9)
    on("gfx1100")
    site, _ = decided(sdpa, q, k, v)
    assert (site.outcome, site.lowering) == ("rewritten", "chunked")
    assert "hold all scores at once, which is more than ATTENTION_MIB" in site.reason
    assert "published: Comfy-Org/ComfyUI#16160" in site.reason
    for arch, bound in (("gfx1100", at_11), ("sm_90", at_9)):
        on(arch)
        monkeypatch.setattr(bounds, "ATTENTION_MIB", bound)
        site, said = decided(sdpa, q, k, v)
        assert site.outcome == "kept" and "Inductor's code for it is as exact" in said["chunked"]


def test_aiter_by_published_figures(on: Any) -> None:
    on("gfx950", aiter=True)
    q, k, v = operands(1, 2, 1024, 128)
    seen = run(flash, q, k, v, select="auto")
    site = seen.only()
    assert (site.outcome, site.lowering) == ("rewritten", "aiter"), site.reason
    assert "less than half of AOTriton's time (published: " in site.reason
    assert any("sums in another order" in note for note in site.notes)
    assert [c["how_v3_bf16_cvt"] for c in aiter_attention.calls] == [0]
    assert_no_worse(seen.result, sdpa(q, k, v), exact(q, k, v))


def test_aiter_is_not_taken_without_evidence_on_gfx942(on: Any) -> None:
    on("gfx942", aiter=True)
    site, said = decided(flash, *operands(1, 2, 1024, 128))
    assert site.outcome == "kept"
    assert "a measurement on this machine decides" in said["aiter"]


def test_aiter_is_not_taken_for_short_sequences(on: Any) -> None:
    on("gfx950", aiter=True)
    _, said = decided(flash, *operands(1, 2, 512, 128))
    assert "queries = 512, required >= 1,024" in said["aiter"]


@pytest.mark.parametrize(
    ("args", "how", "reason"),
    [
        ((1, 2, 200, 64), {}, "q has heads of 64"),
        ((1, 2, 100, 128), {}, "100 queries"),
        ((1, 2, 200, 128), {"keys": 150, "causal": True}, "aiter aligns the mask to the last"),
        ((1, 2, 200, 128), {"dtype": torch.float16}, "q is float16"),
        ((1, 2, 200, 128), {"bias": True}, "it has a mask or a bias"),
        ((1, 2, 200, 128), {"math": True}, "the graph computes it in float32"),
    ],
    ids=lambda x: str(x) if isinstance(x, str) else "",
)
def test_aiter_refuses(on: Any, args: tuple[int, ...], how: dict[str, Any], reason: str) -> None:
    on("gfx950", aiter=True)
    given = dict(how)
    causal, bias, math = (given.pop(x, False) for x in ("causal", "bias", "math"))
    q, k, v = operands(*args, **given)
    if bias:
        _, said = decided(efficient, q, k, v, torch.randn(1, 2, 200, 200).to(BF16))
    elif math:
        _, said = decided(spelled, q, k, v)
    else:
        _, said = decided(functools.partial(flash, is_causal=causal), q, k, v)
    assert reason in said["aiter"] and reason in said["aiter_fp8"]


def test_8_bits_need_fast_numerics(on: Any) -> None:
    on("gfx950", aiter=True)
    q, k, v = operands(1, 2, 256, 128)
    forced = {"lowering": {"attention": "aiter_fp8"}}
    site, said = decided(flash, q, k, v, **forced)
    assert site.outcome == "refused"
    assert (
        "rewrite_numerics='fast' is needed: q, k, v and the weights are rounded to 8 bits"
        in (said["aiter_fp8"])
    )
    seen = run(flash, q, k, v, rewrite_numerics="fast", **forced)
    site = seen.only()
    assert site.lowering == "aiter_fp8" and "an error of about 5.5% of the" in site.notes[0]
    error = (seen.result.double() - exact(q, k, v)).norm() / exact(q, k, v).norm()
    assert 0.03 < error < 0.07


def test_strict_numerics_leave_torchs_kernel(on: Any) -> None:
    on("gfx950", aiter=True)
    _, said = decided(flash, *operands(1, 2, 1024, 128), rewrite_numerics="strict")
    assert "sums in another order" in said["aiter"]
    assert "computes in float32" in said["chunked"]


def test_sizes_that_are_symbolic() -> None:
    """Of a model's only the lengths are; the head size follows from weights."""
    q, k, v = operands()
    options = {"idioms": "attention", **CHUNKED}
    seen = rewrite(functools.partial(sdpa, scale=0.25), q, k, v, options=options, dynamic=True)
    assert seen.only().outcome == "rewritten", seen.only().reason
    assert_no_worse(seen.result, sdpa(q, k, v), exact(q, k, v))
    unknown = rewrite(sdpa, q, k, v, options=options, dynamic=True)
    assert unknown.only().reason == "its scale is not known at compile time"


def test_a_measurement_decides(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel and aiter's take turns; attention in tiles is no rival."""
    asked: list[Any] = []

    def timer(lowerings: Any, call: Any, watch: Any) -> Measured:
        asked.append((call.key(), [low.name for low in lowerings]))
        return Measured({"aiter": 1.0, "sdpa": 2.0}, {"aiter": 0, "sdpa": 0}, {})

    monkeypatch.setattr("rocm_passes.tuning.measure.measure", timer)
    on("gfx942", aiter=True)
    seen = run(flash, *operands(1, 2, 1024, 128), select="auto", tune_seconds=60)
    assert seen.only().reason == "measured on this machine: 1 ms against sdpa 2 ms"
    shape = "1x2x1024x128"
    assert asked == [
        (f"attention bfloat16 q {shape} k {shape} v {shape} by flash", ["aiter", "sdpa"])
    ]


def test_what_is_measured() -> None:
    """On a CPU: torch's kernel for it, and tiles."""
    call = Attention(*operands(1, 2, 64, 16), None, 0.25, True, 256.0, "cpu")
    lowerings = [ATTENTION.lowering(name) for name in ("sdpa", "chunked")]
    found = measure(lowerings, call)  # type: ignore[arg-type]
    assert set(found.ms) == {"sdpa", "chunked"} and found.skipped == {}
    # A call that is not timed has the time of its copies alone, which is 0 here.
    assert all(ms > 0.001 for ms in found.ms.values())
    assert KERNELS.keys() <= TIMED
    flash_only = replace(call, kernel="flash")
    assert "NotImplementedError" in measure(lowerings, flash_only).skipped["sdpa"]  # type: ignore[arg-type]


def test_verification_holds_it_and_skips_8_bits(on: Any) -> None:
    q, k, v = operands(1, 2, 150, 128)
    assert run(sdpa, q, k, v, verify=True, **CHUNKED).only().verification["status"] == "held"
    on("gfx950", aiter=True)
    forced = {"lowering": {"attention": "aiter_fp8"}, "rewrite_numerics": "fast"}
    site = run(sdpa, q, k, v, verify=True, **forced).only()
    assert (site.outcome, site.verification["status"]) == ("rewritten", "skipped")
    assert "lets attention be computed in 8 bits" in site.verification["reason"]

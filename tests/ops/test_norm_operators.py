"""The norm operators: kernels through them against float64, fakes that tell the truth, refusals and
rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rocm_passes import policy
from rocm_passes.ops import channel_norm, fused_norm, group_norm, layer_norm, rms_norm
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.idioms.norm_cases import BF16, F16, F32, draw
from tests.on_the_gpu import run_where_kernels_run
from tests.suites import examples

CPU = Target("cpu", "", "CPU", torch.__version__, None)
H200 = Target("nvidia", "sm_90", "H200", torch.__version__, "3.6")
MI300 = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6")

QUICK = settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
DTYPES = st.sampled_from([BF16, F16, F32])


def triton(operator: Operator[Any], call: Call) -> Any:
    """What the operator runs as "triton", over CPU tensors."""
    lowering = operator.lowering("triton")
    assert lowering is not None
    return run_where_kernels_run(lowering, call)


def chain(x: Tensor, **changes: Any) -> fused_norm.FusedNorm:
    """A call of fused_norm for a LayerNorm of x alone, with changes."""
    arguments: dict[str, Any] = dict.fromkeys(fused_norm.FUSED_NORM.parameters)
    arguments |= {
        "x": x,
        "branch_norm": False,
        "branch_weight_offset": 0.0,
        "branch_eps": 0.0,
        "sum_dtype": x.dtype,
        "keep_sum": False,
        "kind": "layer",
        "eps": 1e-6,
        "eps_kind": "add",
        "weight_offset": 0.0,
        "scale_offset": 1.0,
        "outputs": 1,
        "out_dtype": x.dtype,
        "rounds_between": False,
    }
    return fused_norm.FusedNorm(**arguments | changes)


def strided(layout: str, dtype: torch.dtype, rows: int, width: int, seed: int) -> Tensor:
    if layout == "rows":
        return draw(2, rows, 2 * width, dtype=dtype, seed=seed)[..., :width]
    if layout == "columns":
        return draw(2, rows, 2 * width, dtype=dtype, seed=seed)[..., ::2]
    if layout == "transposed":
        return draw(rows, 2, width, dtype=dtype, seed=seed).transpose(0, 1)
    return draw(2, rows, width, dtype=dtype, seed=seed)


@QUICK
@given(
    dtype=DTYPES,
    layout=st.sampled_from(["dense", "rows", "columns", "transposed"]),
    rows=st.integers(0, 5),
    width=st.integers(1, 70),
    eps=st.sampled_from([1e-8, 1e-6, 1e-3]),
    kind=st.sampled_from(["layer", "rms"]),
    gated=st.booleans(),
    per_token=st.booleans(),
)
def test_the_chain_against_float64(
    dtype: torch.dtype,
    layout: str,
    rows: int,
    width: int,
    eps: float,
    kind: str,
    gated: bool,
    per_token: bool,
) -> None:
    x = strided(layout, dtype, rows, width, 0)
    y = strided(layout, dtype, rows, width, 1)
    tokens = rows if per_token else 1
    g, s, b = (draw(2, tokens, width, dtype=dtype, seed=i) * 0.3 for i in (2, 3, 4))
    gate = g if gated else None
    call = chain(
        x,
        branch=y,
        gate=gate,
        kind=kind,
        eps=eps,
        scale0=s,
        shift0=b,
        keep_sum=True,
        sum_dtype=dtype,
    )

    def block(
        x: Tensor, y: Tensor, g: Tensor, s: Tensor, b: Tensor, sum_dtype: torch.dtype
    ) -> list[Tensor]:
        total = (x + (g * y if gated else y)).to(sum_dtype)
        if kind == "layer":
            n = F.layer_norm(total, (width,), eps=eps)
        else:
            n = F.rms_norm(total, (width,), None, eps)
        return [total, n * (1 + s) + b]

    found = triton(fused_norm.FUSED_NORM, call)
    eager = block(x, y, g, s, b, dtype)
    true = block(*(t.double() for t in (x, y, g, s, b)), torch.float64)
    faked = fused_norm.fake(call)
    for ours, theirs, exact, fake in zip(found, eager, true, faked, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (fake.shape, fake.stride(), fake.dtype)
        if rows:
            # The norm reads the rounded sum, whose own rounding the exact one lacks; the
            # interpreter truncates.
            assert_no_worse(ours, theirs, exact, units=4.0)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("kind", ["rms", "none"])
def test_the_branchs_one_plus_weight_against_float64(dtype: torch.dtype, kind: str) -> None:
    x, y, g = (draw(2, 5, 48, dtype=dtype, seed=i) for i in range(3))
    w, v, b = (draw(48, dtype=dtype, seed=i) for i in (3, 4, 5))
    call = chain(
        x, branch=y, gate=g, branch_norm=True, branch_weight=w, branch_weight_offset=1.0,
        branch_eps=1e-6,
        keep_sum=True, kind=kind,
    )  # fmt: skip
    changes: dict[str, Any] = {"weight": v.view(1, 1, 48), "bias": b.view(1, 1, 48)}
    call = replace(call, **({"outputs": 0} if kind == "none" else changes))

    def block(x: Tensor, y: Tensor, g: Tensor, w: Tensor, v: Tensor, b: Tensor) -> list[Tensor]:
        total = x + g * (F.rms_norm(y, (48,), None, 1e-6) * (1 + w))
        return [total] if kind == "none" else [total, F.rms_norm(total, (48,), v, 1e-6) + b]

    found = triton(fused_norm.FUSED_NORM, call)
    plain = fused_norm.reference(call)
    eager, true = block(x, y, g, w, v, b), block(*(t.double() for t in (x, y, g, w, v, b)))
    for ours, reference, theirs, exact in zip(found, plain, eager, true, strict=True):
        assert_no_worse(ours, theirs, exact, units=4.0)
        assert_no_worse(reference, theirs, exact)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("rounds", [True, False])
def test_the_bias_of_a_chains_rms_norm_against_float64(dtype: torch.dtype, rounds: bool) -> None:
    x, y = (draw(2, 5, 48, dtype=dtype, seed=i) for i in range(2))
    w, b = (draw(48, dtype=dtype, seed=i) for i in (2, 3))
    call = chain(x, branch=y, kind="rms", keep_sum=True, weight=w, bias=b)
    call = replace(call, round_product=dtype if rounds else None)

    def block(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        total = x + y
        f = total if total.dtype is torch.float64 else total.float()
        normed = F.rms_norm(f, (48,), None, 1e-6) * w.type_as(f)
        normed = normed.type_as(x).type_as(f) if rounds else normed
        return [total, (normed + b.type_as(f)).type_as(x)]

    found = triton(fused_norm.FUSED_NORM, call)
    plain = fused_norm.reference(call)
    eager, true = block(x, y, w, b), block(*(t.double() for t in (x, y, w, b)))
    for ours, reference, theirs, exact in zip(found, plain, eager, true, strict=True):
        assert_no_worse(ours, theirs, exact, units=4.0)
        assert_no_worse(reference, theirs, exact)


def test_what_the_chains_kernel_rounds_once_is_noted() -> None:
    kernel = fused_norm.FUSED_NORM.lowering("triton")
    assert kernel is not None
    notes = {
        (between, product): kernel.note(
            chain(draw(2, 8), round_product=product, rounds_between=between), CPU
        )
        or ""
        for between in (False, True)
        for product in (None, BF16)
    }
    assert notes[False, None] == ""
    assert notes[False, BF16].startswith("weight and bias are computed in fp32")
    assert notes[True, None].startswith("gate, norm and modulation are computed in fp32")
    assert notes[True, BF16].startswith(
        "gate, norm and modulation, weight and bias are computed in fp32"
    )


@QUICK
@given(
    dtype=DTYPES,
    channels=st.sampled_from([4, 12, 20]),
    size=st.integers(0, 6),
    last=st.booleans(),
    biased=st.booleans(),
    form=st.sampled_from(["l2", "mean", "group"]),
)
def test_vae_norms_against_float64(
    dtype: torch.dtype, channels: int, size: int, last: bool, biased: bool, form: str
) -> None:
    x = draw(2, channels, size, 5, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    x_bias = draw(channels, dtype=dtype, seed=1) if biased else None
    gamma = draw(channels, dtype=dtype, seed=2)
    if form == "group":
        operator: Operator[Any] = group_norm.GROUP_NORM
        call: Call = group_norm.GroupNorm(
            x, x_bias, 4, gamma, None, 1e-6, True, None, None, False, dtype
        )
    else:
        operator = channel_norm.CHANNEL_NORM
        call = channel_norm.ChannelNorm(
            x, x_bias, gamma, None, form, 1e-6, 2.0, True, None, False, dtype
        )
    ours = triton(operator, call)
    rounded = operator.reference(call)
    assert isinstance(rounded, Tensor)
    assert ours.shape == rounded.shape
    assert ours.stride() == rounded.stride()
    widened = {k: c.double() if isinstance(c, Tensor) else c for k, c in call.arguments().items()}
    if size:
        exact = operator.reference(type(call)(**widened | {"out_dtype": torch.float64}))
        assert isinstance(exact, Tensor)
        assert_no_worse(ours, rounded, exact, units=2.0)


def refuses(operator: Any, call: Call) -> str:
    reason = operator.lowering("triton").refuses(call, CPU)
    assert reason is not None
    return str(reason)


def test_chain_refuses_rows_that_are_too_wide() -> None:
    with torch.device("meta"):
        x = torch.empty(2, 70000)
    assert "at most 65536" in refuses(fused_norm.FUSED_NORM, chain(x))
    assert "at most 65536" in refuses(layer_norm.LAYER_NORM, plain_layer(x))
    alone = rms_norm.RmsNorm(x, None, None, None, 1e-6, 0.0, None, None, x.dtype)
    assert "at most 65536" in refuses(rms_norm.RMS_NORM, alone)


def test_chain_refuses_another_rounding() -> None:
    assert "rounds to torch.float16" in refuses(
        fused_norm.FUSED_NORM, chain(draw(2, 8), round_to=F16)
    )


@pytest.mark.parametrize("name", ["eps_tensor", "branch_eps_tensor"])
def test_chain_refuses_an_eps_on_the_gpu(name: str) -> None:
    with torch.device("meta"):
        eps = torch.empty(())
    assert "stall" in refuses(fused_norm.FUSED_NORM, chain(draw(2, 8), **{name: eps}))


def test_channel_norm_refuses_another_rounding_and_too_many_channels() -> None:
    call = channel(draw(1, 4, 2, 2), round_to=F16)
    assert "rounds to torch.float16" in refuses(channel_norm.CHANNEL_NORM, call)
    with torch.device("meta"):
        call = channel(torch.empty(1, 70000, 1, 1))
    assert "at most 65536" in refuses(channel_norm.CHANNEL_NORM, call)


@pytest.mark.parametrize("given", [{"front": draw(1, 4, 1, 2, 2)}, {"repeat_first": 1}])
def test_aiters_group_norm_refuses_frames_in_front(given: dict[str, Any]) -> None:
    call = group(draw(1, 4, 2, 2, 2), **given)
    aiter = group_norm.GROUP_NORM.lowering("aiter")
    assert aiter is not None
    assert "not behind other frames" in (aiter.refuses(call, CPU) or "")


def pays(operator: Any, target: Target, call: Call) -> tuple[bool, str]:
    return policy.verdict(operator.name, "triton", call, target)


def plain_layer(x: Tensor) -> layer_norm.LayerNorm:
    return layer_norm.LayerNorm(x, None, None, 1e-6, x.dtype)


def channel(x: Tensor, **changes: Any) -> channel_norm.ChannelNorm:
    call = channel_norm.ChannelNorm(
        x, None, None, None, "l2", 1e-6, 2.0, False, None, False, x.dtype
    )
    return replace(call, **changes)


def group(x: Tensor, **changes: Any) -> group_norm.GroupNorm:
    call = group_norm.GroupNorm(x, None, 2, None, None, 1e-6, False, None, None, False, x.dtype)
    return replace(call, **changes)


def on_meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=BF16, device="meta")


@pytest.mark.parametrize(
    ("changes", "shape", "expected"),
    [
        ({"branch": True, "scale0": True}, (32760, 5120), True),
        ({"scale0": True}, (32760, 1536), True),
        ({"branch": True}, (32760, 1536), True),
        ({}, (32760, 1536), False),
        ({"branch": True, "scale0": True}, (512, 3072), True),
        ({"branch": True, "scale0": True}, (64, 3072), False),
        ({"branch": True, "kind": "rms"}, (32760, 5120), False),
        ({"branch": True, "branch_norm": 1, "kind": "rms"}, (4608, 3840), True),
        ({"branch": True, "branch_norm": 1, "kind": "rms"}, (1024, 3840), False),
        ({"branch": True, "branch_norm": 1, "kind": "none"}, (2, 1024, 3840), False),
        ({"branch": True, "branch_norm": 1, "kind": "none"}, (2, 2048, 3840), True),
        ({"branch": True, "scale0": True}, (236544, 64), False),
    ],
    ids=str,
)
def test_rule_of_the_chain(changes: dict[str, Any], shape: tuple[int, ...], expected: bool) -> None:
    x = on_meta(*shape)
    given = {k: x if v is True else v for k, v in changes.items()}
    assert pays(fused_norm.FUSED_NORM, H200, chain(x, **given))[0] is expected


@pytest.mark.parametrize(
    ("shape", "joins", "expected", "reason"),
    [
        ((1, 96, 4, 480, 832), True, True, "written where it is read"),
        (
            (1, 96, 4, 480, 832),
            False,
            False,
            "in whole decodes Inductor's fused code was no slower",
        ),
        ((1, 96, 1, 60, 104), True, False, "required >= 4,194,304"),
    ],
)
def test_rule_of_the_channel_norm(
    shape: tuple[int, ...], joins: bool, expected: bool, reason: str
) -> None:
    verdict = pays(channel_norm.CHANNEL_NORM, H200, channel(on_meta(*shape), joins=joins))
    assert verdict[0] is expected
    assert reason in verdict[1]
    assert pays(channel_norm.CHANNEL_NORM, CPU, channel(on_meta(*shape), joins=joins))[0] is False


def test_rules_say_where_they_come_from() -> None:
    x = on_meta(32760, 5120)
    assert (
        "not measured on this machine" in pays(fused_norm.FUSED_NORM, MI300, chain(x, branch=x))[1]
    )
    assert "measured on an H200" in pays(fused_norm.FUSED_NORM, H200, chain(x, branch=x))[1]
    assert pays(fused_norm.FUSED_NORM, CPU, chain(x, branch=x))[0] is False
    assert pays(layer_norm.LAYER_NORM, CPU, plain_layer(x))[0] is False


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4608, 3072), True), ((512, 3072), False), ((236544, 64), False)],
    ids=str,
)
def test_rule_of_the_plain_layer_norm(shape: tuple[int, ...], expected: bool) -> None:
    assert pays(layer_norm.LAYER_NORM, H200, plain_layer(on_meta(*shape)))[0] is expected


@pytest.mark.parametrize(
    ("operator", "shape", "last", "expected"),
    [
        (group_norm.GROUP_NORM, (1, 128, 1024, 1024), False, True),
        (group_norm.GROUP_NORM, (1, 512, 128, 128), False, True),
        (group_norm.GROUP_NORM, (1, 512, 128, 128), True, True),
        (group_norm.GROUP_NORM, (1, 512, 32, 32), True, False),
        (channel_norm.CHANNEL_NORM, (1, 96, 4, 480, 832), False, False),
    ],
)
def test_rule_of_the_vae_norms(
    operator: Any, shape: tuple[int, ...], last: bool, expected: bool
) -> None:
    x = on_meta(*shape)
    x = x.to(memory_format=torch.channels_last) if last else x
    call = channel(x) if operator is channel_norm.CHANNEL_NORM else group(x)
    assert pays(operator, H200, call)[0] is expected
    assert pays(operator, CPU, call)[0] is False

"""Every operator and every lowering that runs without a GPU: `torch.library.opcheck`, strides,
empty and non-finite inputs, and calls that are wrong.

An operator without an example here fails the first test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rocm_passes import registry  # noqa: F401  (registers every lowering)
from rocm_passes.kernels.triton import launch as launching
from rocm_passes.ops.aiter_conv import AITER_CONV, AiterConv
from rocm_passes.ops.as_real import AS_REAL, AsReal
from rocm_passes.ops.attention import ATTENTION
from rocm_passes.ops.attention import Attention as AttentionCall
from rocm_passes.ops.call import Call
from rocm_passes.ops.channel_norm import CHANNEL_NORM, ChannelNorm
from rocm_passes.ops.computed import COMPUTED, Computed
from rocm_passes.ops.fused_norm import FUSED_NORM, FusedNorm
from rocm_passes.ops.gated_activation import GATED_ACTIVATION, GatedActivation
from rocm_passes.ops.group_norm import GROUP_NORM, GroupNorm
from rocm_passes.ops.group_norm_pad import GROUP_NORM_PAD, GroupNormPad
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV, ImplicitGemmConv
from rocm_passes.ops.layer_norm import LAYER_NORM, LayerNorm
from rocm_passes.ops.operator import OPERATORS, Operator
from rocm_passes.ops.pad import PAD, Pad
from rocm_passes.ops.qk_norm_rotary import QK_NORM_ROTARY, QkNormRotary
from rocm_passes.ops.rms_norm import RMS_NORM, RmsNorm
from rocm_passes.ops.rotary import ROTARY, Rotary
from rocm_passes.ops.rotary_pair import ROTARY_PAIR, RotaryPair
from rocm_passes.target import triton_is_interpreted

BF16, F32 = torch.bfloat16, torch.float32


def draw(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


ROWS, VECTOR, IMAGE = draw(2, 3, 16), draw(16, seed=1), draw(2, 4, 5, 6)
QUERY = draw(2, 2, 5, 8)
HEADS, TABLE = draw(2, 3, 2, 8), draw(1, 3, 1, 4, seed=2)


@dataclass(frozen=True)
class Example:
    """x: the field whose tensor is varied. least: the fewest dims that it may have."""

    operator: Operator[Any]
    call: Call
    x: str = "x"


EXAMPLES = {
    e.operator.name: e
    for e in (
        Example(AS_REAL, AsReal(torch.complex(ROWS, ROWS)), "z"),
        Example(COMPUTED, Computed(ROWS)),
        Example(RMS_NORM, RmsNorm(ROWS, VECTOR, None, None, 1e-5, 0.0, None, None, F32)),
        Example(LAYER_NORM, LayerNorm(ROWS, VECTOR, VECTOR, 1e-5, F32)),
        Example(
            FUSED_NORM,
            FusedNorm(
                ROWS, ROWS + 1, None, False, None, 0.0, None, 0.0, F32, True, "rms", VECTOR, None,
                None, 1e-5, 0.0, None, None, VECTOR, VECTOR, None, None, 1.0, 1, F32, False,
            ),
        ),
        Example(
            GROUP_NORM,
            GroupNorm(IMAGE, None, 2, VECTOR[:4], None, 1e-5, True, None, None, False, F32),
        ),
        Example(
            GROUP_NORM_PAD,
            GroupNormPad(IMAGE, None, 2, None, None, 1e-5, True, False, F32, [1, 1, 1, 1],
                         "zeros", False),
        ),
        Example(
            CHANNEL_NORM,
            ChannelNorm(IMAGE, None, VECTOR[:4], None, "mean", 1e-5, 1.0, True, None, False, F32),
        ),
        Example(PAD, Pad(IMAGE, [1, 0, 1, 1], "zeros", [1, 1], 0, False)),
        Example(
            IMPLICIT_GEMM_CONV,
            ImplicitGemmConv(
                draw(1, 16, 2, 4, 4, dtype=BF16), None, draw(16, 16, 1, 3, 3, dtype=BF16), None,
                (0, 0), (1, 1, 1), (1, 1), (1, 1, 1), (1, 2),
            ),
        ),
        Example(
            AITER_CONV,
            AiterConv(
                draw(1, 16, 2, 4, 4, dtype=BF16), draw(16, 16, 1, 3, 3, dtype=BF16), None,
                (1, 1, 1), (0, 1, 1), (1, 1, 1), 1,
            ),
        ),
        Example(
            ATTENTION,
            AttentionCall(QUERY, QUERY + 1, QUERY - 1, None, 0.35, False, 16.0, "math"),
            "q",
        ),
        Example(GATED_ACTIVATION, GatedActivation(ROWS, ROWS + 1, "silu")),
        Example(ROTARY, Rotary(HEADS, TABLE, TABLE, True, 8, False, None, F32)),
        Example(ROTARY_PAIR, RotaryPair(HEADS, HEADS + 1, TABLE, TABLE, True, 8, False, None, F32),
                "q"),
        Example(
            QK_NORM_ROTARY,
            QkNormRotary([HEADS], [HEADS + 1], [], [], [TABLE], [TABLE], [0], [1e-5], [1e-5],
                         False, False, True, True, 8, False, F32),
            "q",
        ),
    )
}  # fmt: skip


def lowerings() -> list[tuple[str, str]]:
    """aiter's need AMD's library. Others run in Triton's interpreter, where it is on."""
    return [
        (o.name, low.name)
        for o in OPERATORS
        if o.name in EXAMPLES
        for low in o.lowerings
        if low.name == "reference"
        or (low.run is not None and low.name == "triton" and o is not AITER_CONV)
    ]


def run(example: Example, lowering: str, call: Call | None = None) -> list[Tensor]:
    made = call if call is not None else example.call
    found = example.operator.overloads[made.results](*made.arguments().values(), lowering)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def with_x(example: Example, x: Tensor) -> Call:
    given = getattr(example.call, example.x)
    value = [x] if isinstance(given, list) else x
    return replace(example.call, **{example.x: value})


def x_of(example: Example) -> Tensor:
    given = getattr(example.call, example.x)
    found: Tensor = given[0] if isinstance(given, list) else given
    return found


def ran(example: Example, lowering: str) -> bool:
    """Did the kernel itself run, where there is an interpreter?"""
    return lowering == "reference" or lowering not in example.operator._failed


def test_every_operator_has_an_example() -> None:
    named = {o.name for o in OPERATORS if not o.name.startswith("test_")}
    assert named == set(EXAMPLES)


@pytest.mark.parametrize(("name", "lowering"), lowerings())
def test_opcheck(name: str, lowering: str) -> None:
    example = EXAMPLES[name]
    overload = example.operator.overloads[example.call.results]
    torch.library.opcheck(overload, (*example.call.arguments().values(), lowering))
    assert ran(example, lowering)


@pytest.mark.parametrize(("name", "lowering"), lowerings())
def test_strides_and_values(name: str, lowering: str) -> None:
    """Transposed, sliced and expanded inputs give the values of dense ones, in the fake's
    strides.
    """
    example = EXAMPLES[name]
    x = x_of(example)
    wider = torch.cat([x, x], 0)
    for other in (x.transpose(0, -1).contiguous().transpose(0, -1), wider[: x.shape[0]],
                  x[:1].expand(x.shape)):  # fmt: skip
        call = with_x(example, other)
        wanted = run(example, "reference", with_x(example, other.contiguous()))
        fakes = example.operator._fake(call)
        fakes = list(fakes) if isinstance(fakes, (list, tuple)) else [fakes]
        for got, want, fake in zip(run(example, lowering, call), wanted, fakes, strict=True):
            torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
            assert got.stride() == fake.stride() and got.dtype is fake.dtype
            assert got.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    assert ran(example, lowering)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "lowering"), lowerings())
def test_what_is_not_finite(name: str, lowering: str, value: float) -> None:
    """It is not finite in the same places as in the reference's result."""
    example = EXAMPLES[name]
    x = x_of(example).clone()
    x[(0,) * x.dim()] = value
    call = with_x(example, x)
    for got, want in zip(run(example, lowering, call), run(example, "reference", call),
                         strict=True):  # fmt: skip
        assert torch.equal(got.isfinite(), want.isfinite())
    assert ran(example, lowering)


@pytest.mark.parametrize(("name", "lowering"), lowerings())
def test_empty(name: str, lowering: str) -> None:
    example = EXAMPLES[name]
    names = ("q", "k", "v") if hasattr(example.call, "k") else ("x", "branch", "gate")
    names = ("z",) if example.x == "z" else names
    call = example.call
    for field in names:
        given = getattr(call, field, None)
        if isinstance(given, Tensor):
            call = replace(call, **{field: given[:0]})
        elif isinstance(given, list):
            call = replace(call, **{field: [t[:0] for t in given]})
    for got, want in zip(run(example, lowering, call), run(example, lowering), strict=True):
        assert got.numel() == 0 and got.shape[1:] == want.shape[1:] and got.dtype is want.dtype
    assert ran(example, lowering)


ANY_RANK = {"as_real", "computed"}


@pytest.mark.parametrize(("name", "lowering"), lowerings())
def test_wrong_calls_raise(name: str, lowering: str) -> None:
    """Of no dims, with a dim too many for the other tensors, on another device."""
    example = EXAMPLES[name]
    x = x_of(example)
    wrong = [] if name in ANY_RANK else [x[(0,) * x.dim()]]
    if name in ("rms_norm", "layer_norm", "fused_norm", "rotary", "rotary_pair", "qk_norm_rotary"):
        wrong.append(x[..., :-1])
    if name in ("group_norm", "channel_norm", "implicit_gemm_conv"):
        wrong.append(x[:, :-1])
    for other in wrong:
        with pytest.raises((RuntimeError, ValueError, IndexError, TypeError, AssertionError)):
            run(example, lowering, with_x(example, other))


def of_several_tensors() -> list[tuple[str, str]]:
    return [(o, low) for o, low in lowerings() if len(list(EXAMPLES[o].call.tensors())) > 1]


@pytest.mark.parametrize(("name", "lowering"), of_several_tensors())
def test_tensors_on_two_devices_are_refused(name: str, lowering: str) -> None:
    """Before the kernel is tried: one that fails is not used again in the process."""
    example = EXAMPLES[name]
    call = with_x(example, x_of(example).to("meta"))
    for attempt in (
        lambda: run(example, lowering, call),
        lambda: example.operator._run(call, lowering),
    ):
        with pytest.raises(ValueError, match="its tensors lie on cpu, meta; one is needed"):
            attempt()
    assert ran(example, lowering)


def enlarged(call: Call, batch: int, of: int) -> Call:
    """The call on tensors without memory, those of `of` samples with `batch` samples."""

    def larger(t: Tensor) -> Tensor:
        sizes = [batch, *t.shape[1:]] if t.dim() > 2 and t.shape[0] == of else t.shape
        return torch.empty(sizes, dtype=t.dtype, device="meta")

    changed: dict[str, Any] = {}
    for field, given in call.arguments().items():
        if isinstance(given, Tensor):
            changed[field] = larger(given)
        elif isinstance(given, list) and given and isinstance(given[0], Tensor):
            changed[field] = [larger(t) for t in given]
    return replace(call, **changed)


#: So many samples of every example have more than 2^31 elements.
SAMPLES = 2**27


@pytest.mark.parametrize("name", EXAMPLES)
def test_sizes_beyond_32_bits(name: str) -> None:
    """Shapes and strides of the results are those of a small call, but for the samples."""
    example = EXAMPLES[name]
    few = x_of(example).shape[0]
    found = run(example, "reference", enlarged(example.call, SAMPLES, few))
    small = run(example, "reference", enlarged(example.call, few, few))
    for large, one in zip(found, small, strict=True):
        assert large.shape == (SAMPLES, *one.shape[1:]) and large.dtype is one.dtype
        assert large.stride() == one.stride()
        assert large.numel() > 2**31


@pytest.mark.parametrize("name", sorted({o for o, low in lowerings() if low == "triton"}))
def test_launches_beyond_32_bits(name: str) -> None:
    """A kernel refuses such a call, or has a grid that a driver takes. (No program is run.)"""
    example = EXAMPLES[name]
    lowering = example.operator.lowering("triton")
    assert lowering is not None and lowering.run is not None
    call = enlarged(example.call, SAMPLES, x_of(example).shape[0])
    with launching.written_down() as launches:
        try:
            lowering.run(call)
        except ValueError as refused:
            assert "grid" in str(refused) or "2^31" in str(refused), refused
            return
    assert launches
    for launch in launches:
        launching.check_grid(launch.grid, 32)


def test_the_interpreter_runs_the_kernels() -> None:
    """Else only references were tested above."""
    assert triton_is_interpreted() or torch.cuda.is_available()

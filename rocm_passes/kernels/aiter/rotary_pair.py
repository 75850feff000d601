"""The rotations of q and k through aiter's `rope_cached_2c_fwd`; rotary.py has its contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rocm_passes.fx.builder import Eager
from rocm_passes.kernels.aiter import rotary
from rocm_passes.kernels.aiter.installation import needs_aiter
from rocm_passes.ops.operator import Lowering
from rocm_passes.ops.rotary_pair import ROTARY_PAIR, RotaryPair, SpelledRotaryPair
from rocm_passes.ops.rotary_pair import refuses as misfit
from rocm_passes.target import Target


def refuses(call: SpelledRotaryPair, target: Target) -> str | None:
    reason = misfit(call, target) or rotary.unlike_aiters(call.recipe, call.q.dtype)
    if reason is not None:
        return reason
    own = replace(call, contiguous=True).prepared(Eager())
    return rotary.pair_refusal(
        own.q, own.k, own.cos, own.sin, interleaved=own.interleaved, rotated=own.width
    )


def note(call: SpelledRotaryPair, target: Target) -> str | None:
    return rotary.numerics_note(call.q)


def write(b: Any, call: SpelledRotaryPair) -> Any:
    return ROTARY_PAIR.write(b, replace(call, contiguous=True), AITER.name)


def run(call: RotaryPair) -> Sequence[Tensor]:
    interleaved, rotated = call.interleaved, call.width
    return rotary.rotary_pair(
        call.q, call.k, call.cos, call.sin, interleaved=interleaved, rotated=rotated
    )


AITER = ROTARY_PAIR.register(
    Lowering("aiter", requires=(needs_aiter,), refuses=refuses, note=note, run=run, write=write)
)

"""A pad by nothing is a copy that is left out."""

from __future__ import annotations

from typing import Any

from rocm_passes.ops.operator import Lowering, same_bits
from rocm_passes.ops.pad import PAD, Pad
from rocm_passes.target import Target


def refuses(call: Pad, target: Target) -> str | None:
    is_a_copy = not any(call.padding) and all(r == 1 for r in call.repeats)
    return None if is_a_copy else "it pads by more than nothing"


def write(b: Any, call: Pad) -> Any:
    return call.x


DROP = PAD.register(
    Lowering("drop", refuses=refuses, write=write, other_bits=same_bits), first=True
)

"""Rotary position embedding of q and k by the same tables, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Eager
from rocm_passes.ops import rotary as one
from rocm_passes.ops import rotary_layout as layout
from rocm_passes.ops.operator import Call, Operator
from rocm_passes.ops.rotary import Rotary, SpelledRotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target


@dataclass(frozen=True)
class RotaryPair(Call):
    """`Rotary` of q [B, S, Hq, D] and of k [B, S, Hk, D].

    cos, sin, interleaved, width, conjugate, seq_start: as for `Rotary`, the same for both.
    """

    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: bool
    width: int
    conjugate: bool
    seq_start: int | None
    out_dtype: torch.dtype

    @property
    def results(self) -> int:
        return 2

    def each(self) -> tuple[Rotary, Rotary]:
        """The same as two calls."""
        rest = self.arguments()
        q, k = rest.pop("q"), rest.pop("k")
        return Rotary(q, **rest), Rotary(k, **rest)


@dataclass(frozen=True)
class SpelledRotaryPair(Call):
    """Two rotations as the graph spells them, by the same tables; as `SpelledRotary`."""

    q: Tensor
    k: Tensor
    tables: Sequence[Tensor]
    recipe: Recipe
    k_recipe: Recipe
    contiguous: bool = False

    @property
    def results(self) -> int:
        return 2

    def each(self) -> tuple[SpelledRotary, SpelledRotary]:
        """The same as two calls."""
        both = ((self.q, self.recipe), (self.k, self.k_recipe))
        q, k = (SpelledRotary(x, self.tables, recipe, self.contiguous) for x, recipe in both)
        return q, k

    def prepared(self, b: Any) -> RotaryPair:
        """The operator's call, with every view and table written."""
        rest = self.each()[0].prepared(b).arguments()
        return RotaryPair(q=rest.pop("x"), k=layout.bshd(b, self.k, self.k_recipe), **rest)

    def finished(self, b: Any, results: list[Any]) -> list[Any]:
        return [
            y
            for one, result in zip(self.each(), results, strict=True)
            for y in one.finished(b, [result])
        ]


def reference(call: RotaryPair) -> list[Tensor]:
    return [one.reference(each) for each in call.each()]


def fake(call: RotaryPair) -> list[Tensor]:
    return [one.fake(each) for each in call.each()]


def refuses(call: SpelledRotaryPair, target: Target) -> str | None:
    """Why no kernel can take these rotations, or None."""
    for name, each in zip("qk", call.each(), strict=True):
        reason = one.refuses(each, target)
        if reason is not None:
            return f"{name}: {reason}"
    q, k = call.q, call.k
    q4, k4 = layout.bshd(Eager(), q, call.recipe), layout.bshd(Eager(), k, call.k_recipe)
    of_one = ((*x.shape[:2], x.shape[3]) for x in (q4, k4))
    if not n.same_shape(*of_one) or q.dtype is not k.dtype:
        return f"q is {list(q4.shape)} of {q.dtype} and k {list(k4.shape)} of {k.dtype}"
    if call.recipe.out_dtype is not call.k_recipe.out_dtype:
        return f"the results are {call.recipe.out_dtype} and {call.k_recipe.out_dtype}"
    return None


def other_bits(call: SpelledRotaryPair, target: Target) -> str | None:
    return next((why for each in call.each() if (why := one.other_bits(each, target))), None)


#: Lowerings are asked about a `SpelledRotaryPair` and run a `RotaryPair`.
ROTARY_PAIR: Operator[Any] = Operator(
    "rotary_pair", RotaryPair, reference, fake, (2,), refuses, other_bits
)

"""Convolving float32 tensors in float16 without leaving its range, which ends at 65504.

    x' = x / 2^a     the largest finite magnitude of x becomes 1 to 2
    w' = w / 2^b     the largest sum of |w| over an output channel's inputs becomes 2^12 to 2^13
    y  = conv(x', w') * 2^(a + b) + bias

No sum of products can then exceed 2^14, partial sums included: a quarter of the range, the rest is
for algorithms that add up inputs first (Winograd's). Powers of two change no digit but of what
becomes subnormal, and that is smaller than x's largest by 2^14 or more. The exponents are computed
on the device: nothing waits for them, and CUDA graphs can hold them. NaN and inf go where the graph
would have them: they are not counted, and nothing makes them finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

aten = torch.ops.aten
#: Exponents whose powers, and their inverses, are normal float32 numbers.
LEAST, MOST = -126.0, 126.0
#: Of the largest sum of |w|: far from float16's end, and its small weights far from float16's
#: subnormals.
WEIGHT_EXPONENT = 12.0


class Ranges:
    """The scales of one call. b: a graph Builder, or its eager stand-in."""

    def __init__(self, b: Any, pieces: Sequence[Any], weight: Any) -> None:
        self._b = b
        largest = [self._magnitude(p) for p in pieces if not _is_zero(b.value(p).shape[2])]
        found = largest[0]
        for other in largest[1:]:
            found = b(aten.maximum.default, found, other)
        self._x = self._exponent(found, 0.0)
        sums = b(aten.sum.dim_IntList, self._finite(weight), [1, 2, 3, 4])
        self._weight = self._exponent(b(aten.amax.default, sums), WEIGHT_EXPONENT)

    def input(self, x: Any) -> Any:
        """x' of a piece, or of pieces end to end, in float32."""
        return self._times(x, self._b(aten.neg.default, self._x))

    def weight(self, weight: Any) -> Any:
        """w' in float32."""
        return self._times(weight, self._b(aten.neg.default, self._weight))

    def back(self, y: Any) -> Any:
        """The result of conv(x', w'), in float32, as that of conv(x, w)."""
        # One after the other: the power of their sum may be inf where the result is 0.
        return self._times(self._times(y, self._weight), self._x)

    def _times(self, x: Any, exponent: Any) -> Any:
        return self._b(aten.mul.Tensor, x, self._b(aten.exp2.default, exponent))

    def _magnitude(self, x: Any) -> Any:
        return self._b(aten.amax.default, self._finite(x))

    def _finite(self, x: Any) -> Any:
        """|x|, and 0 for what is not finite."""
        b = self._b
        size = b(aten.abs.default, x)
        counts = b(aten.lt.Scalar, size, float("inf"))
        return b(aten.where.self, counts, size, self._number(0.0, x))

    def _exponent(self, size: Any, aim: float) -> Any:
        """The exponent of the power of two that takes `size` to 2^aim or up to twice that; 0-d."""
        b = self._b
        found = b(aten.sub.Tensor, b(aten.floor.default, b(aten.log2.default, size)), aim)
        # Not clamp: Inductor decomposes it before post-grad passes, and would not lower it.
        found = b(aten.maximum.default, found, self._number(LEAST, size))
        return b(aten.minimum.default, found, self._number(MOST, size))

    def _number(self, value: float, beside: Any) -> Any:
        device = self._b.value(beside).device
        return self._b(aten.full.default, [], value, dtype=torch.float32, device=device)


def _is_zero(frames: Any) -> bool:
    return isinstance(frames, int) and frames == 0


__all__ = ["Ranges"]

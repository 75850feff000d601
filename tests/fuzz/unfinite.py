"""NaN and infinity among the inputs: each element of a result is NaN, infinite or finite where it
is so without rewrites.

One element of the first input is such a value; which one depends on the seed. A weight is not:
where a convolution pads with zeros, a tap of NaN gives NaN or nothing, as its algorithm multiplies
the zeros or leaves them out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tests.fuzz.program import Program, placed

VALUES = (math.nan, math.inf, -math.inf)


def inputs(program: Program, again: int) -> list[Tensor] | None:
    """The program's inputs with one such value, or None where there is no place for it."""
    drawn = [placed(t) for t in program.draw(again)]
    if not drawn or not drawn[0].dtype.is_floating_point or drawn[0].numel() == 0:
        return None
    choice = random.Random(program.seed)
    place = tuple(choice.randrange(size) for size in drawn[0].shape)
    drawn[0][place] = choice.choice(VALUES)
    return drawn


def unlike(got: Sequence[Tensor], wanted: Iterable[Sequence[Tensor]]) -> list[int]:
    """The places of the results of which an element is of another class than in all of these."""
    found = list(range(len(got)))
    for results in wanted:
        if not found:
            break
        found = [i for i in found if not torch.equal(classes(got[i]), classes(results[i]))]
    return found


def classes(t: Tensor) -> Tensor:
    """Of each element: 0 finite, 1 and 2 infinite, 3 NaN."""
    t = torch.view_as_real(t) if t.is_complex() else t
    return t.isposinf() + 2 * t.isneginf() + 3 * t.isnan()

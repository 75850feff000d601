"""How an RMSNorm is spelled: patterns that read like the formula. idioms/norms/rms.py reads norms
with them.

The statistic is one number a row. eps_kind says how eps guards its root:

add             rsqrt(mean(x^2) + eps)
clamp           rsqrt(max(mean(x^2), eps))
clamp_root      1 / max(sqrt(mean(x^2)), eps)
clamp_length    1 / max(sqrt(sum(x^2)), eps): F.normalize, to be multiplied by sqrt(D)
after_root      1 / (sqrt(mean(x^2)) + eps)
after_length    1 / (sqrt(sum(x^2)) + eps), to be multiplied by sqrt(D)
none            rsqrt(mean(x^2))
"""

from __future__ import annotations

import math
from typing import Any

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.patterns import (
    Pattern,
    add,
    bind,
    call,
    div,
    exactly,
    mean,
    mul,
    number,
    reciprocal,
    rounded,
    rsqrt,
    sqrt,
    total,
)
from rocm_passes.idioms.norms.rows import last_dim, per_row

X, W, EPS, COUNT = bind("x"), bind("weight"), number("eps"), number("count")
HERE = exactly("here")
absolute = call(aten.abs.default)
dot = call(aten.bmm.default)


def _divides(power: float) -> Any:
    """Is the number D ** power, for rows of D elements?"""

    def check(_: Any, found: Bound) -> str | None:
        size, count = n.static_int(n.shape(found["x"])[-1]), found["count"]
        if size and isinstance(count, float) and math.isclose(count, size**power, rel_tol=1e-7):
            return None
        return f"the factor is {count}, not {size} ** {power} for rows of {size} elements"

    return check


def _one_dot_per_row(_: object, found: Bound) -> str | None:
    """bmm of [rows, 1, D] and [rows, D, 1], as einsum gives."""
    dims, size = n.shape(found.node), n.shape(found.node.args[0])[-1]
    ok = n.same_shape(dims[1:], (1, 1)) and n.same_size(size, n.shape(found["x"])[-1])
    return None if ok else f"a product of matrices gives {list(dims)}"


SQUARE = X**2 | X * X | absolute(X) ** 2 | absolute(X) * absolute(X)
SUM = rounded(total(SQUARE).where(last_dim) | dot(X, X).where(_one_dot_per_row))
MEAN = (
    mean(SQUARE).where(last_dim)
    | (SUM / COUNT).where(_divides(1.0))
    | (SUM * COUNT).where(_divides(-1.0))
)
LENGTH = rounded(sqrt(SUM) | SUM**0.5)
# The mean's root, which the eps may stand behind.
ROOT = (
    sqrt(MEAN)
    | MEAN**0.5
    | (LENGTH / COUNT).where(_divides(0.5))
    | (LENGTH * COUNT).where(_divides(-0.5))
)
clamp_min = call(aten.clamp_min.default, aten.clamp.default)


def _clamped(inner: Pattern) -> Pattern:
    """From below, by EPS, and not from above."""
    return clamp_min(inner, EPS).where(
        lambda _, found: (
            "it is clamped from above" if len(found.node.args) > 2 or found.node.kwargs else None
        )
    )


INSIDE = (
    (MEAN + EPS).saying(eps_kind="add")
    | rounded(_clamped(MEAN)).saying(eps_kind="clamp")
    | MEAN.saying(eps_kind="none")
)
DIVISOR = (
    sqrt(INSIDE)
    | INSIDE**0.5
    | (ROOT + EPS).saying(eps_kind="after_root")
    | _clamped(ROOT).saying(eps_kind="clamp_root")
    | (LENGTH + EPS).saying(eps_kind="after_length")
    | _clamped(LENGTH).saying(eps_kind="clamp_length")
)
INVERSE = rsqrt(INSIDE) | INSIDE**-0.5 | reciprocal(DIVISOR) | reciprocal(DIVISOR) * 1
NORM = (
    (X * per_row(rsqrt((mean(SQUARE).where(last_dim) + EPS).saying(eps_kind="add")))).saying(
        as_computed=True
    )
    | X * per_row(INVERSE)
    | X / per_row(DIVISOR)
    | (W * X) * per_row(INVERSE)
    | (W * X) / per_row(DIVISOR)
    | (W * per_row(INVERSE)) * X
)
# What makes a root a candidate: squares, averaged or summed over whatever dims.
AVERAGED = rounded((mean(SQUARE) | total(SQUARE)).named("reduced") | dot(X, X))
SCALED = AVERAGED | div(AVERAGED) | mul(AVERAGED)
CANDIDATE = SCALED | add(SCALED) | rounded(clamp_min(SCALED))

PLAIN_WEIGHT = HERE * W.named("factor")
WEIGHTED = HERE * (W + 1).named("factor").saying(offset=1.0) | PLAIN_WEIGHT
BIASED = HERE + bind("bias").named("given")
SCALED_BY = HERE * COUNT

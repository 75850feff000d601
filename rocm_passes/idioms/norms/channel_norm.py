"""RMSNorm over the channels of an image or video, with SiLU, as the VAEs of Wan, Qwen-Image and
LTX-2 have it.

Before (Wan in bf16)                                    After
    f = convert(x, f32)                                     y = rocm_passes.channel_norm(x, gamma,
    l = pow(sum(pow(f, 2), [1], True), 0.5)                         None, "l2", 1e-12, sqrt(C),
    d = f / expand(clamp_min(l, 1e-12))                             True, bf16, True, bf16,
    y = silu(convert(d, bf16) * sqrt(C) * gamma + 0.0)              "triton")

or, in LTX-2, x / sqrt(mean(pow(x, 2), [1], True) + eps).

Under dynamic=True a module's own numbers, sqrt(C) and a bias of 0.0 among them, are 0-d tensors
that lie on the CPU: those are multiplied into gamma, and added to the bias, in front of the norm.

When it pays: where the result stands behind cached frames in a video that a convolution reads: the
kernel writes it there (passes/write_into_cat.py). Elsewhere Inductor's code, fused with what is
around it, was no slower.

Refused: fp64; an inner value used outside; an eps that is such a tensor. A norm over dim 1 of a
tensor of fewer than four dims is none of this idiom's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.matching import Bound
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.fx.patterns import bind, call, exactly, mean, number, rounded, sqrt, total
from rocm_passes.idioms.convolution.padding import stands_behind_frames
from rocm_passes.idioms.norms.group_norm import final_cast, silu_after
from rocm_passes.idioms.norms.rows import dying
from rocm_passes.ops import channel_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss, guarded
from rocm_passes.rewrite.rewriter import escapes

NAME = "channel_norm"
COVERS = {"channel_norm": 1}


def _over_channels(_: object, found: Bound) -> str | None:
    """Over dim 1 alone, which stays as a dim of size 1."""
    dims, rank = n.arg(found.node, 1), len(n.shape(found.node.args[0]))
    one = isinstance(dims, (list, tuple)) and [n.normalised_dim(d, rank) for d in dims] == [1]
    kept = len(found.node.args) > 2 and found.node.args[2] is True
    return None if one and kept else f"it normalises over dims {dims}"


def _is_float(_: object, found: Bound) -> str | None:
    return None if isinstance(found["eps"], float) else "its eps is a tensor"


X, EPS, HERE = bind("x"), number("eps"), exactly("here")
SQUARE = X**2 | X * X
SUM, MEAN = (reduce(SQUARE).where(_over_channels) for reduce in (total, mean))
# The length may be rounded to a 16-bit x's dtype.
LENGTH = call(aten.clamp_min.default)(rounded(sqrt(SUM) | SUM**0.5), EPS).where(_is_float)
ROOT = sqrt(MEAN + EPS) | (MEAN + EPS) ** 0.5
DIVISOR = LENGTH.saying(form="l2").named("divisor") | ROOT.saying(form="mean").named("divisor")
NORM = X / (DIVISOR | call(aten.expand.default)(DIVISOR))

BY_NUMBER, PLUS_NUMBER = HERE * number("number"), HERE + number("number")
BY_VECTOR, PLUS_VECTOR = (
    HERE * bind("table").named("given"),
    HERE + bind("table").named("given"),
)


@dataclass
class ChannelNorm:
    """given: x as the norm computes with it. last: the last node so far; nodes: all of them.

    times, plus: 0-d tensors, by which it is multiplied before the bias, and which is added to it.
    """

    anchor: fx.Node
    given: fx.Node
    form: str
    eps: float | fx.Node
    last: fx.Node
    nodes: set[fx.Node] = field(default_factory=set)
    round_to: torch.dtype | None = None
    scale: float = 1.0
    gamma: fx.Node | None = None
    bias: fx.Node | None = None
    times: fx.Node | None = None
    plus: fx.Node | None = None
    roundings: int = 0


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    for div in n.calls(graph, aten.div.Tensor):
        yield from guarded(div, COVERS, _at, div)


def _at(div: fx.Node) -> Found | None:
    norm = read(div)
    return None if norm is None else _found(norm)


def read(div: fx.Node) -> ChannelNorm | None:
    """The norm around a division of a tensor by its own length over dim 1."""
    given = n.arg(div, 0)
    found = NORM.match(div)
    if found is None or len(n.shape(given)) < 4:
        return None
    norm = ChannelNorm(div, given, found["form"], found["eps"], div, set(found.nodes))
    norm.roundings = int(n.dtype(found["divisor"]) in n.LOW_PRECISION)
    norm.nodes |= dying(found.passed, norm.nodes)
    _tail(norm)
    return norm


def _tail(norm: ChannelNorm) -> None:
    """Past a rounding, scalars, gamma and bias; each the only use of what stands before it."""
    rounding = n.only_user(norm.last)
    if rounding is not None and n.is_cast(rounding) and n.dtype(rounding) in n.FLOATING:
        if not n.is_widening(rounding):
            norm.round_to = n.dtype(rounding)
        _advance(norm, rounding)
    while _multiply(norm):
        pass
    _add(norm)


def _multiply(norm: ChannelNorm) -> bool:
    step = n.only_user(norm.last)
    by, vector = (pattern.match(step, here=norm.last) for pattern in (BY_NUMBER, BY_VECTOR))
    if step is None or norm.bias is not None:
        return False
    if by is not None and isinstance(by["number"], float):
        norm.scale *= by["number"]
    elif by is not None and norm.times is None:
        norm.times = by["number"]
    elif vector is not None and norm.gamma is None and _per_channel(vector["given"], norm):
        norm.gamma = vector["table"]
    else:
        return False
    _advance(norm, step)
    return True


def _add(norm: ChannelNorm) -> None:
    """Wan's `+ self.bias` is `+ 0.0` where the norm has none."""
    step = n.only_user(norm.last)
    by, vector = (pattern.match(step, here=norm.last) for pattern in (PLUS_NUMBER, PLUS_VECTOR))
    if step is None:
        return
    if by is not None and isinstance(by["number"], fx.Node):
        norm.plus = by["number"]
    elif vector is not None and _per_channel(vector["given"], norm):
        norm.bias = vector["table"]
    elif by is None or by["number"] != 0:
        return
    _advance(norm, step)


def _per_channel(node: object, norm: ChannelNorm) -> bool:
    """[C, 1, 1], [1, C, 1, 1] or the like, of a floating dtype, leaving the value's shape
    as it is.
    """
    dims, full = n.shape(node), n.shape(norm.last)
    if n.dtype(node) not in n.FLOATING or not len(full) - 1 <= len(dims) <= len(full):
        return False
    padded = (1,) * (len(full) - len(dims)) + dims
    return n.same_size(padded[1], full[1]) and all(
        n.same_size(d, 1) for d in (padded[0], *padded[2:])
    )


def _advance(norm: ChannelNorm, node: fx.Node) -> None:
    if n.dtype(norm.last) in n.LOW_PRECISION and norm.last is not norm.anchor:
        norm.roundings += 1
    norm.nodes.add(node)
    norm.last = node


def _found(norm: ChannelNorm) -> Found:
    x = n.through_widening(norm.given)
    parameters = {
        "form": norm.form,
        "eps": _said(norm.eps),
        "scale": norm.scale if norm.times is None else _said(norm.times),
        "gamma": n.dtype(norm.gamma),
        "bias": n.dtype(norm.bias) if norm.plus is None else _said(norm.plus),
        "computes_in": n.dtype(norm.given),
        "x_dtype": n.dtype(x),
        "channels": n.shape(x)[1],
    }
    before_silu = norm.last
    last, silu = silu_after(before_silu, norm.nodes)
    last = final_cast(last, norm.nodes)
    parameters["silu"] = silu
    reason = _refusal(norm, x, last)
    if reason is not None:
        return Miss(norm.anchor, reason, COVERS, parameters)
    low = n.dtype(before_silu) in n.LOW_PRECISION
    parameters["joins"] = joins = stands_behind_frames(last)
    arguments: dict[str, Any] = {
        "x": x,
        "x_bias": None,
        "gamma": norm.gamma,
        "bias": norm.bias,
        "form": norm.form,
        "eps": norm.eps,
        "scale": norm.scale,
        "times": norm.times,
        "plus": norm.plus,
        "silu": silu,
        "round_to": norm.round_to if norm.last is not norm.anchor else None,
        # In low precision LTX-2 rounds the square, the mean and the root as well.
        "rounds_between": n.dtype(norm.given) in n.LOW_PRECISION
        or norm.roundings > 0
        or (silu and low),
        "out_dtype": n.dtype(last),
        "front": None,
        "repeat_first": 0,
        "joins": joins,
    }
    return Match(
        norm.anchor,
        frozenset(norm.nodes),
        (last,),
        ScaledByTensors(**arguments),
        COVERS,
        parameters,
    )


def _refusal(norm: ChannelNorm, x: fx.Node, last: fx.Node) -> str | None:
    """Why it cannot be rewritten up to `last`, or None."""
    if any(n.dtype(node) not in n.FLOATING for node in (x, norm.given, last)):
        return f"it computes in {n.dtype(norm.given)} and gives {n.dtype(last)}"
    if isinstance(norm.eps, fx.Node):
        return (
            "its eps is a tensor, as a module's own number is with dynamic shapes; the kernel "
            "must know it"
        )
    outside = escapes(frozenset(norm.nodes), (last,))
    if outside is not None:
        return f"an inner value ({outside.name}) is used outside the norm"
    return None


def _said(number: float | fx.Node) -> float | str:
    return f"tensor {number.name}" if isinstance(number, fx.Node) else number


@dataclass(frozen=True)
class ScaledByTensors(op.ChannelNorm):
    """A channel norm with 0-d tensors for numbers: `times` beside gamma, `plus` beside bias, or
    None.
    """

    times: Any = None
    plus: Any = None

    def prepared(self, b: Any) -> op.ChannelNorm:
        """With the tensors in gamma and bias: in fp32, on x's device, one element where there is
        none.
        """
        arguments = self.arguments()
        times, plus = arguments.pop("times"), arguments.pop("plus")
        device = b.value(self.x).device
        for name, tensor, compute, neutral in (
            ("gamma", times, aten.mul.Tensor, 1.0),
            ("bias", plus, aten.add.Tensor, 0.0),
        ):
            if tensor is None:
                continue
            given = arguments[name]
            if given is None:
                given = b(aten.full.default, [1], neutral, dtype=torch.float32, device=device)
            elif b.value(given).dtype is not torch.float32:
                given = b(prims.convert_element_type.default, given, torch.float32)
            arguments[name] = b(compute, given, tensor)
        return op.ChannelNorm(**arguments)


IDIOM = Idiom(NAME, find, op.CHANNEL_NORM.lowerings, op.CHANNEL_NORM, preserves=("silu",))

"""RMSNorm over the channels of an image or video, with SiLU, as the VAEs of Wan, Qwen-Image and LTX-2 have it.

Before (Wan in bf16)                            After
    f = convert(x, f32)                             y = rocm_passes.channel_norm(x, gamma, None, "l2", 1e-12,
    l = pow(sum(pow(f, 2), [1], True), 0.5)             sqrt(C), True, bf16, True, bf16, "triton")
    d = f / expand(clamp_min(l, 1e-12))
    y = silu(convert(d, bf16) * sqrt(C) * gamma + 0.0)

or, in LTX-2, x / sqrt(mean(pow(x, 2), [1], True) + eps).

Under dynamic=True a module's own numbers, sqrt(C) and a bias of 0.0 among them, are 0-d tensors that lie on the CPU:
those are multiplied into gamma, and added to the bias, in front of the norm.

When it pays: where the result stands behind cached frames in a video that a convolution reads: the kernel writes it
there (graph/joined.py). Elsewhere Inductor's code, fused with what is around it, was no slower.

Refused: fp64; an inner value used outside; an eps that is such a tensor. A norm over dim 1 of a tensor of fewer than
four dims is none of this idiom's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten, prims
from rocm_passes.idioms.convolution.padding import stands_behind_frames
from rocm_passes.idioms.norms.group_norm import final_cast, silu_after
from rocm_passes.idioms.norms.rows import dying_casts
from rocm_passes.ops import channel_norm as op
from rocm_passes.rewrite.match import Context, Found, Idiom, Match, Miss
from rocm_passes.rewrite.rewriter import escapes

NAME = "channel_norm"
COVERS = {"channel_norm": 1}


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
        norm = read(div)
        if norm is not None:
            yield _found(norm)


def read(div: fx.Node) -> ChannelNorm | None:
    """The norm around a division of a tensor by its own length over dim 1."""
    given, divisor = n.arg(div, 0), n.arg(div, 1)
    if not isinstance(given, fx.Node) or len(n.shape(given)) < 4:
        return None
    nodes = {div}
    if n.is_call(divisor, aten.expand.default):
        nodes.add(divisor)
        divisor = n.arg(divisor, 0)
    length = _l2(divisor, nodes) or _mean(divisor, nodes)
    if length is None or n.through_widening(length[0]) is not n.through_widening(given):
        return None
    source, form, eps = length
    norm = ChannelNorm(div, given, form, eps, div, nodes)
    norm.roundings = int(n.dtype(divisor) in n.LOW_PRECISION)
    nodes |= dying_casts(given, nodes) | dying_casts(source, nodes)
    _tail(norm)
    return norm


def _l2(divisor: object, nodes: set[fx.Node]) -> tuple[fx.Node, str, float] | None:
    """clamp_min(sqrt(sum(x^2, 1)), eps), the length perhaps rounded to a 16-bit x's dtype."""
    if not n.is_call(divisor, aten.clamp_min.default) or not n.is_scalar(divisor.args[1]):
        return None
    length = n.argument(divisor)
    root = n.argument(length) if n.is_cast(length) and not n.is_widening(length) else length
    inside = _under_root(root)
    if not n.is_call(inside, aten.sum.dim_IntList) or not _over_channels(inside):
        return None
    square = n.arg(inside, 0)
    source = _squared(square)
    if source is None:
        return None
    nodes |= {divisor, length, root, inside, square}
    return source, "l2", float(n.arg(divisor, 1))


def _mean(divisor: object, nodes: set[fx.Node]) -> tuple[fx.Node, str, float | fx.Node] | None:
    """sqrt(mean(x^2, 1) + eps)"""
    total = _under_root(divisor)
    if not (n.is_call(total, aten.add.Tensor, aten.add.Scalar) and n.alpha_is_one(total)):
        return None
    for mean, eps in n.operands(total):
        if not (n.is_call(mean, aten.mean.dim) and _over_channels(mean)):
            continue
        if not (n.is_scalar(eps) or _is_number(eps)):
            continue
        square = n.arg(mean, 0)
        source = _squared(square)
        if source is not None:
            assert isinstance(divisor, fx.Node)
            nodes |= {divisor, total, mean, square}
            return source, "mean", eps if isinstance(eps, fx.Node) else float(eps)
    return None


def _under_root(node: object) -> object:
    if n.is_call(node, aten.sqrt.default) or (
        n.is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 0.5
    ):
        return node.args[0]
    return None


def _over_channels(node: fx.Node) -> bool:
    """Over dim 1 alone, which stays as a dim of size 1."""
    dims = n.arg(node, 1)
    rank = len(n.shape(node.args[0]))
    one = isinstance(dims, (list, tuple)) and len(dims) == 1 and n.normalised_dim(dims[0], rank) == 1
    return one and len(node.args) > 2 and node.args[2] is True


def _squared(node: object) -> fx.Node | None:
    if n.is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 2:
        return n.argument(node)
    if n.is_call(node, aten.mul.Tensor) and node.args[0] is node.args[1]:
        return n.argument(node)
    return None


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
    if norm.bias is not None or not n.is_call(step, aten.mul.Tensor, aten.mul.Scalar):
        return False
    other = next((o for v, o in n.operands(step) if v is norm.last), None)
    if n.is_scalar(other):
        norm.scale *= float(other)  # type: ignore[arg-type]
    elif norm.times is None and _is_number(other):
        norm.times = other
    elif norm.gamma is None and _per_channel(other, norm):
        norm.gamma = n.through_widening(other)
    else:
        return False
    _advance(norm, step)
    return True


def _add(norm: ChannelNorm) -> None:
    """Wan's `+ self.bias` is `+ 0.0` where the norm has none."""
    step = n.only_user(norm.last)
    if not (n.is_call(step, aten.add.Tensor, aten.add.Scalar) and n.alpha_is_one(step)):
        return
    other = next((o for v, o in n.operands(step) if v is norm.last), None)
    if _is_number(other):
        norm.plus = other
    elif _per_channel(other, norm):
        norm.bias = n.through_widening(other)
    elif not (n.is_scalar(other) and other == 0):
        return
    _advance(norm, step)


def _is_number(node: object) -> TypeGuard[fx.Node]:
    """A 0-d floating tensor, of whatever device and value."""
    return n.shape(node) == () and n.dtype(node) in (*n.FLOATING, torch.float64)


def _per_channel(node: object, norm: ChannelNorm) -> bool:
    """[C, 1, 1], [1, C, 1, 1] or the like, of a floating dtype, leaving the value's shape as it is."""
    dims, full = n.shape(node), n.shape(norm.last)
    if n.dtype(node) not in n.FLOATING or not len(full) - 1 <= len(dims) <= len(full):
        return False
    padded = (1,) * (len(full) - len(dims)) + dims
    return n.same_size(padded[1], full[1]) and all(n.same_size(d, 1) for d in (padded[0], *padded[2:]))


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
    if (
        n.dtype(x) not in n.FLOATING
        or n.dtype(norm.given) not in n.FLOATING
        or n.dtype(last) not in n.FLOATING
    ):
        reason = f"it computes in {n.dtype(norm.given)} and gives {n.dtype(last)}"
        return Miss(norm.anchor, reason, COVERS, parameters)
    if isinstance(norm.eps, fx.Node):
        reason = (
            "its eps is a tensor, as a module's own number is with dynamic shapes; the kernel must know it"
        )
        return Miss(norm.anchor, reason, COVERS, parameters)
    outside = escapes(frozenset(norm.nodes), (last,))
    if outside is not None:
        reason = f"an inner value ({outside.name}) is used outside the norm"
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
        "rounds_between": n.dtype(norm.given) in n.LOW_PRECISION or norm.roundings > 0 or (silu and low),
        "out_dtype": n.dtype(last),
        "front": None,
        "repeat_first": 0,
        "joins": joins,
    }
    return Match(
        norm.anchor, frozenset(norm.nodes), (last,), ScaledByTensors(**arguments), COVERS, parameters
    )


def _said(number: float | fx.Node) -> float | str:
    return f"tensor {number.name}" if isinstance(number, fx.Node) else number


@dataclass(frozen=True)
class ScaledByTensors(op.ChannelNorm):
    """A channel norm with 0-d tensors for numbers: `times` beside gamma, `plus` beside bias, or None."""

    times: Any = None
    plus: Any = None

    def prepared(self, b: Any) -> op.ChannelNorm:
        """With the tensors in gamma and bias: in fp32, on x's device, one element where there is none."""
        arguments = self.arguments()
        times, plus = arguments.pop("times"), arguments.pop("plus")
        device = b.value(self.x).device
        for name, number, compute, neutral in (
            ("gamma", times, aten.mul.Tensor, 1.0),
            ("bias", plus, aten.add.Tensor, 0.0),
        ):
            if number is None:
                continue
            given = arguments[name]
            if given is None:
                given = b(aten.full.default, [1], neutral, dtype=torch.float32, device=device)
            elif b.value(given).dtype is not torch.float32:
                given = b(prims.convert_element_type.default, given, torch.float32)
            arguments[name] = b(compute, given, number)
        return op.ChannelNorm(**arguments)


IDIOM = Idiom(NAME, find, op.CHANNEL_NORM.lowerings, op.CHANNEL_NORM, keeps=("silu",))

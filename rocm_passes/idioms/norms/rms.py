"""The RMS part of a norm, read off the graph: shared by every idiom that contains an RMSNorm.

f = x.float()                       (or x itself)
rstd = rsqrt(mean(f^2, -1) + eps)
y = f * rstd                        (or x * rstd: the spelling of diffusers)
y = y.to(T)                         (or not)
y = y * weight                      (either order; weight, weight.float() or 1 + weight; or none)
y = y.to(T)                         (or not)
y = y + bias                        (or not: read by `with_bias`, for idioms that have a place for it)
y = y.to(T)                         (or not)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten


@dataclass
class RMS:
    """An RMSNorm as the graph spells it.

    x: before any widening cast. eps: a float, or a 0-d tensor node. weight: a vector of the last dim, before
    widening casts, or None; weight_offset: 1.0 for Gemma's (1 + weight). round_to: the dtype that the
    normalised value is rounded to before the weight, or None. bias: as the weight; round_product: the dtype that
    the value is rounded to before the bias, or None. result: the last node; nodes: all of them.
    """

    anchor: fx.Node
    x: fx.Node
    eps: float | fx.Node
    result: fx.Node
    spelling: str
    weight: fx.Node | None = None
    weight_offset: float = 0.0
    weight_first: bool = False
    round_to: torch.dtype | None = None
    bias: fx.Node | None = None
    round_product: torch.dtype | None = None
    compute_dtype: torch.dtype = torch.float32
    nodes: set[fx.Node] = field(default_factory=set)

    @property
    def size(self) -> Any:
        return n.shape(self.x)[-1]

    @property
    def out_dtype(self) -> torch.dtype:
        return n.tensor(self.result).dtype

    def parameters(self) -> dict[str, Any]:
        return {
            "spelling": self.spelling,
            "size": self.size,
            "eps": self.eps if isinstance(self.eps, float) else f"tensor {self.eps.name}",
            "weight": n.dtype(self.weight) if self.weight is not None else None,
            "weight_offset": self.weight_offset,
            "rounds_before_weight": self.round_to,
            "bias": n.dtype(self.bias) if self.bias is not None else None,
            "rounds_before_bias": self.round_product,
            "computes_in": self.compute_dtype,
            "x_dtype": n.dtype(self.x),
            "out_dtype": self.out_dtype,
        }

    def eps_arguments(self) -> dict[str, Any]:
        if isinstance(self.eps, fx.Node):
            return {"eps_tensor": self.eps, "eps": 0.0}
        return {"eps_tensor": None, "eps": self.eps}


def read_fused(node: fx.Node) -> RMS | str:
    """`aten._fused_rms_norm(x, [D], weight, eps)`, as F.rms_norm reaches a GPU build's graph."""
    x, dims = n.argument(node), n.arg(node, 1)
    weight = n.arg(node, 2) if len(node.args) > 2 else None
    eps = n.arg(node, 3) if len(node.args) > 3 else None
    if not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return f"it normalises over {len(dims) if isinstance(dims, (list, tuple)) else dims} dimensions"
    if [u for u in node.users if u.args[1] != 0 and u.users]:
        return "its rsqrt is used outside the norm, as for a backward pass"
    result = n.get_item(node, 0)
    if result is None:
        return "its result is not used"
    in_dtype = n.tensor(x).dtype
    if eps is None:
        eps = torch.finfo(torch.float32 if in_dtype in n.LOW_PRECISION else in_dtype).eps
    if not isinstance(eps, float):
        return f"eps is {eps!r}"
    rms = RMS(node, x, eps, result, "F.rms_norm", weight=weight, nodes={node, *node.users})
    rms.compute_dtype = torch.float64 if in_dtype is torch.float64 else torch.float32
    return rms


def read(rsqrt: fx.Node) -> RMS | str | None:
    """An RMSNorm around an rsqrt. None: not an RMSNorm at all; a string: why it can't be taken."""
    head = _mean_of_square(n.argument(rsqrt))
    if head is None:
        return None
    wide, eps, nodes = head
    nodes.add(rsqrt)
    rank = len(n.shape(wide))
    mean = next(m for m in nodes if n.is_call(m, aten.mean.dim))
    if not n.is_last_dim(mean.args[1], rank):
        return f"it normalises over dims {mean.args[1]}, not over the last one"
    x = n.through_widening(wide)
    product = n.only_user(rsqrt)
    if product is None:
        return "its rsqrt is used outside the norm, as for a backward pass"
    pre = _normalised(product, rsqrt, x)
    if pre is None:
        return "the inverse root mean square does not multiply the norm's own input"
    weight_inside, extra = pre
    nodes |= extra | {product}
    rms = RMS(rsqrt, x, eps, product, "", compute_dtype=n.tensor(rsqrt).dtype, nodes=nodes)
    if weight_inside is not None:
        rms.weight, rms.weight_first = n.through_widening(weight_inside), True
        rms.nodes |= _casts_between(weight_inside, rms.weight)
    _walk_tail(rms)
    rms.nodes |= _casts_of(x, rms.nodes)
    rms.spelling = _spelling(rms, mean, product, x)
    return rms


def with_bias(rms: RMS) -> RMS:
    """The norm with the vector that alone is added to its result and, behind it, a rounding; or as it is."""
    add = n.only_user(rms.result)
    if not n.is_call(add, aten.add.Tensor) or not n.alpha_is_one(add):
        return rms
    normed, dims = rms.result, n.shape(rms.result)
    for found, other in n.operands(add):
        # A tensor of the result's own shape is a residual, were it of one row.
        if found is not normed or not n.is_vector_of(other, rms.size) or n.same_shape(n.shape(other), dims):
            continue
        if n.dtype(other) not in n.FLOATING or len(n.shape(add)) != len(dims):
            continue
        bias = n.through_widening(other)
        extended = replace(rms, bias=bias, nodes=rms.nodes | _casts_between(other, bias))
        extended.round_product = n.dtype(normed) if n.dtype(normed) in n.LOW_PRECISION else None
        _advance(extended, add)
        final = _sole_cast(add)
        if final is not None and not n.is_widening(final):
            _advance(extended, final)
        return extended
    return rms


def _mean_of_square(node: fx.Node) -> tuple[fx.Node, float | fx.Node, set[fx.Node]] | None:
    """(f, eps, nodes) of mean(f^2, keepdim) + eps."""
    if n.is_call(node, aten.add.Scalar):
        mean, eps = n.arg(node, 0), n.arg(node, 1)
        pairs = [(mean, eps)]
    elif n.is_call(node, aten.add.Tensor) and n.alpha_is_one(node):
        pairs = list(n.operands(node))
    else:
        return None
    for mean, eps in pairs:
        if not n.is_call(mean, aten.mean.dim) or len(mean.args) < 3 or mean.args[2] is not True:
            continue
        square = n.arg(mean, 0)
        if (n.is_call(square, aten.pow.Tensor_Scalar) and square.args[1] == 2) or (
            n.is_call(square, aten.mul.Tensor) and square.args[0] is square.args[1]
        ):
            f = n.arg(square, 0)
        else:
            continue
        if n.is_scalar(eps):
            return f, float(eps), {node, mean, square}
        if isinstance(eps, fx.Node) and n.shape(eps) == () and n.value(eps) is not None:
            # Under dynamic=True a module's eps is a 0-d tensor, cast once or twice on its way here.
            while n.is_cast(eps):
                eps = n.arg(eps, 0)
            return f, eps, {node, mean, square}
    return None


def _normalised(product: fx.Node, rsqrt: fx.Node, x: fx.Node) -> tuple[fx.Node | None, set[fx.Node]] | None:
    """Is it x * rstd? Or (weight * x) * rstd: then also the weight. Second: further nodes of the norm."""
    if not n.is_call(product, aten.mul.Tensor):
        return None
    other = n.arg(product, 1) if product.args[0] is rsqrt else n.arg(product, 0)
    if n.through_widening(other) is x:
        return None, set()
    if n.is_call(other, aten.mul.Tensor) and n.only_user(other) is product:
        for weight, f in n.operands(other):
            if n.through_widening(f) is x and n.is_vector_of(weight, n.shape(x)[-1]):
                return weight, {other}
    return None


def _walk_tail(rms: RMS) -> None:
    """Past the product: an optional rounding, an optional weight, an optional cast."""
    rounding = _sole_cast(rms.result)
    after = rounding if rounding is not None else rms.result
    multiply = n.only_user(after) if rms.weight is None else None
    weight = _weight_of(multiply, after, rms.size) if multiply is not None else None
    if multiply is None or weight is None:
        if rounding is not None:
            _advance(rms, rounding)
        return
    rms.weight, rms.weight_offset, weight_nodes = weight
    rms.weight_first = n.is_call(multiply, aten.mul.Tensor) and multiply.args[1] is after
    if rounding is not None:
        if not n.is_widening(rounding):
            rms.round_to = n.tensor(rounding).dtype
        _advance(rms, rounding)
    rms.nodes |= weight_nodes
    _advance(rms, multiply)
    final = _sole_cast(multiply)
    # A widening belongs to what follows, such as a rotation in fp32: it comes after the norm's own rounding.
    if final is not None and not n.is_widening(final):
        _advance(rms, final)


def _advance(rms: RMS, node: fx.Node) -> None:
    rms.nodes.add(node)
    rms.result = node


def _sole_cast(node: fx.Node) -> fx.Node | None:
    """The cast that is the only use of a value; a value used twice is the norm's result as it is."""
    user = n.only_user(node)
    return user if user is not None and n.is_cast(user) else None


def _weight_of(multiply: fx.Node, normed: fx.Node, size: Any) -> tuple[fx.Node, float, set[fx.Node]] | None:
    """(weight, offset, nodes) where the node multiplies the normed value by a vector of the last dim."""
    if not n.is_call(multiply, aten.mul.Tensor) or len(n.shape(multiply)) != len(n.shape(normed)):
        return None
    for found, other in n.operands(multiply):
        if found is not normed or not isinstance(other, fx.Node) or not n.is_vector_of(other, size):
            continue
        plain = n.through_widening(other)
        if len(n.shape(other)) > 1 and adds_one(plain):
            # (1 + scale) of one sample: a modulation, which idioms/norms/chains.py reads.
            continue
        shifted = _one_plus(plain)
        if shifted is not None:
            weight = n.through_widening(shifted)
            return weight, 1.0, {plain} | _casts_between(other, plain) | _casts_between(shifted, weight)
        return plain, 0.0, _casts_between(other, plain)
    return None


def _one_plus(node: Any) -> fx.Node | None:
    """w of 1 + w, computed in fp32 or wider (in bf16 the sum is rounded, which the kernel would not do)."""
    if n.dtype(node) in n.LOW_PRECISION:
        return None
    return adds_one(node)


def adds_one(node: Any) -> fx.Node | None:
    """s of 1 + s, in whichever dtype."""
    if n.is_call(node, aten.add.Tensor, aten.add.Scalar) and n.alpha_is_one(node):
        for term, one in n.operands(node):
            if isinstance(term, fx.Node) and n.is_scalar(one) and one == 1:
                return term
    return None


def _casts_between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The casts from `start` up to, not including, `end`; only those that nothing else uses."""
    found = set()
    node = start
    while node is not end:
        if len(node.users) == 1:
            found.add(node)
        node = n.argument(node)
    return found


def _casts_of(x: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """Widening casts of x that only the norm uses: they die with it."""
    return {u for u in x.users if n.is_widening(u) and all(v in inside for v in u.users)}


def _spelling(rms: RMS, mean: fx.Node, product: fx.Node, x: fx.Node) -> str:
    """A name for people; nothing depends on it."""
    raw = x in product.args and n.tensor(x).dtype in n.LOW_PRECISION
    if rms.weight_offset:
        return "Gemma (1 + weight)"
    if rms.round_to is None:
        return "torch.nn.RMSNorm" if rms.weight is None or not raw else "Mochi"
    if rms.weight_first:
        return "T5" if raw else "Llama"
    return "diffusers RMSNorm" if raw else "rounded before the weight"


def dying_casts(start: object, inside: set[fx.Node]) -> set[fx.Node]:
    """The widening casts from `start` upwards that nothing outside `inside` uses: they die with it."""
    found: set[fx.Node] = set()
    node = start
    while n.is_widening(node) and all(user in inside or user in found for user in node.users):
        found.add(node)
        node = node.args[0]
    return found

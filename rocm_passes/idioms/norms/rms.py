"""The RMS part of a norm, read off the graph: shared by every idiom that contains an RMSNorm.

rms_formula.py has the spellings of the statistic. What stands behind it:

    y = x * rstd        or x / rms, (weight * x) * rstd, (weight * rstd) * x
    y = y * sqrt(D)     where the statistic is the row's length (F.normalize)
    y = y.to(T)         or not
    y = y * weight      in either order; weight, weight.float() or 1 + weight; or none
    y = y.to(T)         or not
    y = y + bias        or not; read by `with_bias`, for idioms that have a place for it
    y = y.to(T)         or not
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.collectives import is_collective
from rocm_passes.fx.matching import Bound, Trace
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.norms.rms_formula import (
    BIASED,
    CANDIDATE,
    NORM,
    PLAIN_WEIGHT,
    SCALED,
    SCALED_BY,
    WEIGHTED,
)
from rocm_passes.idioms.norms.rows import (
    advance,
    compute_dtype,
    dying,
    keeps_rows,
    last_dim,
    past_rounding,
    products,
    rounds_inside,
    sole_cast,
)

#: How many nodes may stand between a root and the collective that took the ranks' means together.
_STEPS = 6


@dataclass
class RMS:
    """An RMSNorm as the graph spells it.

    x: before any widening cast. eps: a float, or a 0-d tensor node. eps_kind: how it guards the
    root, as the operator has it. weight: a vector of the last dim, before widening casts, or None;
    weight_offset: 1.0 for Gemma's (1 + weight). round_to: the dtype that the normalised value is
    rounded to before the weight, or None. bias: as the weight; round_product: the dtype that the
    value is rounded to before the bias, or None. rounds_between: the graph rounds elsewhere than
    the operator does. result: the last node; nodes: all of them.
    """

    anchor: fx.Node
    x: fx.Node
    eps: float | fx.Node
    result: fx.Node
    spelling: str
    eps_kind: str = "add"
    weight: fx.Node | None = None
    weight_offset: float = 0.0
    weight_first: bool = False
    round_to: torch.dtype | None = None
    bias: fx.Node | None = None
    round_product: torch.dtype | None = None
    rounds_between: bool = False
    compute_dtype: torch.dtype = torch.float32
    nodes: set[fx.Node] = field(default_factory=set)

    @property
    def size(self) -> Any:
        return n.shape(self.x)[-1]

    @property
    def out_dtype(self) -> torch.dtype:
        return n.tensor(self.result).dtype

    def parameters(self) -> dict[str, Any]:
        found = {
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
        return found if self.eps_kind == "add" else {**found, "eps_kind": self.eps_kind}

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
        return (
            f"it normalises over {len(dims) if isinstance(dims, (list, tuple)) else dims} "
            "dimensions"
        )
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


def read(root: fx.Node) -> RMS | str | None:
    """An RMSNorm around a root. None: not an RMSNorm at all; a string: why it can't be taken."""
    candidate = CANDIDATE.match(root.args[0], Trace(keeps_rows))
    if candidate is None:
        return _across_ranks(root)
    if _is_channel_norms(root, candidate):
        return None
    reduced = candidate.get("reduced")
    wrong = last_dim(root, replace(candidate, node=reduced)) if reduced is not None else None
    if wrong is not None:
        return wrong if _averages(candidate) else None
    if n.only_user(root) is None and _averages(candidate):
        return "its rsqrt is used outside the norm, as for a backward pass"
    trace = Trace(keeps_rows)
    for product in products(root):
        found = NORM.match(product, trace)
        if found is not None and root in found.nodes:
            return _read(root, product, found)
    if not _averages(candidate):
        # The length of a vector has other uses than a norm.
        return None
    return f"the inverse root mean square does not multiply the norm's own input: {trace.reason}"


def _across_ranks(root: fx.Node) -> str | None:
    """Why a norm of rows that are sharded over ranks is not taken; None where there is none.

    Each rank's mean of squares is summed or averaged by a collective, and then multiplies x.
    """
    node: object = root.args[0]
    for _ in range(_STEPS):
        if not isinstance(node, fx.Node) or not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
        if is_collective(node):
            break
    else:
        return None
    found = SCALED.match(node.all_input_nodes[0], Trace(keeps_rows))
    if found is None or not any(_multiplies(p, found["x"]) for p in products(root)):
        return None
    return (
        f"its rows are sharded over ranks, whose means {node.name} takes together: no kernel waits "
        "for a collective within a norm"
    )


def _multiplies(product: fx.Node, x: fx.Node) -> bool:
    """Is x, or x times a weight, a factor?"""
    factors = [n.through_widening(a) for a in product.args if isinstance(a, fx.Node)]
    return any(f is x or x in map(n.through_widening, f.all_input_nodes) for f in factors)


def _averages(candidate: Bound) -> bool:
    return n.is_call(candidate.get("reduced"), aten.mean.dim)


def _is_channel_norms(root: fx.Node, candidate: Bound) -> bool:
    """Is it for idioms/norms/channel_norm.py to read?"""
    reduced = candidate.get("reduced")
    if reduced is None or n.is_call(root, aten.rsqrt.default):
        return False
    rank = len(n.shape(reduced.args[0]))
    return rank >= 4 and [n.normalised_dim(d, rank) for d in n.arg(reduced, 1)] == [1]


def _read(root: fx.Node, product: fx.Node, found: Bound) -> RMS | str:
    x, weight, size = found["x"], found.get("weight"), n.shape(found["x"])[-1]
    if not n.same_shape(n.shape(product), n.shape(x)):
        return f"the norm is {list(n.shape(product))}, and x is {list(n.shape(x))}"
    if weight is not None and not n.is_vector_of(weight, size):
        return f"the weight inside it is {list(n.shape(weight))}"
    if n.dtype(x) not in n.LOW_PRECISION and any(_rounds(node) for node in found.nodes):
        return f"its statistic is rounded to 16 bits, and x is {n.dtype(x)}"
    eps = _eps(found)
    if isinstance(eps, str):
        return eps
    kind, value, owed = eps
    rms = RMS(root, x, value, product, "", kind, weight=weight, weight_first=weight is not None)
    rms.nodes = set(found.nodes)
    rms.compute_dtype = compute_dtype(found.nodes, root)
    rms.rounds_between = not found.get("as_computed") or rounds_inside(found.nodes - {product})
    passed = set(found.passed)
    if not _walk_tail(rms, owed, passed):
        return f"it divides by the length of a row, and nothing multiplies it by {owed}"
    rms.nodes |= dying(passed, rms.nodes)
    rms.nodes |= _casts_of(x, rms.nodes)
    rms.spelling = _spelling(rms, product, x)
    return rms


def _rounds(node: fx.Node) -> bool:
    return n.is_cast(node) and not n.is_widening(node)


def _eps(found: Bound) -> tuple[str, float | fx.Node, float | None] | str:
    """(kind, eps, owed) as the operator guards the root mean square; owed: what must still multiply
    the norm.
    """
    kind, eps = found["eps_kind"], found.get("eps")
    if kind in ("add", "clamp", "after_root"):
        return kind, eps, None
    if kind == "none":
        return "it has no eps"
    size = n.static_int(n.shape(found["x"])[-1])
    if not isinstance(eps, float) or size is None:
        return "its eps is a tensor, or its rows have a symbolic size"
    if size == 0:
        return "its rows are empty"
    if kind == "clamp_root":
        kind, eps, owed = "clamp", eps * eps, None
    elif kind == "clamp_length":
        kind, eps, owed = "clamp", eps * eps / size, math.sqrt(size)
    else:
        kind, eps, owed = "after_root", eps / math.sqrt(size), math.sqrt(size)
    if eps < torch.finfo(torch.float32).tiny:
        return f"its eps, {found['eps']}, is too small to be squared in float32"
    return kind, eps, owed


def with_bias(rms: RMS) -> RMS:
    """The norm with the vector that alone is added to its result and, behind it, a rounding; or as
    it is.
    """
    add, normed = n.only_user(rms.result), rms.result
    found = BIASED.match(add, here=normed)
    if add is None or found is None:
        return rms
    bias, dims = found["bias"], n.shape(normed)
    # A tensor of the result's own shape is a residual, were it of one row.
    if not n.is_vector_of(bias, rms.size) or n.same_shape(n.shape(bias), dims):
        return rms
    if n.dtype(found["given"]) not in n.FLOATING or len(n.shape(add)) != len(dims):
        return rms
    extended = replace(rms, bias=bias, nodes=set(rms.nodes))
    extended.round_product = n.dtype(normed) if n.dtype(normed) in n.LOW_PRECISION else None
    advance(extended, add)
    past_rounding(extended)
    extended.nodes |= dying(found.passed, extended.nodes)
    return extended


def _walk_tail(rms: RMS, owed: float | None, passed: set[fx.Node]) -> bool:
    """Past the product: what is owed, an optional rounding, an optional weight, an optional cast.

    Returns False where what is owed is not there. A cast to a dtype that no kernel writes stays
    outside.
    """
    owed = _pay(rms, owed)
    rounding = sole_cast(rms.result)
    if rounding is not None and n.dtype(rounding) not in n.FLOATING:
        return owed is None
    after = rounding if rounding is not None else rms.result
    multiply = n.only_user(after) if rms.weight is None else None
    found = _weight_of(multiply, after, rms.size) if multiply is not None else None
    if multiply is None or found is None:
        # A widening belongs to what follows, such as a rotation in fp32: it comes after the norm's
        # own rounding.
        if rounding is not None and not n.is_widening(rounding):
            advance(rms, rounding)
        return owed is None
    rms.weight, rms.weight_offset = found["weight"], found.get("offset", 0.0)
    rms.weight_first = multiply.args[1] is after
    if rounding is not None:
        if not n.is_widening(rounding):
            rms.round_to = n.tensor(rounding).dtype
        advance(rms, rounding)
    advance(rms, multiply)
    # 1 + weight may serve another norm as well.
    passed |= found.passed | (found.nodes - {multiply})
    owed = _pay(rms, owed)
    past_rounding(rms)
    return owed is None


def _pay(rms: RMS, owed: float | None) -> float | None:
    """Past the number that is owed, if it stands here."""
    step = n.only_user(rms.result) if owed is not None else None
    found = SCALED_BY.match(step, here=rms.result)
    if step is None or owed is None or found is None or not isinstance(found["count"], float):
        return owed
    if not math.isclose(found["count"], owed, rel_tol=1e-7):
        return owed
    advance(rms, step)
    return None


def _weight_of(multiply: fx.Node, normed: fx.Node, size: Any) -> Bound | None:
    """The weight where the node multiplies the normed value by a vector of the last dim."""
    if len(n.shape(multiply)) != len(n.shape(normed)):
        return None
    found = WEIGHTED.match(multiply, here=normed)
    if found is None or not n.is_vector_of(found["factor"], size):
        return None
    if n.dtype(found["factor"]) not in n.FLOATING:
        return None
    if "offset" in found.values:
        if len(n.shape(found["factor"])) > 1:
            # (1 + scale) of one sample: a modulation, which modulation.py reads.
            return None
        if n.dtype(n.through_widening(found["factor"])) in n.LOW_PRECISION:
            # The sum is rounded, which the kernel would not do: it is the weight itself.
            return PLAIN_WEIGHT.match(multiply, here=normed)
    return found


def _casts_of(x: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """Widening casts of x that only the norm uses: they die with it."""
    return {u for u in x.users if n.is_widening(u) and all(v in inside for v in u.users)}


def _spelling(rms: RMS, product: fx.Node, x: fx.Node) -> str:
    """A name for people; nothing depends on it."""
    raw = x in product.args and n.tensor(x).dtype in n.LOW_PRECISION
    if rms.weight_offset:
        return "Gemma (1 + weight)"
    if rms.round_to is None:
        return "torch.nn.RMSNorm" if rms.weight is None or not raw else "Mochi"
    if rms.weight_first:
        return "T5" if raw else "Llama"
    return "diffusers RMSNorm" if raw else "rounded before the weight"

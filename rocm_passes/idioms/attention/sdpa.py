"""Attention that torch has chosen a kernel for: one node of `_scaled_dot_product_*`.

Which kernel it is was decided when the graph was traced, from the device, the dtype, the head size,
the mask and the `sdpa_kernel` context. On ROCm builds that is flash or efficient attention, else
the graph spells attention out (spelled.py).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.attention.operands import Read, key_heads, refusal


@dataclass(frozen=True)
class Kernel:
    """A kernel's name in a call, and where its arguments stand behind q, k and v."""

    name: str
    arguments: tuple[str, ...]


_BIASED = ("bias", "lse", "dropout", "causal", "debug")
KERNELS: dict[Any, Kernel] = {
    aten._scaled_dot_product_flash_attention.default: Kernel(
        "flash", ("dropout", "causal", "debug")
    ),
    aten._scaled_dot_product_efficient_attention.default: Kernel("efficient", _BIASED[:4]),
    aten._scaled_dot_product_cudnn_attention.default: Kernel("cudnn", _BIASED),
    aten._scaled_dot_product_fused_attention_overrideable.default: Kernel(
        "overrideable", ("bias", "dropout", "causal", "debug")
    ),
    aten._scaled_dot_product_flash_attention_for_cpu.default: Kernel("cpu", ("dropout", "causal")),
}
#: The keywords of the operators, by the names above.
KEYWORDS = {
    "attn_bias": "bias",
    "attn_mask": "bias",
    "compute_log_sumexp": "lse",
    "dropout_p": "dropout",
    "is_causal": "causal",
    "return_debug_mask": "debug",
    "scale": "scale",
}


def quantised() -> list[Any]:
    """Overloads that read 8 bits; torch 2.11 has none."""
    packet = aten._scaled_dot_product_flash_attention
    return [packet.quantized] if "quantized" in packet.overloads() else []


def read(node: fx.Node) -> Read | str:
    """The call at a node of KERNELS, or why it is left as it is."""
    kernel = KERNELS[node.target]
    q, k, v = (n.argument(node, i) for i in range(3))
    given: dict[str, Any] = dict(zip(kernel.arguments, node.args[3:], strict=False))
    given |= {KEYWORDS[name]: value for name, value in node.kwargs.items()}
    if given.get("dropout", 0.0) != 0.0:
        return f"it drops weights at random: dropout_p={given['dropout']}"
    if given.get("debug", False):
        return "the graph asks for the weights: return_debug_mask=True"
    others = [u for u in node.users if n.is_call(u, operator.getitem) and u.args[1] != 0]
    if any(u.users for u in others):
        return "its logsumexp is read, which a backward pass needs"
    out = n.get_item(node, 0)
    if out is None:
        return "its result is read several times, or not at all"
    reason = refusal(q, k, v, given.get("bias"))
    if reason is not None:
        return reason
    scale = given.get("scale")
    if scale is None:
        width = n.static_int(n.shape(q)[3])
        scale = width**-0.5 if width else None
    if not isinstance(scale, (int, float)):
        return "its scale is not known at compile time"
    nodes = frozenset({node, out, *others})
    return Read(
        out,
        nodes,
        q,
        *key_heads(k, v),
        given.get("bias"),
        float(scale),
        bool(given.get("causal", False)),
        kernel.name,
    )

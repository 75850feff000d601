"""Attention by torch's own operators: the graph's kernel again, or in float32 tile by tile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rocm_passes.fx.nodes import FLOATING
from rocm_passes.ops.attention import ATTENTION, Attention, in_tiles
from rocm_passes.ops.attention_known import known_wrong
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target

aten = torch.ops.aten

#: The operator of each kernel, and what stands between v and the scale, of a call without dropout.
SDPA = {
    "flash": (
        aten._scaled_dot_product_flash_attention.default,
        lambda bias, causal: ((0.0, causal, False), {}),
    ),
    "efficient": (
        aten._scaled_dot_product_efficient_attention.default,
        lambda bias, causal: ((bias, False, 0.0, causal), {}),
    ),
    "cudnn": (
        aten._scaled_dot_product_cudnn_attention.default,
        lambda bias, causal: ((bias, False, 0.0, causal, False), {}),
    ),
    "overrideable": (
        aten._scaled_dot_product_fused_attention_overrideable.default,
        lambda bias, causal: ((bias, 0.0, causal, False), {}),
    ),
    "cpu": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        lambda bias, causal: ((0.0, causal), {"attn_mask": bias}),
    ),
}


def refuses_sdpa(call: Attention, target: Target) -> str | None:
    if call.kernel not in SDPA:
        return "the graph spells the attention out: torch had no kernel for it here"
    known = known_wrong(call.kernel, call.q.shape[3], target.arch)
    return f"{known.said} ({known.report})" if known else None


def write_sdpa(b: Any, call: Attention) -> Any:
    """The graph's operator again, of a v in k's order of dims (ROCm/pytorch#3230)."""
    operator, between = SDPA[call.kernel]
    arguments, keywords = between(call.bias, call.causal)
    v = call.v
    if replace(call, k=b.value(call.k), v=b.value(v)).v_lies_unlike_k():
        v = b(aten.clone.default, v, memory_format=torch.contiguous_format)
    found = b(operator, call.q, call.k, v, *arguments, scale=call.scale, **keywords)
    return b.item(found, 0)


def refuses_chunked(call: Attention, target: Target) -> str | None:
    if call.q.dtype not in FLOATING:
        return f"it computes in float32, and q is {call.q.dtype}"
    return None


def note_chunked(call: Attention, target: Target) -> str | None:
    if call.kernel == "math":
        return "it sums in another order than the graph"
    return "it computes in float32, where the graph's kernel rounds its weights"


SDPA_AGAIN = ATTENTION.register(Lowering("sdpa", refuses=refuses_sdpa, write=write_sdpa))
CHUNKED = ATTENTION.register(
    Lowering("chunked", refuses=refuses_chunked, note=note_chunked, run=in_tiles)
)

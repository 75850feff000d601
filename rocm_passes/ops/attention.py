"""Attention: softmax(scale * q k^T + bias) v. Vaswani et al., 2017, arXiv:1706.03762."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.fx.nodes import aten, dtype_name, known
from rocm_passes.ops.attention_tiles import attend
from rocm_passes.ops.operator import Call, Operator

#: torch's own kernels, as they stand in a graph.
SDPA_KERNELS = frozenset(
    {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_fused_attention_overrideable.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


@dataclass(frozen=True)
class Attention(Call):
    """Attention of q [B, H, Sq, D] to k [B, Hk, Sk, D] and v [B, Hk, Sk, Dv], all of one dtype.

    Returns [B, H, Sq, Dv] in q's dtype, in memory [B, Sq, H, Dv]. Query head h reads key head
    h // (H / Hk). A row that no key may be seen from is 0.
    bias: added to the scaled scores, broadcast to [B, H, Sq, Sk], or None. causal: query i sees
    keys 0 to i, whatever the lengths are (torch's `is_causal`).
    memory_mib: MiB beside the tensors that a computation in tiles keeps to.
    kernel: what computed it in the graph: "flash", "efficient", "cudnn", "overrideable", "cpu", or
    "math" where the graph spells it out.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    scale: float
    causal: bool
    memory_mib: float
    kernel: str

    def prepared(self, b: Any) -> Attention:
        """Heads of k and v that an expand repeats are read once."""
        k, v = b.value(self.k), b.value(self.v)
        if not all(known(t.shape[1] > 1) and known(t.stride(1) == 0) for t in (k, v)):
            return self
        first = (b(aten.slice.Tensor, t, 1, 0, 1) for t in (self.k, self.v))
        return replace(self, **dict(zip(("k", "v"), first, strict=True)))

    @property
    def channels_last(self) -> bool:
        """As of convolutions that are measured: its operands are no images."""
        return False

    def scores_mib(self) -> float:
        """All scores of a call with numbers for sizes, in float32."""
        return math.prod(self.q.shape[:3]) * self.k.shape[2] * 4 / 2**20

    def v_lies_unlike_k(self) -> bool:
        """Do the dims of k and v stand in another order in memory? Unknown strides count as
        alike.
        """
        return _order(self.k) != _order(self.v)

    def flops(self) -> float:
        """Floating-point operations of the two products, of a call with numbers for sizes."""
        widths = self.q.shape[3] + self.v.shape[3]
        return float(2 * math.prod(self.q.shape[:3]) * self.k.shape[2] * widths)

    def key(self) -> str:
        """The call in words, as the file of measured choices names it."""
        dtype = dtype_name(self.q.dtype)
        q, k, v = ("x".join(map(str, t.shape)) for t in (self.q, self.k, self.v))
        causal = " causal" if self.causal else ""
        return f"attention {dtype} q {q} k {k} v {v} by {self.kernel}{causal}"


def _order(t: Tensor) -> list[int]:
    """The dims from the farthest apart in memory to the nearest; [] where that is symbolic."""
    if not all(isinstance(s, int) for s in (*t.shape, *t.stride())):
        return []
    dims = [d for d in range(t.dim()) if t.shape[d] > 1]
    return sorted(dims, key=lambda d: (-int(t.stride()[d]), d))


def reference(call: Attention) -> Tensor:
    """In float32 and in tiles: no more than `memory_mib` is held, however long the sequences are.

    On a GPU it runs where a library's kernel failed, and torch's own is the nearest to that.
    """
    if call.q.is_cuda and call.bias is None:
        grouped = call.q.shape[1] != call.k.shape[1]
        out = F.scaled_dot_product_attention(
            call.q, call.k, call.v, is_causal=call.causal, scale=call.scale, enable_gqa=grouped
        )
        return out.transpose(1, 2).contiguous().transpose(1, 2)
    return in_tiles(call)


def in_tiles(call: Attention) -> Tensor:
    return attend(call.q, call.k, call.v, call.bias, call.scale, call.causal, mib=call.memory_mib)


def fake(call: Attention) -> Tensor:
    batch, heads, queries, _ = call.q.shape
    shape = (batch, queries, heads, call.v.shape[3])
    return torch.empty(shape, dtype=call.q.dtype, device=call.q.device).transpose(1, 2)


ATTENTION = Operator("attention", Attention, reference, fake)

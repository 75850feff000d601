"""aiter's attention functions: what they compute, in plain torch on CPU tensors, and what they
would do harm with.

Where the real function would compute something else than attention as torch has it, round without
being asked, build a kernel for minutes, or read beyond its input, the one here raises
ContractViolation. Where the real one raises, so does this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .aiter_harm import hold, insist, span_bytes

#: Of each architecture, the 8-bit dtype that its kernels read.
FP8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}

#: The source of aiter's ops/mha.py, by the version that brought a parameter.
BEFORE_SINKS = """
def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), bias=None,
    alibi_slopes=None, deterministic=True, return_lse=False, return_attn_probs=False,
    how_v3_bf16_cvt=1,
):
    raise AssertionError("kernels of this version misread strides")


def flash_attn_fp8_pertensor_func(q, k, v, causal=False, window_size=(-1, -1), softmax_scale=None):
    raise AssertionError("kernels of this version return 8 bits")
"""
WITH_SINKS = """
def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1, 0), bias=None,
    alibi_slopes=None, deterministic=True, return_lse=False, return_attn_probs=False,
    how_v3_bf16_cvt=1, cu_seqlens_q=None, cu_seqlens_kv=None, sink_ptr=None{more}
):
    given = dict(locals())
    return attention.flash_attn_func(double.machine, given)


def flash_attn_fp8_pertensor_func(
    q, k, v, q_descale, k_descale, v_descale, causal=False, window_size=(-1, -1, 0),
    softmax_scale=None, sink_ptr=None,
):
    given = dict(locals())
    return attention.flash_attn_fp8_pertensor_func(double.machine, given)
"""


def sources(version: tuple[int, ...]) -> str:
    """aiter's ops/mha.py in that version, as far as the adapters use it."""
    head = f"from {__package__} import aiter_attention as attention\n"
    if version < (0, 1, 11):
        return head + BEFORE_SINKS
    return head + WITH_SINKS.format(more=", num_splits=0" if version >= (0, 1, 16) else "")


#: Keywords of the calls that were made, for tests that ask for them.
calls: list[dict[str, Any]] = []


def flash_attn_func(machine: Any, given: dict[str, Any]) -> Tensor:
    """q [B, Sq, H, D], k and v [B, Sk, Hk, D] in bfloat16."""
    q, k, v = operands(machine, given)
    calls.append({name: given[name] for name in ("how_v3_bf16_cvt", "causal", "softmax_scale")})
    insist(given["dropout_p"] == 0.0 and given["bias"] is None, "the hand-written kernel has none")
    hold(q.dtype is torch.bfloat16, f"CK kernels for {q.dtype} are built by hipcc at first use")
    hold(given["window_size"][:2] == (-1, -1), "a window of 0 is no absence of one")
    hold(not given["return_lse"], "another module is built for a result with its logsumexp")
    # gfx950 rounds in hardware, to the nearest even number.
    how = 0 if machine.arch == "gfx950" else given["how_v3_bf16_cvt"]
    return attend(q, k, v, given, lambda x: in_bfloat16(x, how))


def flash_attn_fp8_pertensor_func(machine: Any, given: dict[str, Any]) -> Tensor:
    q, k, v = operands(machine, given)
    dtype = FP8[machine.arch]
    hold(q.dtype is dtype, f"the bits of {q.dtype} are read as {dtype}")
    scales = [given[f"{name}_descale"] for name in "qkv"]
    for scale in scales:
        insist(scale.shape == (1,), "CK kernels are built for other scales")
        hold(scale.dtype is torch.float32, "the bits of a scale are read as float32")
    group = q.shape[2] // k.shape[2]
    hold(not group & (group - 1), "the shift of heads is taken from a table of powers of 2")
    wide = (t.to(torch.float32) * s for t, s in zip((q, k, v), scales, strict=True))
    most = torch.finfo(dtype).max
    return attend(*wide, given, lambda x: x.clamp(max=most).to(dtype).to(torch.float32))


def operands(machine: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = given["q"], given["k"], given["v"]
    for t in (q, k, v):
        hold(not isinstance(t, FakeTensor), "a fake tensor has no memory")
        hold(t.dim() == 4, "sizes are read off four dims")
        hold(t.numel() > 0, "empty: a grid of 0 blocks leaves a sticky launch error")
        hold(t.dtype == q.dtype, f"the bits of {t.dtype} are read as {q.dtype}")
        hold(t.stride(3) == 1, "rows are copied first, unasked")
        hold(0 not in t.stride(), "strides of 0 are not tested")
        hold(not any(s % 8 for s in t.stride()[:3]), "vectors that begin between words")
        hold(span_bytes(t) < 2**31, "32-bit byte offset overflows")
        hold(not (t.requires_grad and torch.is_grad_enabled()), "it saves tensors for a backward")
        hold(t.shape[3] == 128, "CK kernels are built by hipcc at first use, and truncate")
    hold(machine.arch in FP8, "there is no hand-written kernel")
    hold(q.shape[1] > 128, "CK kernels are built by hipcc at first use, and truncate")
    hold(k.shape[:3] == v.shape[:3] and q.shape[0] == k.shape[0], "sizes are read off v and q")
    hold(q.shape[2] % k.shape[2] == 0, "heads without keys")
    insist(given["sink_ptr"] is None, "no sinks")
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any], rounded: Any) -> Tensor:
    """In float32; the weights are rounded before they meet v, their sum is not."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (t.to(torch.float32).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * given["softmax_scale"]
    if given["causal"]:
        # Aligned to the last query and key.
        ahead = scores.shape[3] - scores.shape[2]
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1 + ahead)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = (scores - scores.amax(3, keepdim=True)).nan_to_num(nan=-torch.inf).exp()
    result = rounded(weights) @ v / weights.sum(3, keepdim=True)
    return result.nan_to_num(nan=0.0).to(torch.bfloat16).transpose(1, 2).contiguous()


def in_bfloat16(x: Tensor, how: int) -> Tensor:
    """Rounded to the nearest even (0), to the nearest with ties away from 0 (1), towards 0 (2)."""
    if how == 0:
        return x.to(torch.bfloat16).to(torch.float32)
    bits = x.view(torch.int32)
    return ((bits + (0x8000 if how == 1 else 0)) & ~0xFFFF).view(torch.float32)

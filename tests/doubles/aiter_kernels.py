"""What aiter's functions compute, in plain torch on CPU tensors, and what they would destroy.

Where the real function aborts the process, reinterprets bits, reads or writes out of bounds, or
leaves memory uninitialised, the one here raises ContractViolation. Where the real one raises, so
does this one.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .aiter_convolutions import Pack, flydsl_conv, triton_conv
from .aiter_harm import (
    FLOATS,
    HALVES,
    ContractViolation,
    Logged,
    hold,
    insist,
    logged,
    parameter,
    reachable,
    same_bits,
    single,
)


@dataclass(frozen=True)
class Machine:
    """One version of aiter on one architecture.

    log: every call, in order. compiled: calls of convolutions that have been compiled. capturing: a
    graph is being captured.
    """

    version: tuple[int, ...]
    arch: str
    truncating: bool
    log: list[Logged] = field(default_factory=list, compare=False)
    compiled: set[str] = field(default_factory=set, compare=False)
    capturing: list[bool] = field(default_factory=list, compare=False)

    def refuse(self, dies_since: tuple[int, ...], message: str) -> None:
        """A failed check in C++: an exception in old versions, the end of the process in
        new ones.
        """
        if self.version < dies_since:
            raise RuntimeError(message)
        raise ContractViolation(f"aborts: {message}")

    def store(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """RMSNorm's store: to nearest, but towards zero for bfloat16 where there is no hardware for
        it.
        """
        if dtype == torch.bfloat16 and self.truncating:
            bits = value.contiguous().view(torch.int32) & -65536
            return bits.view(torch.float32).to(dtype)
        return value.to(dtype)

    def compile_hip(self) -> None:
        """Without Composable Kernel's headers RDNA 3 is not recognised."""
        hold(
            os.environ.get("ENABLE_CK") != "0" or not self.arch.startswith("gfx11"),
            "stores are dropped",
        )

    def compile_ck(self) -> None:
        if os.environ.get("ENABLE_CK") == "0":
            raise RuntimeError("module_norm has no sources")
        hold(self.arch.startswith("gfx9"), "CK faults on RDNA")

    # RMSNorm

    @logged
    def rmsnorm2d_fwd(self, input: Tensor, weight: Tensor, epsilon: float, mode: int) -> Tensor:
        out = torch.empty_like(input)
        self._rms_norm(out, input, None, None, weight, epsilon, mode)
        return out

    @logged
    def rmsnorm2d_fwd_with_add(
        self,
        out: Tensor,
        input: Tensor,
        residual_in: Tensor,
        residual_out: Tensor,
        weight: Tensor,
        epsilon: float,
        gemma_norm: bool,
        mode: int,
    ) -> None:
        hold(out.dtype == input.dtype, "the output is written in another dtype")
        self._rms_norm(out, input, residual_in, residual_out, weight, epsilon, mode, gemma_norm)

    def _rms_norm(
        self,
        out: Tensor,
        x: Tensor,
        residual: Tensor | None,
        total: Tensor | None,
        weight: Tensor,
        eps: float,
        mode: int,
        gemma: bool = False,
    ) -> None:
        self.compile_hip()
        if self.version >= (0, 1, 18):
            on_hip = mode == 0 and x.dim() == 2 and x.element_size() == 2 and x.shape[-1] <= 8192
        else:
            on_hip = self.version >= (0, 1, 11) and mode == 0 and x.shape[-1] <= 8192
        if on_hip:
            self._check_hip(out, x, residual, total, weight)
        elif self.version >= (0, 1, 18):
            self._check_opus(out, x, residual, total, weight)
        else:
            self._check_ck(x, residual, weight)
        norm, rounded = self._normalised(x, residual, weight, eps, mode, gemma, all_cached=on_hip)
        out.copy_(norm)
        if total is not None:
            total.copy_(rounded)

    def _check_hip(
        self, out: Tensor, x: Tensor, residual: Tensor | None, total: Tensor | None, weight: Tensor
    ) -> None:
        if x.dtype not in HALVES:
            self.refuse((0, 1, 20), f"rmsnorm: {x.dtype}")
        hold(x.dim() == 2, "size(1) and stride(0) are not those of the rows")
        for t in (out, x, residual, total):
            if t is not None:
                hold(
                    t.shape == x.shape, "a tensor of another shape is read or written out of bounds"
                )
                same_bits(t, x)
                reachable(t)
                hold(t.stride(-1) == 1, "the last stride is taken for 1")
                steps = (t.storage_offset(), t.stride(0) if t.shape[0] > 1 else 0)
                hold(not any(n % 2 for n in steps), "a row that does not begin at a whole word")
        hold(x.shape[1] % 2 == 0, "an odd row reads and writes one element of the next")
        parameter(weight, x.shape[1], x)

    def _check_opus(
        self, out: Tensor, x: Tensor, residual: Tensor | None, total: Tensor | None, weight: Tensor
    ) -> None:
        insist(x.dtype in FLOATS, "fp16/bf16/fp32 only")
        insist(weight.dtype == x.dtype and weight.is_contiguous(), "weight dtype or layout")
        insist(weight.shape[-1] == x.shape[-1], "weight length")
        insist(out.dtype == x.dtype and out.is_contiguous(), "bad out")
        hold(weight.dim() == 1, "a weight of another shape is misread")
        if x.shape[-1] == 0:
            raise ZeroDivisionError
        for t in (residual, total):
            if t is not None:
                insist(
                    t.dtype == x.dtype and t.is_contiguous() and t.numel() == x.numel(),
                    "bad residual",
                )
        reachable(x, out)
        # It makes contiguous what has no unit last stride, and steps by stride(-2) through all the
        # rest.
        hold(
            x.dim() <= 2 or x.is_contiguous() or x.stride(-1) != 1,
            "rows of more dimensions are misread",
        )

    def _check_ck(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
        if x.dtype not in HALVES:
            raise RuntimeError(f"ck rmsnorm2d only support fp16 and bf16, not {x.dtype}")
        hold(x.dim() == 2 and x.stride(-1) == 1, "size(-1) and stride(0) are not those of the rows")
        hold(self.arch.startswith("gfx9"), "CK faults on RDNA")
        parameter(weight, x.shape[-1], x)
        reachable(x)
        if residual is not None:
            same_bits(residual, x)
            hold(residual.shape == x.shape, "reads past the end of the residual")

    def _normalised(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        eps: float,
        mode: int,
        gemma: bool,
        all_cached: bool,
    ) -> tuple[Tensor, Tensor]:
        value = single(x)
        if residual is not None:
            value = value + single(residual)
        rounded = self.store(value, x.dtype)
        if mode:
            value = single(rounded)
        rstd = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
        if residual is not None and not all_cached and x.shape[-1] > 8192:
            # Past the registers it reads the rounded sum back; how far they reach depends on the
            # launch.
            value = torch.cat([value[..., :8192], single(rounded)[..., 8192:]], dim=-1)
        value = value * rstd
        if mode:
            value = single(self.store(value, x.dtype))
        value = value * (single(weight) + float(gemma))
        return self.store(value, x.dtype), rounded

    # GroupNorm

    @logged
    def groupnorm_run(
        self, input: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        hold(not isinstance(torch.empty(0), FakeTensor), "the workspace cache keeps a fake tensor")
        samples, channels = input.shape[:2]
        if samples * num_groups == 0:
            raise ZeroDivisionError
        if input.dtype not in FLOATS:
            self.refuse((0, 1, 19), f"groupnorm: {input.dtype}")
        if weight.numel() == 0 or bias.numel() == 0:
            self.refuse((0, 1, 19), "groupnorm requires non-empty affine weight and bias")
        hold(not isinstance(input, FakeTensor) and input.numel() > 0, "no memory to work on")
        hold(input.numel() < 2**32, "uint32 index overflows")
        group = input.numel() // (samples * num_groups)
        hold(group <= 2**32 - 2**24, "the uint32 loop index wraps")
        hold(samples * num_groups <= 65535, "the grid's second dimension overflows")
        hold(channels % num_groups == 0, "groups straddle channels")
        for t in (weight, bias):
            parameter(t.contiguous(), channels, input)
        x = input.contiguous()
        spatial = math.prod(x.shape[2:])
        group = channels // num_groups * spatial
        if group % 4 == 0 and math.ceil(group / 8192) >= 16:
            hold(spatial % 4 == 0, "four elements get the weight of the first one's channel")
        grouped = single(x).reshape(samples, num_groups, -1)
        mean = grouped.mean(-1, keepdim=True)
        variance = grouped.square().mean(-1, keepdim=True) - mean * mean
        out = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(samples, channels, -1)
        out = out * single(weight)[:, None] + single(bias)[:, None]
        return out.reshape(x.shape).to(x.dtype)

    # LayerNorm

    @logged
    def layernorm2d_fwd(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
        x_bias: Tensor | None,
    ) -> Tensor:
        hold(weight is not None and bias is not None, "a missing parameter is dereferenced")
        assert weight is not None and bias is not None and x_bias is None
        if input.dtype not in HALVES:
            raise RuntimeError("ck layernorm2d only support fp16 and bf16 data type")
        self.compile_ck()
        hold(
            input.dim() == 2 and input.stride(-1) == 1,
            "size(-1) and stride(0) are not those of the rows",
        )
        reachable(input)
        parameter(weight, input.shape[1], input)
        parameter(bias, input.shape[1], input)
        norm = torch.nn.functional.layer_norm(single(input), (input.shape[1],), eps=epsilon)
        return (norm * single(weight) + single(bias)).to(input.dtype)

    @logged
    def layernorm2d_fwd_with_add(
        self,
        out: Tensor,
        input: Tensor,
        residual_in: Tensor,
        residual_out: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        x_bias: Tensor | None,
    ) -> None:
        if input.dtype not in HALVES:
            raise RuntimeError("ck layernorm2d only support fp16 and bf16 data type")
        self.compile_ck()
        assert x_bias is None
        for t in (input, residual_in, out, residual_out):
            hold(t.dim() == 2 and t.shape == input.shape, "read or written out of bounds")
            hold(t.stride(-1) == 1, "the last stride is taken for 1")
            same_bits(t, input)
            reachable(t)
        for t in (weight, bias):
            parameter(t, input.shape[1], input)
        total = single(input) + single(residual_in)
        norm = torch.nn.functional.layer_norm(total, (input.shape[1],), eps=epsilon)
        out.copy_((norm * single(weight) + single(bias)).to(input.dtype))
        residual_out.copy_(total.to(input.dtype))

    # Rotation

    @logged
    def rope_cached_fwd(
        self,
        inputs: tuple[Tensor, ...],
        cos: Tensor,
        sin: Tensor,
        style: int,
        reuse: bool,
        nope_first: bool,
    ) -> tuple[Tensor, ...]:
        self.compile_hip()
        x = inputs[0]
        tokens, batch, _, channels = x.shape
        for t in inputs:
            if t.dtype not in FLOATS or t.stride(3) != 1 or style not in (0, 1):
                self.refuse((0, 1, 20), "rope: dtype, last stride or rotate style")
            same_bits(t, x)
            reachable(t)
            sizes = (t.shape[0], t.shape[1], t.shape[3])
            hold(sizes == (tokens, batch, channels), "y is read with the sizes of x")
            steps = [
                stride for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True) if size > 1
            ]
            hold(not any(n % 4 for n in (t.storage_offset(), *steps)), "a misaligned vector load")
        self._check_tables(cos, sin, tokens)
        rotated = cos.shape[3] * (2 if reuse else 1)
        hold(rotated % 2 == 0 and 2 <= rotated <= channels, "rotates past the end of a head")
        hold((channels - rotated) % (4 if style == 1 else 2) == 0, "the tail stays uninitialised")
        hold(not nope_first or rotated == channels, "not modelled")
        return tuple(self._rotated(t, cos, sin, rotated, style, reuse) for t in inputs)

    def _check_tables(self, cos: Tensor, sin: Tensor, tokens: int) -> None:
        for table in (cos, sin):
            hold(table.dim() == 4, "the width of the table is garbage")
            hold(table.is_contiguous(), "the table's strides are ignored")
            hold(table.shape[0] >= tokens, "reads past the end of the table")
            hold(table.shape == (tokens, 1, 1, cos.shape[3]), "the table is read by the wrong rows")
        same_bits(sin, cos)
        if cos.dtype not in FLOATS:
            self.refuse((0, 1, 20), f"rope: cos is {cos.dtype}")

    def _rotated(
        self, x: Tensor, cos: Tensor, sin: Tensor, rotated: int, style: int, reuse: bool
    ) -> Tensor:
        def per_channel(table: Tensor) -> Tensor:
            if not reuse:
                return single(table)
            return (
                single(table).repeat_interleave(2, -1)
                if style == 1
                else single(table).repeat(1, 1, 1, 2)
            )

        value, tail = single(x[..., :rotated]), x[..., rotated:]
        if style == 1:
            partner = torch.stack([-value[..., 1::2], value[..., 0::2]], dim=-1).flatten(-2)
        else:
            partner = torch.cat([-value[..., rotated // 2 :], value[..., : rotated // 2]], dim=-1)
        turned = value * per_channel(cos) + partner * per_channel(sin)
        return torch.cat([turned.to(x.dtype), tail], dim=-1)

    # RMSNorm per head and rotation

    @logged
    def fused_qk_norm_rope_1way(
        self,
        q: Tensor,
        k: Tensor,
        w_q: Tensor,
        w_k: Tensor,
        cos_sin: Tensor,
        sizes: tuple[int, int, int, int, int],
        is_interleaved: bool,
        eps: float,
        out_q: Tensor,
        out_k: Tensor,
    ) -> None:
        batch, tokens, heads_q, heads_k, head_size = sizes
        self.compile_hip()
        hold(self.version >= (0, 1, 17), "the table is read out of bounds")
        hold(
            all(t.is_contiguous() for t in (q, k, w_q, w_k, cos_sin, out_q, out_k)),
            "aborts: not contiguous",
        )
        hold(cos_sin.dtype == torch.float32, "aborts: cos_sin is not float32")
        hold(head_size in (64, 128, 256), "aborts: head size")
        hold(q.dtype in HALVES, "a dtype that was never tested")
        hold(batch <= 65535, "the grid's second dimension overflows")
        for x, out, weight, heads in ((q, out_q, w_q, heads_q), (k, out_k, w_k, heads_k)):
            same_bits(x, q)
            same_bits(out, q)
            hold(
                tuple(x.shape) == (batch, tokens, heads, head_size) == tuple(out.shape),
                "out of bounds",
            )
            reachable(x, out)
            parameter(weight, head_size, q)
            hold(x.storage_offset() % (head_size // 16) == 0, "a misaligned vector load")
            hold(weight.storage_offset() % (head_size // 16) == 0, "a misaligned vector load")
        hold(tuple(cos_sin.shape) == (tokens, head_size), "the table is read out of bounds")
        cos, sin = (half[:, None, None, :] for half in cos_sin.chunk(2, dim=-1))
        for x, out, weight in ((q, out_q, w_q), (k, out_k, w_k)):
            value = single(x)
            rstd = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
            normed = (single((value * rstd).to(x.dtype)) * single(weight)).to(x.dtype)
            turned = self._rotated(
                normed.transpose(0, 1), cos, sin, head_size, int(is_interleaved), True
            )
            out.copy_(turned.transpose(0, 1))

    # Convolution

    @logged
    def triton_conv(
        self,
        kind: str,
        packs: Pack,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parameters: tuple[Any, Any, Any],
        layout: str,
    ) -> Tensor:
        self._compile("triton", kind, x, weight, parameters)
        return triton_conv(
            self.version, self.arch, kind, packs, x, weight, bias, parameters, layout
        )

    @logged
    def flydsl_conv(
        self,
        packs: dict[int, Any],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parameters: tuple[Any, Any, Any],
        groups: int,
        splitk: int | None,
        layouts: tuple[str, str],
    ) -> Tensor:
        self._compile("flydsl", "implicit", x, weight, parameters)
        return flydsl_conv(self.arch, packs, x, weight, bias, parameters, groups, splitk, layouts)

    def _compile(self, *key: Any) -> None:
        """Each new shape is compiled, and its configuration is read from a file."""
        found = str([tuple(k.shape) if isinstance(k, Tensor) else k for k in key])
        hold(found in self.compiled or not self.capturing, "compiles within a graph capture")
        self.compiled.add(found)

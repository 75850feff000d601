"""What a lowering does, run once over real tensors: its timed calls, the bytes that it moves beside
them, and the memory that it holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._inductor import inductor_prims

from rocm_passes.fx.builder import Eager
from rocm_passes.ops.aiter_conv import AITER_CONV
from rocm_passes.ops.attention import ATTENTION, SDPA_KERNELS
from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.ops.operator import Operator

aten = torch.ops.aten

#: The library's own work, our kernel's and aiter's: run and timed.
LIBRARY = frozenset(
    {
        *(aten.convolution.default, aten.mm.default, aten.addmm.default),
        aten._addmm_activation.default,
        *SDPA_KERNELS,
    }
)
#: Operators whose lowering is run without the operator, which has plain torch for where it raises.
CALLED: dict[Any, Operator[Any]] = {AITER_CONV.overload: AITER_CONV, ATTENTION.overload: ATTENTION}
TIMED = LIBRARY | {IMPLICIT_GEMM_CONV.overload, *CALLED}
#: Code that Inductor fuses behind the convolutions: each reads what they wrote.
FUSED = frozenset({torch.ops.prims.convert_element_type.default, aten.add.Tensor, aten.mul.Tensor})

Work = Callable[[], Any]


class Meter(Eager):
    """Runs a lowering over real tensors once: keeps its timed calls, sums up bytes moved and memory
    held.

    counts_layouts: conversions of the memory format are copies that this lowering makes and others
    do not.
    """

    def __init__(self, counts_layouts: bool = False) -> None:
        self._counts_layouts = counts_layouts
        self.work: list[Work] = []
        self.moved = 0
        self.workspace = 0
        self.held = 0
        # Held, so that no later tensor takes their address.
        self._outputs: dict[int, torch.Tensor] = {}
        self._parts: dict[int, torch.Tensor] = {}
        self._beside_parts = 0
        self._fused = False

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target in TIMED:
            return self._timed(target, args, kwargs)
        if target is inductor_prims.force_stride_order:
            return self._in_layout(*args)
        if target is COMPUTED.overload:
            return self._computed(args[0])
        if target in (aten.cat.default, aten.constant_pad_nd.default):
            return self._joined(target, args, kwargs)
        result = target(*args, **kwargs)
        if target in FUSED:
            self._read(args)
            self._fused = True
        elif isinstance(result, torch.Tensor) and not _is_view(result, args):
            self.moved += 2 * _bytes(result)
            self.held += _bytes(result)
        return result

    def finish(self, result: torch.Tensor) -> int:
        """The lowering's extra MiB: what it needs beside its inputs and `result`. Lets go of the
        outputs.
        """
        if self._fused:
            # The fused kernel behind the convolutions writes the result once.
            self.moved += _bytes(result)
        if self._parts:
            # The result is there from the first part on: none of the outputs becomes it.
            held = self.held + self._beside_parts
        else:
            held = self.held + sum(map(_bytes, self._outputs.values())) - _bytes(result)
        self._outputs.clear()
        self._parts.clear()
        return max(0, held, self.workspace + held) // 2**20

    def _timed(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        on_gpu = args[0].is_cuda
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        work: Work = functools.partial(target, *args, **kwargs)
        if target is IMPLICIT_GEMM_CONV.overload:
            work = _launches(args, kwargs)
        elif target in CALLED:
            work = _runs(CALLED[target], args, kwargs)
        result = work()
        if on_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before - _bytes(first_of(result))
            self.workspace = max(self.workspace, peak)
        self.work.append(work)
        self._outputs[first_of(result).untyped_storage().data_ptr()] = first_of(result)
        return result

    def _in_layout(self, x: torch.Tensor, strides: list[int]) -> torch.Tensor:
        if tuple(strides) == x.stride():
            return x
        # In a channels-last graph inputs come in that layout; a weight's conversion is the same for
        # all.
        if self._counts_layouts:
            self.moved += 2 * _bytes(x)
            self.held += _bytes(x)
        return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)

    def _computed(self, x: torch.Tensor) -> torch.Tensor:
        """A part is written in its place in the result, and what it was computed from is
        let go of.
        """
        self._read((x,))
        self._fused = True
        self._beside_parts = max(self._beside_parts, sum(map(_bytes, self._outputs.values())))
        self._outputs.clear()
        self._parts[x.untyped_storage().data_ptr()] = x
        return x

    def _joined(
        self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> torch.Tensor:
        result: torch.Tensor = target(*args, **kwargs)
        parts = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
        if all(p.untyped_storage().data_ptr() in self._parts for p in parts):
            # A sum fuses with a residual addition behind it. Joined parts do not: the addition
            # reads and writes the whole once more. Behind half of a decoder's convolutions stands
            # one, so half of that is counted.
            self.moved += _bytes(result)
            return result
        if any(p.untyped_storage().data_ptr() in self._outputs for p in parts):
            self._read((parts,))
            self._fused = True
            return result
        # The largest part is computed in place; the others are copied in.
        copied = _bytes(result) - max(_bytes(p) for p in parts)
        self.moved += 2 * copied
        self.held += copied
        return result

    def _read(self, args: Any) -> None:
        """A fused kernel reads the outputs of convolutions among its arguments, each once."""
        for a in args:
            if isinstance(a, (list, tuple)):
                self._read(a)
            elif isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() in self._outputs:
                self.moved += _bytes(a)


def first_of(result: Any) -> torch.Tensor:
    """What an operator computes: of attention's several results the first."""
    found: torch.Tensor = result[0] if isinstance(result, (list, tuple)) else result
    return found


def _launches(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Work:
    """The kernel launches of our operator's call, prepared as Inductor's code has them.

    What its Python raises leaves the lowering out: plain torch is not timed in its place.
    """
    from rocm_passes.kernels.triton.launch import written_down

    call, name = IMPLICIT_GEMM_CONV.bind(args, kwargs)
    lowering = IMPLICIT_GEMM_CONV.lowering(name)
    assert lowering is not None and lowering.run is not None, f"{name} has no kernel"
    with written_down() as launches:
        result = lowering.run(call)

    def work() -> Any:
        for launch in launches:
            launch.run()
        return result

    return work


def _runs(operator: Operator[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Work:
    """A lowering's own call. aiter's convolution packs the weight anew each time, as in the
    compiled graph.

    What it raises leaves the lowering out.
    """
    call, name = operator.bind(args, kwargs)
    lowering = operator.lowering(name)
    assert lowering is not None and lowering.run is not None, f"{name} has no kernel"
    return functools.partial(lowering.run, call)


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _is_view(result: torch.Tensor, args: tuple[Any, ...]) -> bool:
    sources = [a for a in args if isinstance(a, torch.Tensor)]
    return any(
        a.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for a in sources
    )

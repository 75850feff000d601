"""Timing a lowering of a convolution on the user's device, without compiling it.

The convolutions and matrix products of a lowering are run and timed. What stands around them Inductor will
fuse, so it is not timed as written but counted, in bytes that have to move, at the device's copy rate.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor import inductor_prims
from torch.utils._python_dispatch import _disable_current_modes

from ..graph.builder import Eager
from ..ops.operator import Lowering

aten = torch.ops.aten

#: The library's own work: run and timed.
TIMED = frozenset({aten.convolution.default, aten.mm.default, aten.addmm.default})
#: Code that Inductor fuses behind the convolutions: each reads what they wrote.
FUSED = frozenset({torch.ops.prims.convert_element_type.default, aten.add.Tensor})
#: A copy rate to assume where it isn't measured (tests on a CPU), bytes a second.
NOMINAL_RATE = 1e12
REPEATS = 5
SECONDS_A_CALL = 0.2

Timer = Callable[[Callable[[], Any]], float]


class Meter(Eager):
    """Runs a lowering over real tensors; sums up seconds, and memory beside inputs and result."""

    def __init__(self, timer: Timer, rate: float = NOMINAL_RATE) -> None:
        self.seconds = 0.0
        self.workspace = 0
        self.held = 0
        self._timer = timer
        self._rate = rate
        # Held, so that no later tensor takes their address.
        self._outputs: dict[int, torch.Tensor] = {}
        self._fused = False

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target in TIMED:
            return self._timed(target, args, kwargs)
        if target is inductor_prims.force_stride_order:
            return self._in_layout(*args)
        if target in (aten.cat.default, aten.constant_pad_nd.default):
            return self._joined(target, args, kwargs)
        result = target(*args, **kwargs)
        if target in FUSED:
            self._read(args)
            self._fused = True
        elif isinstance(result, torch.Tensor) and not _is_view(result, args):
            self._move(2 * _bytes(result))
            self.held += _bytes(result)
        return result

    def milliseconds(self, result: torch.Tensor) -> float:
        """All of it; the fused kernel behind the convolutions writes the result once."""
        if self._fused:
            self._move(_bytes(result))
            self._fused = False
        return self.seconds * 1000

    def extra_mib(self, result: torch.Tensor) -> int:
        held = self.held + sum(map(_bytes, self._outputs.values())) - _bytes(result)
        return max(0, held, self.workspace + held) // 2**20

    def _timed(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        on_gpu = args[0].is_cuda
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        result = target(*args, **kwargs)
        if on_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before - _bytes(result)
            self.workspace = max(self.workspace, peak)
        self.seconds += self._timer(lambda: target(*args, **kwargs))
        self._outputs[result.untyped_storage().data_ptr()] = result
        return result

    def _in_layout(self, x: torch.Tensor, strides: list[int]) -> torch.Tensor:
        # Inputs come in the layout that they are asked for; a weight's conversion is the same for all.
        if tuple(strides) == x.stride():
            return x
        return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)

    def _joined(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        result: torch.Tensor = target(*args, **kwargs)
        parts = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
        if any(p.untyped_storage().data_ptr() in self._outputs for p in parts):
            self._read((parts,))
            self._fused = True
            return result
        # The largest part is computed in place; the others are copied in.
        copied = _bytes(result) - max(_bytes(p) for p in parts)
        self._move(2 * copied)
        self.held += copied
        return result

    def _read(self, args: Any) -> None:
        """A fused kernel reads the outputs of convolutions among its arguments, each once."""
        for a in args:
            if isinstance(a, (list, tuple)):
                self._read(a)
            elif isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() in self._outputs:
                self._move(_bytes(a))

    def _move(self, size: int) -> None:
        self.seconds += size / self._rate


def measure(lowering: Lowering, values: Mapping[str, Any], timer: Timer | None = None) -> tuple[float, int]:
    """Milliseconds and extra MiB of one lowering over random tensors like `values` (fake or real tensors).

    Raises whatever the library raises, out of memory included.
    """
    assert lowering.write is not None, f"{lowering.name} is not written in plain ATen"
    with real_tensors(), torch.no_grad():
        call = {k: _like(v, values.get("channels_last", False)) for k, v in values.items()}
        device = _device(call)
        with torch.cuda.device(device) if device.type == "cuda" else _nothing():
            if timer is None:
                timer = gpu_seconds if device.type == "cuda" else cpu_seconds
            meter = Meter(timer, copy_rate(device))
            result = lowering.write(meter, **{**call, "bias": None})
            return meter.milliseconds(result), meter.extra_mib(result)


@contextmanager
def real_tensors() -> Iterator[None]:
    """Out of the fake mode that a compile runs under."""
    with _disable_current_modes():
        yield


def gpu_seconds(run: Callable[[], Any]) -> float:
    """Median time of a call by device events; few repeats where a call is long."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < REPEATS and (len(times) < 2 or time.perf_counter() - started < SECONDS_A_CALL):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def cpu_seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@functools.lru_cache(maxsize=64)
def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    if device.type != "cuda":
        return NOMINAL_RATE
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / gpu_seconds(lambda: target.copy_(source))


def _like(value: Any, channels_last: bool) -> Any:
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return tuple(_like(v, channels_last) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    # A generator of its own: the user's random numbers must not depend on what was measured.
    draw = torch.Generator(value.device).manual_seed(0)
    made = torch.randn(tuple(value.shape), generator=draw, dtype=torch.float32, device=value.device).to(
        value.dtype
    )
    return made.to(memory_format=torch.channels_last_3d) if channels_last and made.ndim == 5 else made


def _device(call: Mapping[str, Any]) -> torch.device:
    weight = call["weight"]
    assert isinstance(weight, torch.Tensor)
    return weight.device


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _is_view(result: torch.Tensor, args: tuple[Any, ...]) -> bool:
    sources = [a for a in args if isinstance(a, torch.Tensor)]
    return any(a.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for a in sources)

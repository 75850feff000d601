"""Timing the lowerings of one convolution call on the user's device, without compiling them.

The convolutions and matrix products of a lowering are run and timed. What stands around them
Inductor will fuse, so it is not timed as written but counted, in bytes that have to move, at the
device's copy rate.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor import inductor_prims
from torch.utils._python_dispatch import _disable_current_modes

from rocm_passes.fx.builder import Eager
from rocm_passes.ops.aiter_conv import AITER_CONV
from rocm_passes.ops.attention import ATTENTION, Attention
from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.conv_transposed import ConvTransposed
from rocm_passes.ops.implicit_gemm_conv import IMPLICIT_GEMM_CONV
from rocm_passes.ops.linear_gelu import LinearGelu
from rocm_passes.ops.operator import Lowering, Operator, computation_of
from rocm_passes.target import Target
from rocm_passes.tuning import rounds
from rocm_passes.tuning.checked import Places
from rocm_passes.tuning.store import Measured

aten = torch.ops.aten

#: The library's own work, our kernel's and aiter's: run and timed.
LIBRARY = frozenset(
    {
        *(aten.convolution.default, aten.mm.default, aten.addmm.default),
        aten._addmm_activation.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
    }
)
#: Operators whose lowering is run without the operator, which has plain torch for where it raises.
CALLED: dict[Any, Operator[Any]] = {AITER_CONV.overload: AITER_CONV, ATTENTION.overload: ATTENTION}
TIMED = LIBRARY | {IMPLICIT_GEMM_CONV.overload, *CALLED}
#: Code that Inductor fuses behind the convolutions: each reads what they wrote.
FUSED = frozenset({torch.ops.prims.convert_element_type.default, aten.add.Tensor, aten.mul.Tensor})
#: A copy rate to assume where it isn't measured (tests on a CPU), bytes a second.
NOMINAL_RATE = 1e12

#: Calls that are chosen by measurement: convolutions, and by the same rules attention and linear
#: layers.
Convolution = Conv3d | Conv2d | ConvTransposed | Attention | LinearGelu
Work = Callable[[], Any]
#: Told of each lowering's first run, the library's search included: name, seconds. False: measure
#: no more.
Watch = Callable[[str, float], bool]


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
            peak = torch.cuda.max_memory_allocated() - before - _bytes(_first(result))
            self.workspace = max(self.workspace, peak)
        self.work.append(work)
        self._outputs[_first(result).untyped_storage().data_ptr()] = _first(result)
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


def _first(result: Any) -> torch.Tensor:
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


def measure(
    lowerings: Sequence[Lowering[Any]],
    call: Convolution,
    watch: Watch | None = None,
    patience: Mapping[str, Any] | None = None,
) -> Measured:
    """Milliseconds and extra MiB of each lowering over random tensors like the call's (real or fake
    tensors).

    The lowerings take turns, so that a clock that drifts, or is lowered under load, is the same for
    all. What a library raises, out of memory included, leaves that lowering out, with the reason.
    patience: keywords of `rounds.in_turn`, to measure for longer.
    """
    with real_tensors(), torch.no_grad():
        device = device_of(call)
        with torch.cuda.device(device) if device.type == "cuda" else _nothing():
            session = _Session(call, device, watch or (lambda name, seconds: True), patience or {})
            return session.measured(lowerings)


class _Session:
    """The measurement of one call on one device."""

    def __init__(
        self, call: Convolution, device: torch.device, watch: Watch, patience: Mapping[str, Any]
    ) -> None:
        self._device = device
        self._watch = watch
        self._patience = patience
        self._stopped = False
        like = {k: _like(v, device, call.channels_last) for k, v in call.arguments().items()}
        # The bias of a convolution is added by Inductor's code.
        without_bias = {"bias": None} if "bias" in like else {}
        self._call: Convolution = type(call)(**like | without_bias)
        self._moved: dict[str, int] = {}
        self._mib: dict[str, int] = {}
        self._skipped: dict[str, str] = {}
        self._places = Places(self._call)

    def measured(self, lowerings: Sequence[Lowering[Any]]) -> Measured:
        seconds: dict[str, float] | None
        try:
            seconds = self._together(lowerings)
        except torch.OutOfMemoryError:
            # Together they hold more than one alone. (The exception holds it, too, until this
            # clause ends.)
            seconds = None
        if seconds is None:
            seconds = {}
            for lowering in lowerings:
                seconds |= self._alone(lowering)
        for name, reason in self._places.wrong().items():
            seconds.pop(name, None)
            self._skipped[name] = reason
        rate = copy_rate(self._device) if seconds else NOMINAL_RATE
        ms = {name: round(1000 * (s + self._moved[name] / rate), 4) for name, s in seconds.items()}
        return Measured(ms, {name: self._mib[name] for name in ms}, self._skipped)

    def _alone(self, lowering: Lowering[Any]) -> dict[str, float]:
        if self._stopped:
            return {}
        try:
            return self._together([lowering])
        except torch.OutOfMemoryError:
            self._skipped[lowering.name] = "out of memory"
            return {}

    def _together(self, lowerings: Sequence[Lowering[Any]]) -> dict[str, float]:
        """Seconds of each lowering's timed calls. Raises OutOfMemoryError."""
        prepared: dict[str, list[Work]] = {}
        for lowering in lowerings:
            started = time.perf_counter()
            try:
                prepared[lowering.name] = self._prepared(lowering)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # A library that cannot run a shape (no kernel, a refused algorithm) is one
                # candidate less.
                said = str(error).splitlines()[0] if str(error) else ""
                self._skipped[lowering.name] = f"{type(error).__name__}: {said}"
            if not self._watch(lowering.name, time.perf_counter() - started):
                self._stopped = True
                break
        if not prepared:
            return {}
        return rounds.in_turn(prepared, rounds.bursts_on(self._device), **self._patience)

    def _prepared(self, lowering: Lowering[Any]) -> list[Work]:
        meter = Meter(counts_layouts=not self._call.channels_last)
        result = _written(lowering, meter, self._call)
        if lowering.inexact(self._call, Target.of_device(self._device)) is None:
            self._places.take(lowering.name, result)
        self._mib[lowering.name] = meter.finish(result)
        self._moved[lowering.name] = meter.moved
        return meter.work


def _written(lowering: Lowering[Any], meter: Meter, call: Convolution) -> torch.Tensor:
    """What the rewriter would write, computed."""
    if lowering.write is not None:
        found = lowering.write(meter, call)
    else:
        operator = computation_of(call)
        assert isinstance(operator, Operator), f"{lowering.name} is not written in plain ATen"
        found = operator.write(meter, call, lowering.name)
    return _first(found)


@contextmanager
def real_tensors() -> Iterator[None]:
    """Out of the fake mode that a compile runs under."""
    with _disable_current_modes():
        yield


@functools.lru_cache(maxsize=64)
def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    if device.type != "cuda":
        return NOMINAL_RATE
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = {"copy": [lambda: target.copy_(source)]}
    _RATES[device] = 2 * source.numel() / rounds.in_turn(copy, rounds.bursts_on(device))["copy"]
    return _RATES[device]


_RATES: dict[torch.device, float] = {}


def known_copy_rate() -> float | None:
    """The slowest rate that this process has measured so far; None where it has measured none."""
    return min(_RATES.values(), default=None)


def _like(value: Any, device: torch.device, channels_last: bool) -> Any:
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return tuple(_like(v, device, channels_last) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    # A generator of its own: the user's random numbers must not depend on what was measured.
    draw = torch.Generator(device).manual_seed(0)
    made = torch.randn(tuple(value.shape), generator=draw, dtype=value.dtype, device=device)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return (
        made.to(memory_format=formats[made.ndim])
        if channels_last and made.ndim in formats
        else made
    )


def device_of(call: Convolution) -> torch.device:
    """The call's; the current GPU for a call on the meta device, noted to be measured later."""
    device = call.tensors()[0].device
    if device.type != "meta":
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # With its index: what is cached by device must not serve another card of the machine.
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _is_view(result: torch.Tensor, args: tuple[Any, ...]) -> bool:
    sources = [a for a in args if isinstance(a, torch.Tensor)]
    return any(
        a.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for a in sources
    )

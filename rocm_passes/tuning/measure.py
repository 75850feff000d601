"""Timing the lowerings of one convolution call on the user's device, without compiling them.

The convolutions and matrix products of a lowering are run and timed. What stands around them
Inductor will fuse, so it is not timed as written but counted, in bytes that have to move, at the
device's copy rate.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from rocm_passes.ops.attention import Attention
from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.ops.conv_transposed import ConvTransposed
from rocm_passes.ops.linear_gelu import LinearGelu
from rocm_passes.ops.operator import Lowering, Operator, computation_of
from rocm_passes.target import Target
from rocm_passes.tuning import rounds
from rocm_passes.tuning.checked import Places
from rocm_passes.tuning.meter import Meter, Work, first_of
from rocm_passes.tuning.store import Measured

#: A copy rate to assume where it isn't measured (tests on a CPU), bytes a second.
NOMINAL_RATE = 1e12

#: Calls that are chosen by measurement: convolutions, and by the same rules attention and linear
#: layers.
Convolution = Conv3d | Conv2d | ConvTransposed | Attention | LinearGelu
#: Told of each lowering's first run, the library's search included: name, seconds. False: measure
#: no more.
Watch = Callable[[str, float], bool]


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
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
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
    return first_of(found)


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

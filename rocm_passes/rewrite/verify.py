"""Translation validation: is what a site became as exact as the graph's own nodes, on tensors like
the site's?
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from rocm_passes.policy.bounds import VERIFIED_FACTOR, VERIFIED_UNITS
from rocm_passes.rewrite.extraction import of_site
from rocm_passes.rewrite.program import Input, Program, Unverifiable, reduced, run
from rocm_passes.rewrite.rewriter import Applied
from rocm_passes.rewrite.sources import Sources

FACTOR, UNITS = VERIFIED_FACTOR.value, VERIFIED_UNITS.value
#: What a replacement may be off from float64. The error is the largest in the tensor, the unit that
#: of the value itself.
BOUND = f"{FACTOR:g} x the original's largest error + {UNITS:g} ulp"
#: Memory that one site's verification may take. A larger site is verified with a smaller batch or
#: token size.
LIMIT_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}

#: Each trial's inputs are normal values times this; for the small ones an epsilon counts.
TRIALS = (1.0, 2.0**-10)

HELD, WRONG, SKIPPED = "held", "put back", "skipped"
EXACT, CLOSE = "exact", "close"


@dataclass(frozen=True)
class Verdict:
    """What became of one site.

    status: HELD, WRONG or SKIPPED. contract: EXACT (the bits of the graph's own nodes, run one by
    one) or CLOSE (BOUND holds); "" unless held. reason: what was wrong, or why it was skipped.
    error, original_error: largest distances from float64, of the replacement and of the graph's own
    nodes.
    inputs: "drawn", or "live" for those of a call.
    """

    status: str
    contract: str = ""
    reason: str = ""
    error: float = 0.0
    original_error: float = 0.0
    inputs: str = "drawn"
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        found = {k: v for k, v in self.__dict__.items() if v not in ("", None)}
        return {**found, "seconds": round(self.seconds, 4), "bound": BOUND}


def verify(applied: Applied, sources: Sources, strict: bool) -> tuple[Verdict, Program | None]:
    """Verify a rewrite that was placed on drawn inputs. strict: only the original's bits
    will do.
    """
    started = time.perf_counter()
    program: Program | None = None
    try:
        whole = of_site(applied, sources)
        program = reduced(whole, limit(whole.device))
        with on_device(program.device):
            trials = [drawn(program, trial) for trial in range(len(TRIALS))]
            verdict = judged(program, trials, strict, "drawn")
    except Unverifiable as error:
        verdict = Verdict(SKIPPED, reason=str(error))
    except torch.OutOfMemoryError:
        verdict = Verdict(SKIPPED, reason="the device has not enough memory for it")
    except Exception as error:
        verdict = Verdict(
            SKIPPED, reason=f"it cannot be run by itself: {type(error).__name__}: {error}"
        )
    return _timed(verdict, started), program


def _timed(verdict: Verdict, started: float) -> Verdict:
    return Verdict(**{**verdict.__dict__, "seconds": time.perf_counter() - started})


def limit(device: torch.device) -> int:
    """Bytes that one site may take: at most half of what a GPU has free."""
    stated = LIMIT_BYTES.get(device.type, LIMIT_BYTES["cpu"])
    if device.type != "cuda":
        return stated
    if not torch.cuda.is_available():
        raise Unverifiable("there is no such device in this process")
    return min(stated, torch.cuda.mem_get_info(device)[0] // 2)


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Out of the compile's fake mode, without gradients, with the device current."""
    current: Any = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with _disable_current_modes(), torch.no_grad(), current:
        yield


def drawn(program: Program, trial: int) -> dict[str, Any]:
    """Values for the inputs, by name."""
    generator = torch.Generator("cpu").manual_seed(trial)
    return {i.name: draw(i, generator, TRIALS[trial], program.device) for i in program.inputs} | {
        name: constant.to(program.device) for name, constant in program.constants.items()
    }


def draw(entering: Input, generator: torch.Generator, scale: float, device: torch.device) -> Any:
    """A tensor with the input's shape, strides and dtype. Integers are zero: they may be
    indices.
    """
    if entering.number is not None:
        return entering.number
    made = torch.empty_strided(
        entering.shape, entering.strides, dtype=entering.dtype, device=device
    )
    if made.numel() == 0:
        return made
    # Dims of stride 0 have one element: it is drawn once.
    sizes = [
        1 if stride == 0 else size for size, stride in zip(made.shape, made.stride(), strict=True)
    ]
    base = made.as_strided(sizes, made.stride())
    if entering.dtype.is_floating_point or entering.dtype.is_complex:
        kind = torch.complex64 if entering.dtype.is_complex else torch.float32
        base.copy_(torch.randn(sizes, generator=generator, dtype=kind) * scale)
    elif entering.dtype is torch.bool:
        base.copy_(torch.randint(0, 2, sizes, generator=generator).bool())
    else:
        base.zero_()
    return made


def judged(
    program: Program, trials: Sequence[Mapping[str, Any]], strict: bool, inputs: str
) -> Verdict:
    """Run both programs over each trial's values and compare. Raises Unverifiable, and what the
    original raises.
    """
    error = original_error = 0.0
    exact = True
    for values in trials:
        try:
            tried = _tried(program, values)
        except _Unusable as found:
            return Verdict(WRONG, reason=str(found), inputs=inputs)
        error = max(error, tried.error)
        original_error = max(original_error, tried.original_error)
        exact = exact and tried.exact
        if tried.reason:
            return Verdict(WRONG, "", tried.reason, error, original_error, inputs)
    if strict and not exact:
        reason = "its bits differ from the graph's own, and rewrite_numerics='strict' promises them"
        return Verdict(WRONG, "", reason, error, original_error, inputs)
    return Verdict(HELD, EXACT if exact else CLOSE, program.reduced, error, original_error, inputs)


class _Unusable(Exception):
    """The replacement raised, or wrote into what it was given: there are no results to compare."""


@dataclass(frozen=True)
class _Trial:
    """The largest errors of one trial's results. reason: what is wrong, or ""."""

    error: float
    original_error: float
    exact: bool
    reason: str


def _tried(program: Program, values: Mapping[str, Any]) -> _Trial:
    original = run(program.original, program.outputs, values)
    reference = run(program.original, program.outputs, values, wide=True)
    replaced = _replaced(program, values)
    reason = _differs(program, values, original, replaced)
    error = original_error = 0.0
    exact = True
    for new, old, true in zip(replaced, original, reference, strict=True):
        if new.shape == old.shape:
            found = compared(new, old, true)
            error = max(error, found.error)
            original_error = max(original_error, found.original_error)
            exact = exact and same_bits(new, old)
            reason = reason or found.reason
    return _Trial(error, original_error, exact, reason)


def _replaced(program: Program, values: Mapping[str, Any]) -> Sequence[Tensor]:
    """The replacement's results. Raises Unverifiable where reduced sizes may be why it raises."""
    written = {name: v._version for name, v in values.items() if isinstance(v, Tensor)}
    try:
        replaced = run(program.replacement, program.results, values)
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:
        if program.reduced:
            raise Unverifiable(f"with {program.reduced} the replacement does not run") from raised
        raise _Unusable(f"it raised {type(raised).__name__}: {raised}") from raised
    changed = [name for name, version in written.items() if values[name]._version != version]
    if changed:
        raise _Unusable(f"it writes into its input {changed[0]}")
    return replaced


@dataclass(frozen=True)
class Errors:
    """reason: what is wrong, or ""."""

    error: float
    original_error: float
    reason: str


def compared(new: Tensor, old: Tensor, reference: Tensor) -> Errors:
    """Hold both against float64. Elements that the original or float64 has not finite do
    not count.
    """
    if not (new.dtype.is_floating_point or new.dtype.is_complex):
        same = torch.equal(new, old)
        return Errors(0.0, 0.0, "" if same else "its integers differ from the original's")
    counted = reference.isfinite() & old.isfinite()
    if bool((counted & ~new.isfinite()).any()):
        return Errors(math.inf, 0.0, "it is not finite where the original is")
    new, old, true = (x[counted] for x in (new, old, reference))
    if true.numel() == 0:
        return Errors(0.0, 0.0, "")
    ours, theirs = (new.to(true.dtype) - true).abs(), (old.to(true.dtype) - true).abs()
    largest = theirs.max()
    excess = ours - (FACTOR * largest + UNITS * ulp(true.abs(), old.dtype))
    error, original_error = float(ours.max()), float(largest)
    if float(excess.max()) <= 0:
        return Errors(error, original_error, "")
    said = (
        f"its error against float64 is {error:.3g}, the original's {original_error:.3g} (bound: "
        f"{BOUND})"
    )
    return Errors(error, original_error, said)


def ulp(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of a dtype's values at each magnitude."""
    info = torch.finfo(dtype.to_real())
    floor = torch.log2(magnitude.clamp_min(info.smallest_normal)).floor()
    return torch.exp2(floor) * info.eps


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)))


def _differs(
    program: Program,
    values: Mapping[str, Any],
    original: Sequence[Tensor],
    replaced: Sequence[Tensor],
) -> str:
    """What is wrong beside the values: shape, dtype, strides, or shared memory. "" where nothing
    is.
    """
    inputs = [v for v in values.values() if isinstance(v, Tensor)]
    for at, (new, old, expected) in enumerate(
        zip(replaced, original, program.expected, strict=True)
    ):
        if new.shape != old.shape:
            return f"its shape is {list(new.shape)}, the original's {list(old.shape)}"
        if new.dtype != expected.dtype:
            return f"its dtype is {new.dtype}, the graph has {expected.dtype}"
        strides = expected.strides
        if strides is not None and not _lies_as(new, strides, bool(program.reduced)):
            return f"its strides are {list(new.stride())}, the graph was told {list(strides)}"
        if expected.may_view:
            continue
        sharing = [x for x in (*inputs, *replaced[:at]) if _share(new, x)]
        if sharing and not any(_share(old, x) for x in (*inputs, *original[:at])):
            return (
                "it shares memory with an input or with another result, and the original does not"
            )
    return ""


def _lies_as(new: Tensor, strides: Sequence[int], is_reduced: bool) -> bool:
    """Are the strides these? Of a reduced size only their order counts. Dims of one element
    do not.
    """
    pairs = [
        (have, want)
        for size, have, want in zip(new.shape, new.stride(), strides, strict=True)
        if size > 1 and new.numel()
    ]
    if not is_reduced:
        return all(have == want for have, want in pairs)
    by_have = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
    by_want = sorted(range(len(pairs)), key=lambda i: pairs[i][1])
    return by_have == by_want


def _share(a: Tensor, b: Tensor) -> bool:
    if a.numel() == 0 or b.numel() == 0:
        return False
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()

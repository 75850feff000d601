"""Faults planted in the package, to see that random programs find each. The docs have the table
that this writes.
"""

from __future__ import annotations

import functools
import itertools
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rocm_passes.fx import nodes as n
from rocm_passes.rewrite.rewriter import Rewriter
from tests.fuzz.check import check
from tests.fuzz.generate import program
from tests.fuzz.program import Program

WITHIN = 500
HEADER = "| planted fault | programs until it was caught |", "|---|---|"
Changed = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Mutant:
    """changes: would it change that call? target, new: what it puts in a function's place."""

    name: str
    plant: Callable[[], Any]
    changes: Callable[[Any], bool] | None = None
    target: str = ""
    new: Any = None


def kinds_of(call: Any) -> list[str]:
    """Names of its classes: some calls of an idiom have a class of their own."""
    return [c.__name__ for c in type(call).__mro__]


@contextmanager
def changed_call(kind: str, change: Changed) -> Iterator[None]:
    """Each typed call of that class is changed between the match and the rewrite."""
    original = Rewriter.apply

    def apply(self: Rewriter, match: Any, *rest: Any) -> Any:
        if kind in kinds_of(match.call):
            match = replace(match, call=replace(match.call, **change(match.call)))
        return original(self, match, *rest)

    with mock.patch.object(Rewriter, "apply", apply):
        yield


def call(name: str, kind: str, change: Changed) -> Mutant:
    def changes(made: Any) -> bool:
        if kind not in kinds_of(made):
            return False
        return any(getattr(made, field) is not new and not _equal(getattr(made, field), new)
                   for field, new in change(made).items())  # fmt: skip

    return Mutant(name, functools.partial(changed_call, kind, change), changes)


def _equal(a: Any, b: Any) -> bool:
    """Nodes are the same or not; lists are compared as such."""
    return bool(type(a) is type(b) and a == b)


def patched(name: str, target: str, new: Any) -> Mutant:
    return Mutant(name, lambda: mock.patch(target, new), target=target, new=new)


def _only_user(node: Any) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _swapped(c: Any) -> dict[str, Any]:
    return (
        {"scale0": c.shift0, "shift0": c.scale0}
        if c.scale0 is not None and c.shift0 is not None
        else {}
    )


CONVEXITY = "convexity is not checked"
#: Seen where a site is refused for its convexity: what is contracted gives nothing back.
CONTRACTION = "sites are not contracted"

MUTANTS: tuple[Mutant, ...] = (
    call("RMSNorm: eps doubled", "RmsNorm", lambda c: {"eps": 2 * c.eps}),
    call("RMSNorm: weight offset dropped", "RmsNorm", lambda c: {"weight_offset": 0.0}),
    call("RMSNorm: weight dropped", "RmsNorm", lambda c: {"weight": None}),
    call("RMSNorm: bias dropped", "RmsNorm", lambda c: {"bias": None}),
    call("RMSNorm: round_to ignored", "RmsNorm", lambda c: {"round_to": None}),
    call("LayerNorm: eps doubled", "LayerNorm", lambda c: {"eps": 2 * c.eps}),
    call("LayerNorm: bias dropped", "LayerNorm", lambda c: {"bias": None}),
    call("LayerNorm: weight dropped", "LayerNorm", lambda c: {"weight": None}),
    call("chain: gate dropped", "FusedNorm", lambda c: {"gate": None}),
    call("chain: scale and shift swapped", "FusedNorm", _swapped),
    call("chain: second modulation has the first's tables", "FusedNorm",
         lambda c: {"scale1": c.scale0, "shift1": c.shift0}),
    call("chain: scale without 1", "FusedNorm", lambda c: {"scale_offset": 0.0}),
    call("chain: scale always with 1", "FusedNorm", lambda c: {"scale_offset": 1.0}),
    call("chain: shift dropped", "FusedNorm", lambda c: {"shift0": None}),
    call("chain: the branch's norm dropped", "FusedNorm", lambda c: {"branch_norm": False}),
    call("chain: eps doubled", "FusedNorm", lambda c: {"eps": 2 * c.eps}),
    call("chain: dtype of the sum is float32", "FusedNorm", lambda c: {"sum_dtype": torch.float32}),
    call("chain: keep_sum dropped", "FusedNorm", lambda c: {"keep_sum": False}),
    call("GroupNorm: eps doubled", "GroupNorm", lambda c: {"eps": 2 * c.eps}),
    call("GroupNorm: one group", "GroupNorm", lambda c: {"groups": 1}),
    call("GroupNorm: SiLU dropped", "GroupNorm", lambda c: {"silu": False}),
    call("GroupNorm: SiLU always", "GroupNorm", lambda c: {"silu": True}),
    call("GroupNorm: multiplier dropped", "GroupNorm", lambda c: {"multiplier": None}),
    call("GroupNorm and pad: replicate in place of zeros", "GroupNormPad",
    lambda c: {"mode": "replicate"}),
    call("channel norm: scale dropped", "ChannelNorm", lambda c: {"scale": 1.0}),
    call("channel norm: the other form", "ChannelNorm",
    lambda c: {"form": "l2" if c.form == "mean" else "mean"}),
    call("channel norm: gamma dropped", "ChannelNorm", lambda c: {"gamma": None}),
    call("channel norm: SiLU dropped", "ChannelNorm", lambda c: {"silu": False}),
    call("pad: front and back swapped", "Pad",
         lambda c: {"padding": [c.padding[i ^ 1] for i in range(len(c.padding))]}),
    call("pad: replicate and zeros swapped", "Pad",
         lambda c: {"mode": {"replicate": "zeros", "zeros": "replicate"}.get(c.mode, c.mode)}),
    call("pad: upsampling factor 1 more", "Pad", lambda c: {"skipped": 0}),
    call("conv3d: zero frames at the back", "Conv3d", lambda c: {"zeros": (c.zeros[1],
    c.zeros[0])}),
    call("conv3d: order of the joined pieces", "Conv3d", lambda c: {"x": tuple(reversed(c.x))}),
    call("conv3d: bias dropped", "Conv3d", lambda c: {"bias": None}),
    call("upsampled 1x1 convolution: bias dropped", "UpsampledConv", lambda c: {"bias": None}),
    patched("only_user ignores that a user reads twice", "rocm_passes.fx.nodes.only_user",
    _only_user),
    patched("narrowing casts are looked through", "rocm_passes.fx.nodes.is_widening", n.is_cast),
    patched(CONVEXITY, "rocm_passes.fx.convexity.Contraction.obstacle",
    lambda *_: None),
    patched(CONTRACTION, "rocm_passes.fx.convexity.Contraction.contract",
    lambda *_: None),
    patched("outputs may share memory", "rocm_passes.fx.aliasing.keep_apart", lambda *_: []),
    patched("strides of control flow's outputs", "rocm_passes.fx.strides.keep_output_strides",
    lambda *_: []),
    patched("strides promised to readers", "rocm_passes.fx.strides.keep_promises", lambda *_: []),
    patched("any size is the same size", "rocm_passes.fx.nodes.same_size", lambda a, b: True),
)  # fmt: skip


def _failures(made: Program) -> frozenset[tuple[str, str]]:
    try:
        return frozenset((f.kind, str(f.setting)) for f in check(made).failures)
    except Exception as error:
        return frozenset({("crash", type(error).__name__)})


@dataclass(frozen=True)
class Sound:
    """A program without a planted fault: how it fails, and which mutants would change something."""

    failures: frozenset[tuple[str, str]]
    mutants: frozenset[str]


@functools.cache
def sound(seed: int) -> Sound:
    found: set[str] = set()
    original = Rewriter.apply

    def apply(self: Rewriter, match: Any, *rest: Any) -> Any:
        found.update(m.name for m in MUTANTS if m.changes is not None and m.changes(match.call))
        return original(self, match, *rest)

    with ExitStack() as watched:
        watched.enter_context(mock.patch.object(Rewriter, "apply", apply))
        for mutant in MUTANTS:
            if mutant.target:
                watched.enter_context(_watched(mutant, found))
        failures = _failures(program(seed))
    if CONVEXITY in found:
        found.add(CONTRACTION)
    return Sound(failures, frozenset(found))


def _watched(mutant: Mutant, found: set[str]) -> Any:
    """Notes where the function that the mutant replaces gives something else than its fault."""
    original = pkgutil.resolve_name(mutant.target)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if mutant.name not in found and mutant.new(*args, **kwargs) != result:
            found.add(mutant.name)
        return result

    return mock.patch(mutant.target, call)


def catches(mutant: Mutant, seed: int) -> bool:
    """Does the program of that seed fail with the fault, and otherwise not?

    A program in which the fault would change nothing is not run with it.
    """
    if mutant.name not in sound(seed).mutants:
        return False
    with ExitStack() as planted:
        planted.enter_context(mutant.plant())
        failures = _failures(program(seed))
    return bool(failures and failures - sound(seed).failures)


def caught_at(mutant: Mutant) -> int | None:
    """How many programs it took, or None where none of them failed."""
    return next((seed + 1 for seed in range(WITHIN) if catches(mutant, seed)), None)


def run(only: str, docs: Path | None) -> int:
    """Programs one after another, each with all faults that none has caught so far."""
    chosen = [m for m in MUTANTS if only in m.name]
    found: dict[str, int] = {}
    for seed in range(WITHIN):
        for mutant in [m for m in chosen if m.name not in found]:
            if catches(mutant, seed):
                found[mutant.name] = seed + 1
                print(f"{mutant.name}: {seed + 1}", flush=True)
        if len(found) == len(chosen):
            break
    rows = [f"| {m.name} | {found.get(m.name, 'not caught')} |" for m in chosen]
    if docs is not None:
        docs.write_text(with_table(docs.read_text(), rows))
    return int(len(found) < len(chosen))


def with_table(text: str, rows: Sequence[str]) -> str:
    """The document with these rows in place of those that it has; what stands round the table
    stays.
    """
    head, _, rest = text.partition(f"{HEADER[0]}\n{HEADER[1]}\n")
    behind = itertools.dropwhile(lambda line: line.startswith("| "), rest.splitlines())
    return "\n".join([*head.splitlines(), *HEADER, *rows, *behind, ""])

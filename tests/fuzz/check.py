"""Is a rewritten program right? Values against float64, dtypes, shapes, strides, shared memory,
gradients.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rocm_passes import backend
from rocm_passes.options import Options
from rocm_passes.report.ledger import Ledger
from rocm_passes.target import Target
from tests.fuzz import compare, unfinite
from tests.fuzz.bounds import Errors, Given, errors_nearby
from tests.fuzz.program import WIDE, Program, placed, widened
from tests.fuzz.traced import Traced, kept_whole, references_run, target_named
from tests.without_codegen import without_codegen

#: So many times more where torch.compile made the graph: the unfused graph is not there to be
#: measured.
UNMEASURED = 3.0


@dataclass(frozen=True)
class Setting:
    """A target and options, under which a program is compiled."""

    target: str
    options: tuple[tuple[str, Any], ...]
    #: False: the graph is a branch of control flow, whose outputs must keep their strides.
    visible: bool = True

    @property
    def strict(self) -> bool:
        return ("rewrite_numerics", "strict") in self.options

    def __str__(self) -> str:
        return f"{self.target} {dict(self.options)}{'' if self.visible else ' in control flow'}"


def _setting(target: str, **options: Any) -> Setting:
    return Setting(
        target, (*options.items(), *([] if target == "cpu" else [("tune_seconds", 0.0)]))
    )


ALWAYS = _setting("cpu", select="always")
STRICT = _setting("cpu", select="always", rewrite_numerics="strict")
ON_GPU = _setting("sm_90", select="always")
#: Of these each program gets one.
OTHERS = (
    _setting("sm_90"),
    _setting("gfx942"),
    _setting("gfx942", select="always"),
    _setting("gfx1201", select="always"),
    _setting("sm_90", select="always", rewrite_numerics="strict"),
    _setting("sm_90", select="always", layout="channels_last"),
    _setting("gfx942", select="always", rewrite_numerics="fast"),
    _setting("cpu", select="always", layout="channels_last"),
    replace(ALWAYS, visible=False),
    replace(ON_GPU, visible=False),
)


def settings_of(program: Program) -> tuple[Setting, ...]:
    """The settings that a program is checked under."""
    other = random.Random(program.seed).choice(OTHERS)
    if program.mode == "graph":
        return ALWAYS, STRICT, ON_GPU, other
    return (random.Random(program.seed).choice((ALWAYS, ALWAYS, ON_GPU, other)),)


@dataclass(frozen=True)
class Failure:
    """kind: "crash", "value", "dtype", "shape", "strides", "aliasing", "gradient", "strict",
    "finite", "input", or "silent": the graph was changed and its ledger does not say it.
    """

    kind: str
    setting: Setting
    message: str


@dataclass
class Outcome:
    failures: list[Failure] = field(default_factory=list)
    rewritten: Counter[str] = field(default_factory=Counter)
    skipped: str = ""


@dataclass
class Reference:
    """What a program gives in its own dtypes and in float64."""

    results: list[Tensor]
    exact: list[Tensor]
    inputs: list[Tensor]
    exact_inputs: list[Tensor]
    #: Its largest errors at neighbouring inputs; asked for where a result exceeds its bound.
    nearby: Callable[[], Errors]


def check(program: Program, settings: Sequence[Setting] | None = None) -> Outcome:
    """Run a program under settings. A failure of values must come again with other values of the
    inputs.
    """
    outcome = Outcome()
    with references_run(), torch.random.fork_rng():
        run = _check_graph if program.mode == "graph" else _check_compiled
        run(program, settings or settings_of(program), outcome, 0)
        doubtful = [f.setting for f in outcome.failures if f.kind in ("value", "gradient", "input")]
        for again in (1, 2):
            if doubtful and steps_in(program):
                second = Outcome()
                run(program, doubtful, second, again)
                still = {f.setting for f in second.failures}
                gone = [s for s in doubtful if s not in still]
                outcome.failures = [
                    f for f in outcome.failures if f.setting not in gone or f.kind == "strict"
                ]
                doubtful = [s for s in doubtful if s in still]
    return outcome


def steps_in(program: Program) -> bool:
    """Has the program a step, at which a rounding turns into another value?"""
    return any(word in program.source for word in ("i32", "i64", "f8", "where", " > "))


def _check_graph(
    program: Program, settings: Sequence[Setting], outcome: Outcome, again: int
) -> None:
    with torch.no_grad():
        reference = _reference(program, again)
        if reference is None:
            outcome.skipped = "eager does not run it, or gives what is not finite"
            return
        traced = Traced(program.function(), [placed(t) for t in program.draw(again)])
        try:
            traced.trace()
            unfused = Unfused(traced, program, again)
        except Exception as error:
            outcome.skipped = f"the unfused graph does not run: {type(error).__name__}: {error}"
            return
        for setting in settings:
            outcome.failures += _failures(traced, program, setting, again, reference, unfused,
                                          outcome)  # fmt: skip


class Unfused:
    """What the graph gives without rewrites, and what it leaves in the inputs.

    As it was traced: LayerNorm, GroupNorm and SiLU are ATen's own operators. Where that does not
    run (ATen's GroupNorm takes no memory format but two), decomposed as Inductor would.
    """

    def __init__(self, traced: Traced, program: Program, again: int) -> None:
        self._traced, self._program, self._again = traced, program, again
        self.is_whole = True
        try:
            traced.leave_whole()
            self.results, self.inputs = _run(traced, program, again)
        except RuntimeError:
            self.is_whole = False
            self.results, self.inputs = self.decomposed

    @functools.cached_property
    def decomposed(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same, decomposed: asked for where the error of the graph as traced is too small a
        bound.
        """
        self._traced.leave()
        return _run(self._traced, self._program, self._again)

    def promised(self) -> list[Tensor]:
        """Tensors that lie as the traced graph says of the results."""
        self._traced.leave()
        with self._traced.laid_as_promised():
            return _run(self._traced, self._program, self._again)[0]


def _failures(
    traced: Traced, program: Program, setting: Setting, again: int, reference: Reference,
    unfused: Unfused, outcome: Outcome,
) -> list[Failure]:  # fmt: skip
    found = functools.partial(Failure, setting=setting)
    try:
        # In strict numerics the bits count: what no idiom takes is left as it was traced.
        with kept_whole() if setting.strict and unfused.is_whole else nullcontext():
            options, target = Options(**dict(setting.options)), target_named(setting.target)
            ledger = traced.rewrite(options, target, setting.visible)
            silent = traced.changed_silently(ledger)
            got, inputs = _run(traced, program, again)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return [found("crash", message=text[:600])]
    _count(ledger, outcome, found)
    if silent:
        outcome.failures.append(found("silent", message=f"the ledger does not say it{silent}"))
    results, left = unfused.results, unfused.inputs

    def unlike(nearby: Errors = ([], [])) -> list[Failure]:
        values, kept = nearby
        exact, exact_inputs = reference.exact, reference.exact_inputs
        return [
            *compare.values_unlike(found, got, results, reference.results, exact, "value", values),
            *compare.values_unlike(
                found, inputs, left, reference.inputs, exact_inputs, "input", kept
            ),
        ]

    failures = unlike()
    if failures and not setting.strict:
        results, left = unfused.decomposed
        failures = unlike()
    if failures:
        failures = unlike(reference.nearby())
    failures += compare.aliased_unlike(found, [*got, *inputs], [*unfused.results, *unfused.inputs])
    if setting in (ALWAYS, ON_GPU):
        failures += _finite_unlike(found, traced, program, again, unfused)
    if not setting.visible:
        failures += _laid_out_unlike(found, got, unfused)
    if setting.strict:
        failures += compare.other_bits(found, got, unfused.results)
    return failures


def _finite_unlike(
    found: Callable[..., Failure], traced: Traced, program: Program, again: int, unfused: Unfused
) -> list[Failure]:
    """What the graph that was last rewritten makes of NaN and infinity."""
    if steps_in(program) or unfinite.inputs(program, again) is None:
        return []

    def run(call: Callable[..., Any]) -> list[Tensor]:
        given = unfinite.inputs(program, again)
        assert given is not None
        return list(call(*given))

    def unfused_ones() -> Iterator[list[Tensor]]:
        yield run(program.function())
        traced.leave()
        yield run(traced)
        if unfused.is_whole:
            traced.leave_whole()
            yield run(traced)

    return [
        found("finite", message=f"output {i} is finite, infinite or NaN in other places")
        for i in unfinite.unlike(run(traced), unfused_ones())
    ]


def _reference(program: Program, again: int) -> Reference | None:
    inputs = [placed(t) for t in program.draw(again)]
    exact_inputs = [widened(t) for t in inputs]
    try:
        results = list(program.function()(*inputs))
        exact = list(program.function(WIDE)(*exact_inputs))
    except Exception:
        return None
    if not all(t.isfinite().all() for t in [*results, *exact] if t.dtype.is_floating_point):
        return None
    nearby = functools.cache(lambda: _nearby(program, again, grad=False))
    return Reference(results, exact, inputs, exact_inputs, nearby)


def _nearby(program: Program, again: int, grad: bool) -> Errors:
    """Where the program has a step, eager's error nearby is as large as the step, and would hide
    all others: other draws tell then (`check`).
    """
    if steps_in(program):
        return [], []
    eager, exact = program.function(), program.function(WIDE)
    return errors_nearby(
        lambda inputs: _attempt(eager, inputs, grad),
        lambda inputs: _attempt(exact, inputs, grad),
        program.draw(again),
    )


def _run(
    call: Callable[..., Any], program: Program, again: int
) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [placed(t) for t in program.draw(again)]
    return list(call(*inputs)), inputs


def _count(ledger: Ledger, outcome: Outcome, found: Callable[..., Failure]) -> None:
    outcome.rewritten.update(e.idiom for e in ledger.entries if e.outcome == "rewritten")
    for e in ledger.entries:
        failed = e.error or next((v.reason for v in e.verdicts if v.verdict == "failed"), "")
        if failed:
            outcome.failures.append(found("crash", message=f"{e.idiom}: {failed}"))
    for note in ledger.notes:
        if " failed: " in note:
            outcome.failures.append(found("crash", message=note))


def _laid_out_unlike(
    found: Callable[..., Failure], got: Sequence[Tensor], unfused: Unfused
) -> list[Failure]:
    """A branch of control flow lays out its results as the decomposed graph does, or as the traced
    one promises: its caller was told one of them.

    ATen's kernels on a CPU lay some results out otherwise than their fake implementations say:
    a pad (seed 900174), a cat of tensors with a dim of size 1 (seed 900533).
    """
    if not compare.other_strides(got, unfused.decomposed[0]):
        return []
    promised = unfused.promised()
    return [
        found("strides", message=f"output {i}: {got[i].stride()}, promised {promised[i].stride()}")
        for i in compare.other_strides(got, unfused.decomposed[0])
        if i in compare.other_strides(got, promised)
    ]


# -- programs that go through torch.compile
# -------------------------------------------------------------------------


def _check_compiled(
    program: Program, settings: Sequence[Setting], outcome: Outcome, again: int
) -> None:
    grad = program.mode == "grad"
    with torch.enable_grad() if grad else torch.no_grad():
        exact = _attempt(program.function(WIDE), [widened(t) for t in program.draw(again)], grad)
        eager = _attempt(program.function(), [placed(t) for t in program.draw(again)], grad)
        if exact is None or eager is None:
            outcome.skipped = "eager does not run it, or gives what is not finite"
            return
        for setting in settings:
            found = functools.partial(Failure, setting=setting)
            ledgers: list[Ledger] = []
            try:
                got = _compiled(program, setting, ledgers, again, grad)
            except Exception as error:
                if _plain_fails(program, again, grad):
                    outcome.skipped = "torch.compile does not take it"
                    return
                outcome.failures.append(
                    found("crash", message=f"{type(error).__name__}: {error}"[:600])
                )
                continue
            for ledger in ledgers:
                _count(ledger, outcome, found)
            unlike = functools.partial(_compiled_unlike, found, got, eager, exact, grad)
            outcome.failures += unlike() and unlike(_nearby(program, again, grad))


def _compiled_unlike(
    found: Callable[..., Failure], got: Given, eager: Given, exact: Given, grad: bool,
    nearby: Errors = ([], []),
) -> list[Failure]:  # fmt: skip
    kinds = "value", "gradient" if grad else "input"
    each = zip(got, eager, exact, kinds, nearby, strict=True)
    return [
        failure
        for g, e, x, kind, errors in each
        for failure in compare.values_unlike(found, g, e, e, x, kind, errors, UNMEASURED)
    ]


def _attempt(call: Callable[..., Any], inputs: list[Tensor], grad: bool) -> Given | None:
    try:
        found = _called(call, inputs, grad)
    except Exception:
        return None
    finite = all(t.isfinite().all() for t in (*found[0], *found[1]) if t.dtype.is_floating_point)
    return found if finite else None


def _called(call: Callable[..., Any], inputs: list[Tensor], grad: bool) -> Given:
    """(results, inputs behind the call or their gradients)"""
    if not grad:
        return list(call(*inputs)), inputs
    wanted = [
        t.requires_grad_()
        for t in inputs
        if t.dtype.is_floating_point and t.dtype is not torch.float8_e4m3fn
    ]
    results = list(call(*inputs))
    loss = sum((r.double() * _weights(r)).sum() for r in results if r.requires_grad)
    if not isinstance(loss, Tensor):
        return [r.detach() for r in results], []
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    zero = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)]
    return [r.detach() for r in results], zero


def _weights(t: Tensor) -> Tensor:
    return torch.arange(t.numel(), dtype=torch.float64).remainder(7).sub(3).reshape(t.shape) / 4


def _compiled(
    program: Program, setting: Setting, ledgers: list[Ledger], again: int, grad: bool
) -> Given:
    torch._dynamo.reset()
    ours = functools.partial(
        backend.rocm_diffusion, options=dict(setting.options), listener=ledgers.append, caches=False
    )
    compiled = torch.compile(program.function(), backend=ours, dynamic=program.mode == "dynamic")
    target = target_named(setting.target)
    faked = mock.patch.object(Target, "of_inputs", staticmethod(lambda _: target))
    with without_codegen(), faked if setting.target != "cpu" else nullcontext():
        return _called(compiled, [placed(t) for t in program.draw(again)], grad)


def _plain_fails(program: Program, again: int, grad: bool) -> bool:
    """Does the program fail with select="off" as well?"""
    try:
        _compiled(program, _setting("cpu", select="off"), [], again, grad)
    except Exception:
        return True
    return False

"""The smallest program that still fails in the same way: outputs, statements and inputs are taken
away.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tests.fuzz.check import Failure, check
from tests.fuzz.draft import DTYPES
from tests.fuzz.program import NAMES, Program, Statement, needed


def shrink(program: Program, failure: Failure, seconds: float = 60.0) -> tuple[Program, Failure]:
    """Take away what the failure does not need, until nothing more goes or the time is over."""
    end = time.monotonic() + seconds
    best, why = tidied(program), failure
    found = _fails(best, failure)
    if found is None:
        return program, failure
    why = found
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(best):
            if time.monotonic() > end:
                return best, why
            found = _fails(candidate, why)
            if found is not None:
                best, why, smaller = candidate, found, True
                break
    return best, why


def _fails(program: Program, failure: Failure) -> Failure | None:
    try:
        outcome = check(program, [failure.setting])
    except Exception:
        return None
    return next((f for f in outcome.failures if f.kind == failure.kind), None)


def _smaller(program: Program) -> Iterator[Program]:
    if program.mode != "graph":
        yield replace(program, mode="graph")
    for output in program.outputs if len(program.outputs) > 1 else ():
        yield tidied(replace(program, outputs=(output,)))
    for output in program.outputs if len(program.outputs) > 1 else ():
        yield tidied(replace(program, outputs=tuple(o for o in program.outputs if o != output)))
    values = _values(program)
    for s in reversed(program.statements):
        value = values.get(s.target)
        if s.kind == "in place" or value is None:
            yield tidied(
                replace(program, statements=tuple(t for t in program.statements if t is not s))
            )
            continue
        for name in sorted(s.reads):
            other = values.get(name)
            if other is not None and (other.shape, other.dtype) == (value.shape, value.dtype):
                yield tidied(_renamed(program, s, name))
        yield tidied(_as_input(program, s, value))
    for output in program.outputs if len(program.outputs) == 1 else ():
        for s in reversed(program.statements):
            if s.target and s.target != output:
                yield tidied(replace(program, outputs=(s.target,)))


def _values(program: Program) -> dict[str, Tensor]:
    scope = dict(NAMES)
    found = dict(zip((name for name, _ in program.inputs), program.draw(), strict=True))
    scope |= found
    for s in program.statements:
        try:
            with torch.no_grad():
                value = eval(s.expression, scope)
        except Exception:
            break
        scope[s.target] = found[s.target] = value
    return found


def _renamed(program: Program, s: Statement, name: str) -> Program:
    """Whoever read `s` reads one of its operands."""
    rest = [_reading(t, s.target, name) for t in program.statements if t is not s]
    outputs = tuple(name if o == s.target else o for o in program.outputs)
    return replace(program, statements=tuple(rest), outputs=outputs)


def _reading(s: Statement, old: str, new: str) -> Statement:
    if old not in s.reads:
        return s

    return replace(s, expression=re.sub(rf"\b{old}\b", new, s.expression))


def _as_input(program: Program, s: Statement, value: Tensor) -> Program:
    """The value of `s` is drawn instead of computed."""
    dtype = DTYPES.get(value.dtype)
    name = f"x{1 + max((int(n[1:]) for n, _ in program.inputs), default=0)}"
    expression = (
        f"torch.randn({', '.join(map(str, value.shape))})" if value.dim() else "torch.randn(())"
    )
    expression += f".to({dtype})" if dtype not in (None, "f32") else ""
    made = _renamed(program, s, name)
    return replace(made, inputs=(*made.inputs, (name, expression))) if dtype else program


def tidied(program: Program) -> Program:
    """Without statements and inputs that nothing reads."""
    statements = tuple(needed(program.statements, program.outputs))
    read = set(program.outputs).union(*(s.reads for s in statements))
    inputs = tuple(i for i in program.inputs if i[0] in read)
    return replace(program, statements=statements, inputs=inputs)

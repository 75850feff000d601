"""A Python program that shows what was wrong at one site: it needs torch and this package, and runs
by itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rocm_passes.rewrite.program import WIDE, Input, Program, Ref, Step
from rocm_passes.rewrite.verify import TRIALS, compared, draw, on_device

log = logging.getLogger(__name__)

WIDTH = 140
#: A program has fewer lines than this.
LINES = 40
Values = Sequence[Tensor]


class NotWritable(Exception):
    """The site has no program that runs by itself. The message is the reason."""


_HEAD = '''"""{title}"""
import math, sys, torch
import rocm_passes.registry  # our operators
from rocm_passes.rewrite.reproducer import Input, show
aten, prims = torch.ops.aten, torch.ops.prims
inputs = [
{inputs}]
def original(d, {names}):  # the graph's own nodes; d(dtype) is dtype, or float64 in the reference
{original}
def replacement(d, {names}):
{replacement}
sys.exit(show(inputs, original, replacement, "{device}"))
'''


def text(program: Program, title: str) -> str:
    """The program. Raises NotWritable where it would hold constants, or more lines than LINES."""
    if program.constants:
        raise NotWritable("it reads constants that the graph holds")
    short = {i.name: f"x{at}" for at, i in enumerate(program.inputs)}
    source = _HEAD.format(
        title=title.replace('"', "'").replace("\\", "/"),
        inputs="\n".join(_lines((f"{_input(i)}," for i in program.inputs), "    ")),
        names=", ".join(short.values()),
        original=_body(program.original, program.outputs, short, wide=True),
        replacement=_body(program.replacement, program.results, short, wide=False),
        device=program.device,
    )
    if source.count("\n") >= LINES:
        raise NotWritable(f"it would have {source.count(chr(10))} lines, and {LINES} are too many")
    return source


def write(folder: Path, idiom: str, source: str) -> str:
    """Write the program and return its path, or "" where the folder cannot be written."""
    name = f"{idiom}_{hashlib.sha256(source.encode()).hexdigest()[:12]}.py"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")
    except OSError as error:
        log.warning("rocm_passes: the reproducer %s cannot be written: %s", folder / name, error)
        return ""
    return os.fspath(folder / name)


def show(
    inputs: Sequence[Input],
    original: Callable[..., Values],
    replacement: Callable[..., Values],
    device: str,
) -> int:
    """Run a reproducer's functions on the values that the verification drew, and print both errors.

    Returns 1 where a value, a dtype or a shape differs by more than the bound, and 0 where none
    does.
    """
    wrong = False
    where = torch.device(device)
    with on_device(where):
        for trial, scale in enumerate(TRIALS):
            generator = torch.Generator("cpu").manual_seed(trial)
            values = [draw(i, generator, scale, where) for i in inputs]
            wide = [
                v.to(WIDE.get(v.dtype, v.dtype)) if isinstance(v, Tensor) else v for v in values
            ]
            olds, news = original(lambda d: d, *values), replacement(lambda d: d, *values)
            exacts = original(lambda d: WIDE.get(d, d), *wide)
            for at, (new, old, exact) in enumerate(zip(news, olds, exacts, strict=True)):
                print(f"trial {trial}, result {at}")
                print(f"  original:    {_told(old)}")
                print(f"  replacement: {_told(new)}")
                if new.dtype != old.dtype or new.shape != old.shape:
                    wrong = True
                    continue
                found = compared(new, old, exact)
                print(
                    f"  errors:      {found.original_error:.3g}, {found.error:.3g} {found.reason}"
                )
                wrong = wrong or bool(found.reason)
    return int(wrong)


def _told(found: Tensor) -> str:
    return f"{found.dtype} {list(found.shape)}, strides {list(found.stride())}"


def _input(entering: Input) -> str:
    if entering.number is not None:
        return f"Input({entering.name!r}, number={entering.number!r})"
    return f"Input({entering.name!r}, {entering.shape}, {entering.strides}, {entering.dtype})"


def _body(steps: Iterable[Step], names: Iterable[str], short: Mapping[str, str], wide: bool) -> str:
    known = dict(short)
    statements = []
    for at, step in enumerate(steps):
        made = _call(step, known, wide)
        known[step.name] = f"t{at}"
        statements.append(f"t{at} = {made};")
    returned = ", ".join(known[name] for name in names)
    return "\n".join(_lines([*statements, f"return [{returned}]"], "    "))


def _lines(parts: Iterable[str], indent: str) -> Iterator[str]:
    """The parts joined by spaces, with line breaks between them."""
    line = indent
    for part in parts:
        if len(line) + len(part) > WIDTH and line.strip():
            yield line.rstrip()
            line = indent
        line += part + " "
    yield line.rstrip()


def _call(step: Step, known: Mapping[str, str], wide: bool) -> str:
    arguments = [_value(a, known, wide) for a in step.args]
    arguments += [f"{name}={_value(a, known, wide)}" for name, a in step.kwargs.items()]
    if not isinstance(step.target, torch._ops.OpOverload):
        return _python(step, arguments)
    namespace, _, name = step.target._schema.name.partition("::")
    short = namespace if namespace in ("aten", "prims") else f"torch.ops.{namespace}"
    return f"{short}.{name}.{step.target._overloadname}({', '.join(arguments)})"


def _python(step: Step, arguments: list[str]) -> str:
    """A call of a function of Python's."""
    module, name = getattr(step.target, "__module__", ""), getattr(step.target, "__name__", "")
    if module == "_operator" and name == "getitem":
        return f"{arguments[0]}[{arguments[1]}]"
    if module in ("_operator", "math") and name:
        return f"__import__({module!r}).{name}({', '.join(arguments)})"
    raise NotWritable(f"it calls {step.target}")


def _value(found: Any, known: Mapping[str, str], wide: bool) -> str:
    if isinstance(found, Ref):
        return known[found.name]
    if isinstance(found, list):
        return f"[{', '.join(_value(each, known, wide) for each in found)}]"
    if isinstance(found, torch.dtype):
        return f"d({found})" if wide else str(found)
    if isinstance(found, float) and found in (float("inf"), float("-inf")):
        return f"{'-' if found < 0 else ''}math.inf"
    if found is None or isinstance(found, (bool, int, float, str)):
        return repr(found)
    if isinstance(found, (torch.memory_format, torch.layout)):
        return str(found)
    if isinstance(found, torch.device):
        return f"torch.{found!r}"
    raise NotWritable(f"it has an argument of type {type(found).__name__}")

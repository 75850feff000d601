"""No function of the package takes more than eight parameters, kernels apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import rocm_passes

PACKAGE = Path(rocm_passes.__file__).parent
MOST = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


def is_kernel(function: Function) -> bool:
    """Compiled by Triton, which has no other way to be given tensors and sizes than parameters."""
    return any("triton.jit" in ast.unparse(each) for each in function.decorator_list)


def parameters(function: Function) -> list[str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    every += [each for each in (given.vararg, given.kwarg) if each is not None]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


def too_wide(source: str) -> list[str]:
    return [
        f"{each.name}, line {each.lineno}: {len(parameters(each))}"
        for each in functions(source)
        if not is_kernel(each) and len(parameters(each)) > MOST
    ]


def test_no_function_has_more_than_eight_parameters() -> None:
    found = {
        str(path.relative_to(PACKAGE)): too_wide(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_the_check_can_fail() -> None:
    nine = "a, b, c, d, /, e, f, *g, h, i"
    assert too_wide(f"def f({nine}): ...") == ["f, line 1: 9"]
    assert too_wide(f"class C:\n    async def f(self, {nine}): ...") == ["f, line 2: 9"]
    assert too_wide(f"@triton.jit(do_not_specialize=S)\ndef f({nine}): ...") == []
    assert too_wide("def f(a, b, c, d, *, e, f, g, **h): ...") == []

"""What compiles in Triton's interpreter and not for a GPU: a string among the defaults of a helper
(Triton 3.6), and an annotation that is none of Triton's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rocm_passes

KERNELS = Path(rocm_passes.__file__).parent / "kernels" / "triton"


FILES = pytest.mark.parametrize(
    "file", sorted(KERNELS.rglob("*.py")), ids=lambda f: str(f.relative_to(KERNELS))
)


def device_functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(d).startswith("triton.jit") for d in node.decorator_list
        ):
            yield node


@FILES
def test_device_code_has_no_text_among_its_defaults(file: Path) -> None:
    for node in device_functions(file):
        defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
        texts = [d for d in defaults if isinstance(d, ast.Constant) and isinstance(d.value, str)]
        assert texts == [], f"{file.name}: {node.name}"


@FILES
def test_device_code_has_no_annotation_but_constexpr(file: Path) -> None:
    for node in device_functions(file):
        given = [a.annotation for a in node.args.args if a.annotation is not None]
        others = [ast.unparse(a) for a in given if ast.unparse(a) != "tl.constexpr"]
        assert others == [] and node.returns is None, f"{file.name}: {node.name}"

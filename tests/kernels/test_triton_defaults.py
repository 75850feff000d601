"""Triton 3.6 takes a default argument of a helper for a plain Python value: a string fails to
compile on a GPU.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rocm_passes

KERNELS = Path(rocm_passes.__file__).parent / "kernels" / "triton"


@pytest.mark.parametrize(
    "file", sorted(KERNELS.rglob("*.py")), ids=lambda f: str(f.relative_to(KERNELS))
)
def test_device_code_has_no_text_among_its_defaults(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        if not any(ast.unparse(d).startswith("triton.jit") for d in node.decorator_list):
            continue
        defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
        texts = [d for d in defaults if isinstance(d, ast.Constant) and isinstance(d.value, str)]
        assert texts == [], f"{file.name}: {node.name}"

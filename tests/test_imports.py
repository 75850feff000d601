"""No file of the package imports itself by way of others, imports within functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import rocm_passes

PACKAGE = Path(rocm_passes.__file__).parent
Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """By dotted name; a package's name stands for its `__init__.py`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(source: str) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports but those for type checkers alone."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        waiting += ast.iter_child_nodes(node)


def imports(source: str, known: Mapping[str, object]) -> set[str]:
    """The files that a file imports: `from package import module` names the module."""
    found = set()
    for each in statements(source):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
            continue
        assert each.level == 0, "relative imports are not read"
        base = each.module or ""
        named = {f"{base}.{alias.name}" for alias in each.names}
        found |= {name if name in known else base for name in named}
    return {name for name in found if name in known}


def graph(root: Path) -> Graph:
    known = modules(root)
    return {name: imports(path.read_text(), known) - {name} for name, path in known.items()}


def circle(of: Graph) -> list[str]:
    """The modules that lie on circles, or between two."""
    left = {name: set(needs) for name, needs in of.items()}
    while True:
        needed = {name for needs in left.values() for name in needs}
        ends = [name for name, needs in left.items() if name not in needed or not needs]
        if not ends:
            return sorted(left)
        for name in ends:
            del left[name]
        left = {name: needs & left.keys() for name, needs in left.items()}


def test_no_circle() -> None:
    assert circle(graph(PACKAGE)) == []


def test_the_check_can_fail(tmp_path: Path) -> None:
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("import os\nfrom house import b\n")
    (package / "b.py").write_text("def f():\n    from house.a import g\n")
    (package / "c.py").write_text("from house.a import f\n")
    assert circle(graph(package)) == ["house.a", "house.b"]
    for_types = "if TYPE_CHECKING:\n    from house.a import g\n"
    (package / "b.py").write_text(f"from typing import TYPE_CHECKING\n{for_types}")
    assert circle(graph(package)) == []

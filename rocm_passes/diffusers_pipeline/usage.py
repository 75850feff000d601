"""How often a pipeline calls a component, read from the source of its `__call__` and the methods
that it calls.

A denoising loop is a loop whose body calls the `step` of a scheduler. This decides only about
components whose class does not say what they are; a source that cannot be read decides nothing.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

EACH_STEP = "each step"
ONCE = "once"
NOT_SEEN = "not seen"

#: Methods that do not compute, or only move or describe a module.
NO_CALLS = {
    "to",
    "eval",
    "train",
    "parameters",
    "named_parameters",
    "buffers",
    "modules",
    "requires_grad_",
}


def how_often(pipeline: type, component: str) -> str:
    """EACH_STEP: within a denoising loop; ONCE: elsewhere; NOT_SEEN: in no source that could be
    read.
    """
    found = {in_loop for name, in_loop in _uses(pipeline) if name == component}
    if True in found:
        return EACH_STEP
    return ONCE if found else NOT_SEEN


@cache
def _uses(pipeline: type) -> frozenset[tuple[str, bool]]:
    """(attribute of self that is called or passed on, whether that happens in a denoising loop)."""
    uses: set[tuple[str, bool]] = set()
    todo, seen = [("__call__", False)], set()
    while todo:
        method, in_loop = todo.pop()
        if (method, in_loop) in seen:
            continue
        seen.add((method, in_loop))
        for name, inside in _visit(_source(pipeline, method), None, in_loop):
            if inspect.isfunction(inspect.getattr_static(pipeline, name, None)):
                todo.append((name, inside))
            else:
                uses.add((name, inside))
    return frozenset(uses)


def _source(pipeline: type, method: str) -> ast.AST:
    function = inspect.unwrap(getattr(pipeline, method))
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _visit(node: ast.AST, parent: ast.AST | None, in_loop: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, (ast.For, ast.While)):
        in_loop = in_loop or _steps(node)
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ):
        if _is_use(node, parent):
            yield node.attr, in_loop
        return
    for child in ast.iter_child_nodes(node):
        # The method of `self.vae.decode(...)` is judged where its call is in sight.
        if isinstance(node, ast.Call) and child is node.func and isinstance(child, ast.Attribute):
            if child.attr not in NO_CALLS:
                yield from _visit(child.value, node, in_loop)
                if _is_self(child.value):
                    yield child.attr, in_loop
            continue
        yield from _visit(child, node, in_loop)


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_use(node: ast.AST, parent: ast.AST | None) -> bool:
    """Called, assigned or passed on; not compared, asked for an attribute, or tested."""
    if isinstance(parent, ast.Call):
        name = parent.func.id if isinstance(parent.func, ast.Name) else ""
        return name not in ("hasattr", "getattr", "isinstance", "type")
    return not isinstance(
        parent, (ast.Attribute, ast.Compare, ast.BoolOp, ast.If, ast.UnaryOp, ast.IfExp)
    ) or (isinstance(parent, ast.IfExp) and node is not parent.test)


def _steps(loop: ast.AST) -> bool:
    """Whether a scheduler steps in the loop itself: a loop over chunks that holds denoising loops
    is none.
    """
    todo = list(ast.iter_child_nodes(loop))
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.For, ast.While)):
            continue
        if isinstance(node, ast.Call) and _is_step(node.func):
            return True
        todo.extend(ast.iter_child_nodes(node))
    return False


def _is_step(function: ast.AST) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "step"
        and "scheduler" in ast.unparse(function.value)
    )

"""Inductor's private names: listed, there in this torch, and their absence said."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from rocm_passes.kernels.triton import inductor, launcher
from rocm_passes.kernels.triton.lowering import LAUNCHED_BY
from rocm_passes.ops.rms_norm import RMS_NORM
from tests.rewriting import rewrite

#: As inductor.py names them.
MODULES = ("ir", "triton_kernel_wrap")
LACKING = {"torch._inductor.ir": ("TensorBox.create", "NoSuchBox"), "torch.no_such": ("name",)}


def test_this_torch_has_them_all() -> None:
    assert launcher.lacking_of(launcher.PRIVATE) is None


def test_each_name_that_is_used_is_listed() -> None:
    """Of the modules that inductor.py names: `ir.TensorBox`, `triton_kernel_wrap.x`, imports."""
    listed = {name.split(".")[0] for of in launcher.PRIVATE.values() for name in of}
    used = set()
    for node in ast.walk(ast.parse(Path(str(inductor.__file__)).read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in MODULES:
            used.add(node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch._inductor."):
            used |= {alias.name for alias in node.names}
    # Annotations only.
    assert used - {"Layout"} <= listed, used - listed
    assert {"TensorBox", "kernel_side_table", "lowerings"} <= used


def test_what_is_lacking_is_named() -> None:
    reason = launcher.lacking_of(LACKING) or ""
    assert "torch._inductor.ir.NoSuchBox" in reason and "torch.no_such.name" in reason
    assert "TensorBox" not in reason


@pytest.fixture
def graph() -> fx.Graph:
    made = fx.Graph()
    x = made.placeholder("x")
    rest = (None, None, None, 1e-6, 0.0, None, None, torch.float32, "add", False, "triton")
    made.output(made.call_function(RMS_NORM.overload, (x, *rest)))
    return made


def operators(graph: fx.Graph) -> list[fx.Node]:
    return graph.find_nodes(op="call_function", target=RMS_NORM.overload)


@pytest.mark.parametrize("by", ["inductor", "static", "python"])
def test_a_graph_is_left_to_operator_calls_where_a_name_is_lacking(
    graph: fx.Graph, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(launcher, "lacking", lambda: "no name")
    monkeypatch.setattr(inductor, "register", lambda: pytest.fail("it needs the name"))
    launcher.mark(graph, by)
    assert [node.meta[LAUNCHED_BY] for node in operators(graph)] == [by]


@pytest.mark.parametrize("by", ["inductor", "python"])
def test_nodes_say_who_launches_them(graph: fx.Graph, by: str) -> None:
    launcher.mark(graph, by)
    assert [node.meta[LAUNCHED_BY] for node in operators(graph)] == [by]


def test_the_ledger_says_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"as_if": "gfx942", "lowering": "rms_norm=triton"}

    def notes() -> tuple[str, ...]:
        site = rewrite(nn.RMSNorm(16), torch.randn(2, 16), options=options, runs=False).only()
        assert site.lowering == "triton"
        return site.notes

    said = "an operator call launches it, not Inductor's code: this torch has no"
    assert not [note for note in notes() if note.startswith(said)]
    monkeypatch.setattr(launcher, "lacking", lambda: "torch._inductor.ir.X")
    assert f"{said} torch._inductor.ir.X" in notes()

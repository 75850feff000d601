"""No complex arithmetic is left of real models compiled whole, and Inductor finds none to warn of
on its way.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import lowering

from tests.generated_code import only_written
from tests.rewriting import Rewritten, recording, rewrite
from tests.zoo import case, tensors_in
from tests.zoo import traced as traced_once
from tests.zoo.traced import built, results, traced

DENOISERS = (
    "wan", "z_image", "qwen_image", "flux", "flux2", "hunyuan_video", "ltx", "ltx2", "cogvideox",
    "mochi", "hidream",
    "lumina2", "cosmos", "kandinsky5",
)  # fmt: skip

#: Those that have complex numbers: the only ones of which code generation could say something, too.
COMPLEX = ("z_image", "qwen_image", "lumina2")
#: Of the others the fast suite takes two, whose rotations are written in different ways.
PLAIN = ("wan", "flux")
SELECTS = ("always", pytest.param("auto", marks=pytest.mark.exhaustive))


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in PLAIN else pytest.mark.exhaustive)
        for n in DENOISERS
        if n not in COMPLEX
    ],
)
def test_models_without_complex_numbers_get_none(name: str, select: str) -> None:
    seen = traced_once.passed(name, select=select)
    assert not [n for g in (*seen.before, *seen.after) for n in g.nodes if is_complex(n)]


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_are_gone_from_the_graphs(name: str, select: str) -> None:
    check(traced_once.passed(name, select=select))


#: Inductor's warning comes of an operator that it lowers: of the others the graphs say as much.
#: The fast suite generates the code of one rotation.
@pytest.mark.codegen
@pytest.mark.exhaustive
@pytest.mark.parametrize("select", ["always", "auto"])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_are_gone(name: str, select: str) -> None:
    seen = Rewritten()
    backend = functools.partial(recording, seen, options={"select": select}, caches=False)
    with warned() as texts, only_written():
        traced(name).compiled(backend)
    assert not texts
    check(seen)


@pytest.mark.codegen
@pytest.mark.parametrize("select", ["always", "auto"])
def test_complex_numbers_are_gone_from_a_rotation_s_code(select: str) -> None:
    with warned() as texts, only_written():
        seen = rewrite(rotated, *rotation(), options={"select": select}, codegen=True)
    assert not texts
    check(seen)


@pytest.mark.codegen
def test_the_warning_can_be_seen() -> None:
    """Left to Inductor, the same rotation warns."""
    with warned() as texts, only_written():
        rewrite(rotated, *rotation(), options={"select": "off"}, codegen=True)
    assert texts


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """As Qwen-Image and Z-Image write it."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table.unsqueeze(1)).flatten(3).type_as(x)


def rotation() -> tuple[Tensor, Tensor]:
    angles = torch.randn(7, 8)
    return torch.randn(2, 7, 3, 16, dtype=torch.bfloat16), torch.polar(
        torch.ones_like(angles), angles
    )


def check(seen: Rewritten) -> None:
    assert any(is_complex(n) for g in seen.before for n in g.nodes), (
        "the model has no complex numbers any more"
    )
    for graph in seen.after:
        returned = set(graph.output_node().all_input_nodes)
        for node in graph.nodes:
            # A table that one graph returns to the next must be complex: a view, which computes
            # nothing.
            view = node in returned and node.target is torch.ops.aten.view_as_complex.default
            assert node.op == "placeholder" or not is_complex(node) or view, node.format_node()


#: What they compute, test_recall_norms.py and test_recall_rotary.py hold against float64.
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COMPLEX)
def test_models_with_complex_numbers_compute_the_same(name: str) -> None:
    zoo_case, model = case(name), built(name)
    args, kwargs = zoo_case.inputs(model)
    seen = rewrite(zoo_case.function(model), *args, fullgraph=zoo_case.one_graph, **kwargs)
    for ours, expected in zip(tensors_in(seen.result), results(name), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0.1, atol=0.1)


@contextmanager
def warned() -> Iterator[list[str]]:
    """Inductor's warnings of complex numbers. It gives one a process, unless made to forget."""
    texts: list[str] = []
    lowering._warn_complex_not_supported.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
    lowering._warn_complex_not_supported.cache_clear()
    texts += [str(w.message) for w in found if "complex operators" in str(w.message)]


def is_complex(node: fx.Node) -> bool:
    found = node.meta.get("val")
    return isinstance(found, Tensor) and found.is_complex()

"""Products and quotients by one are skipped by what computes from them, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.fx import nodes as n
from rocm_passes.passes.drop_identities import drop_identities, is_identity
from rocm_passes.report.changes import Change
from tests.rewriting import rewrite

aten = torch.ops.aten
#: Every kind of number: an identity must keep the sign of zero, infinities and subnormals.
VALUES = (0.0, -0.0, 1.5, -2.25, 1e-42, -1e-42, float("inf"), float("-inf"), float("nan"), 3e38)


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(VALUES).to(dtype).reshape(2, 5)


def run(function: Callable[..., Any], *args: Tensor) -> tuple[int, fx.Graph]:
    """How many readers were moved. The results keep their bits, and share memory as before."""
    gm = make_fx(function, tracing_mode="fake")(*args)
    changed = readers(drop_identities(gm.graph))
    gm.graph.eliminate_dead_code()
    gm.graph.lint()
    gm.recompile()
    ours, theirs = gm(*args), function(*args)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and mine.stride() == other.stride()
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(mine.signbit(), other.signbit())
    assert shared([*args, *ours]) == shared([*args, *theirs])
    return changed, gm.graph


def readers(changes: list[Change]) -> int:
    return sum(change.parameters["readers"] for change in changes)


def shared(tensors: list[Tensor]) -> list[list[bool]]:
    """Which of them lie in one memory."""
    places = [t.untyped_storage().data_ptr() for t in tensors]
    return [[one == other for other in places] for one in places]


def identities(graph: fx.Graph) -> int:
    return sum(is_identity(node) for node in graph.nodes)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "x / 1.0": lambda x: x / 1.0,
    "x / 1": lambda x: x / 1,
    "x * 1.0": lambda x: x * 1.0,
    "1.0 * x": lambda x: 1.0 * x,
    "(x / 1.0) * 1": lambda x: (x / 1.0) * 1,
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_reader_reads_what_stands_before(name: str, dtype: torch.dtype) -> None:
    changed, graph = run(lambda x: [torch.relu(SPELLINGS[name](x)) - 1.0], inputs(dtype))
    assert changed >= 1 and identities(graph) == 0


def test_one_that_is_an_output_stays_and_its_readers_do_without_it() -> None:
    changed, graph = run(lambda x: [x / 1.0, (x / 1.0).neg()], inputs())
    assert changed == 1 and identities(graph) == 1


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda y: y.view(5, 2),
    "transpose": lambda y: y.t(),
    "select": lambda y: y[0],
    "detach": torch.detach,
    "reshape": lambda y: y.reshape(-1),
    "unsafe view": lambda y: aten._unsafe_view(y, [5, 2]),
    "expand": lambda y: y.expand(3, 2, 5),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_of_one_that_is_an_output_keeps_its_memory_apart(view: Any) -> None:
    changed, graph = run(lambda x: [view(x / 1.0)], inputs())
    assert changed == 0 and identities(graph) == 1


def test_what_reads_strides_keeps_it() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.as_strided(x / 1.0, (3,), (2,)) + 1]

    changed, graph = run(function, inputs())
    assert changed == 0 and identities(graph) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / 2.0,
        lambda x: x * -1.0,
        lambda x: x + 0.0,
        lambda x: x / torch.ones(()),
        lambda x: torch.div(x, 1.0, rounding_mode="floor"),
        lambda x: x.pow(1.0),
    ],
    ids=["half", "minus", "plus nought", "a tensor", "floor", "power"],
)
def test_what_is_no_identity_stays(function: Callable[[Tensor], Tensor]) -> None:
    changed, _ = run(lambda x: [torch.relu(function(x))], inputs())
    assert changed == 0


def test_an_integer_that_becomes_a_float_is_another_value() -> None:
    changed, _ = run(lambda x: [(x / 1).neg()], torch.arange(6).reshape(2, 3))
    assert changed == 0


def test_another_layout_is_another_tensor() -> None:
    """The quotient of every other column is dense."""
    changed, _ = run(lambda x: [(x[:, ::2] / 1.0).exp()], torch.randn(3, 8))
    assert changed == 0
    changed, _ = run(lambda x: [(x.t() / 1.0).exp()], torch.randn(3, 8))
    assert changed == 1


class Attended(torch.nn.Module):
    """The end of an attention as diffusers has it, and the next norm."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.norm = torch.nn.Linear(16, 16), torch.nn.LayerNorm(16)

    def forward(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        x = self.out(attended) / 1.0 + x
        return self.norm(x), x


def test_a_residual_chain_has_no_quotient_before_it() -> None:
    torch.manual_seed(0)
    model, args = Attended(), (torch.randn(2, 8, 16), torch.randn(2, 8, 16))
    with torch.no_grad():
        found = rewrite(model, *args, options={"idioms": "residual_norm,layer_norm"})
        want = model(*args)
    assert [entry.idiom for entry in found.sites if entry.outcome == "rewritten"] == [
        "residual_norm"
    ]
    assert [t for t in found.targets() if t is aten.div.Tensor] == []
    # torch 2.14 drops the quotient by itself.
    assert aten.div.Tensor in found.targets("before") or torch.__version__ >= "2.14"
    for got, expected in zip(found.result, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"select": "off"}, {"fuel": 0}])
def test_where_nothing_may_be_rewritten_the_graph_is_left(options: dict[str, Any]) -> None:
    found = rewrite(lambda x: F.relu(x / 1.0), torch.randn(4, 4), options=options)
    assert found.targets("before") == found.targets()


def test_symbolic_sizes() -> None:
    gm = make_fx(lambda x: (x / 1.0).exp(), tracing_mode="symbolic")(torch.randn(5, 7))
    assert readers(drop_identities(gm.graph)) == 1
    assert n.calls(gm.graph, aten.exp.default)

"""Which lowerings a site is offered: strict numerics, launches by Inductor, one that is forced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rocm_passes.ops.operator import Lowering, same_bits
from rocm_passes.options import Options
from rocm_passes.rewrite.choose import Choice, choose
from rocm_passes.rewrite.match import Idiom, Match
from rocm_passes.target import Target
from tests.small_graphs import CPU, GPU, Anything


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)


def test_strict_numerics_refuses_a_lowering_that_rounds_elsewhere() -> None:
    note = Lowering("kernel", note=lambda *_: "bf16 stores truncate", write=lambda b, call: call.x)
    site = Match(_node(), frozenset(), (_node(),), Anything(), {})
    idiom = Idiom("any", lambda g, c: iter(()), (note,))
    refused = choose(idiom, site, CPU, Options(select="always", rewrite_numerics="strict"))
    assert (refused.outcome, refused.reason) == (
        "refused",
        "kernel: rewrite_numerics='strict': bf16 stores truncate",
    )
    taken = choose(idiom, site, CPU, Options(select="always"))
    assert (taken.outcome, taken.notes) == ("rewritten", ("bf16 stores truncate",))


def test_strict_numerics_take_what_promises_the_graph_s_bits_alone() -> None:
    copy, silent = LAUNCHES, Lowering[Anything]("kernel", run=lambda call: call.x)
    assert chosen(copy, torch.empty(3), rewrite_numerics="strict").outcome == "rewritten"
    refused = chosen(silent, torch.empty(3), rewrite_numerics="strict")
    assert (refused.outcome, refused.reason) == (
        "refused",
        "kernel: rewrite_numerics='strict': its bits may differ from those of the graph's own "
        "nodes: it may sum in another order",
    )
    assert chosen(silent, torch.empty(3)).outcome == "rewritten"


LAUNCHES = Lowering[Anything](
    "triton", run=lambda call: call.x, launches=True, other_bits=same_bits
)
LIBRARY = Lowering[Anything](
    "aiter", note=lambda *_: "bf16 stores truncate", run=lambda call: call.x
)
ATEN = Lowering[Anything]("aten", write=lambda b, call: call.x)
CALLED = "an operator call launches it, not Inductor's code: "


@pytest.mark.parametrize(
    ("lowering", "launch", "notes"),
    [
        (LAUNCHES, "inductor", ()),
        (LAUNCHES, "python", (CALLED + "launch='python'",)),
        (LIBRARY, "inductor", ("bf16 stores truncate", CALLED + "it calls a library")),
        (LIBRARY, "python", ("bf16 stores truncate", CALLED + "it calls a library")),
        (ATEN, "python", ()),
    ],
)
def test_what_inductor_does_not_launch_is_noted(
    lowering: Lowering[Any], launch: str, notes: tuple[str, ...]
) -> None:
    assert chosen(lowering, torch.empty(3), launch=launch).notes == notes


def chosen(
    lowering: Lowering[Any], x: torch.Tensor, target: Target = GPU, **options: Any
) -> Choice:
    node = _node()
    node.meta["val"] = x
    site = Match(node, frozenset(), (node,), Anything((node,)), {})
    idiom = Idiom("any", lambda g, c: iter(()), (lowering,))
    return choose(idiom, site, target, Options(select="always", **options))


def test_symbolic_sizes_are_noted() -> None:
    size = ShapeEnv().create_unbacked_symint()
    with FakeTensorMode(shape_env=size.node.shape_env):
        x = torch.empty(2, size)
    assert chosen(LAUNCHES, x).notes == (CALLED + "its sizes are symbolic",)


def test_on_a_cpu_nothing_is_launched() -> None:
    assert chosen(LAUNCHES, torch.empty(3), CPU, launch="python").notes == ()


def test_strict_numerics_take_what_inductor_does_not_launch() -> None:
    choice = chosen(LAUNCHES, torch.empty(3), launch="python", rewrite_numerics="strict")
    assert (choice.outcome, choice.notes) == ("rewritten", (CALLED + "launch='python'",))


def test_a_forced_lowering_is_taken_or_refused() -> None:
    one, other = Lowering("one"), Lowering("other", refuses=lambda *_: "never")
    idiom = Idiom("any", lambda g, c: iter(()), (one, other))
    site = Match(_node(), frozenset(), (_node(),), Anything(), {})
    assert choose(idiom, site, CPU, Options(lowering=(("any", "one"),))).lowering is one
    refused = choose(idiom, site, CPU, Options(lowering=(("any", "other"),)))
    assert (refused.outcome, refused.reason) == ("refused", "other: never")


def _node() -> fx.Node:
    return fx.Graph().placeholder("x")

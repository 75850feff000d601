"""Sites that overlap: the larger fusion first, no node taken twice, and what is left is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from rocm_passes import policy
from rocm_passes.fx import provenance
from rocm_passes.fx.convexity import Contraction
from rocm_passes.idioms.norms import rms_norm
from rocm_passes.ops.operator import Call, Lowering
from rocm_passes.policy import Rule
from rocm_passes.rewrite.match import Context, Idiom, Match
from tests.rewriting import rewrite
from tests.small_graphs import D, TwoNorms, aten, install


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)


def rule(monkeypatch: pytest.MonkeyPatch, idiom: str, pays: bool) -> None:
    """A rule in front of the others, for every lowering of the idiom."""
    added = Rule(idiom, "*", "any", {}, pays, "it pays" if pays else "it is slow")
    monkeypatch.setattr(policy, "RULES", (added, *policy.RULES))


def fused() -> Idiom:
    """Both norms as one site, to see how larger fusions give way."""

    def find(graph: fx.Graph, context: Context) -> Iterator[Match]:
        found = [s for s in rms_norm.find(graph, context) if isinstance(s, Match)]
        nodes = frozenset().union(*(s.nodes for s in found))
        first, last = found[0], found[-1]
        yield Match(first.anchor, nodes, last.outputs, first.call, {"rms_norm": len(found)})

    write = lambda b, call: b(torch.ops.aten.mul.Tensor, call.x, 0.0)  # noqa: E731
    return Idiom("pair", find, (Lowering("zero", write=write),), fuses=True)


def test_a_larger_fusion_takes_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fused(), rms_norm.IDIOM)
    rule(monkeypatch, "pair", True)
    seen = rewrite(TwoNorms(), torch.randn(3, D), options={"select": "auto"})
    assert [(e.idiom, dict(e.covers), e.lowering) for e in seen.sites] == [
        ("pair", {"rms_norm": 2}, "zero")
    ]
    assert not seen.result.any()


def test_a_larger_fusion_not_taken_is_noted_on_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fused(), rms_norm.IDIOM)
    rule(monkeypatch, "pair", False)
    seen = rewrite(TwoNorms(), torch.randn(3, D), options={"select": "auto"})
    assert [e.idiom for e in seen.sites] == ["rms_norm", "rms_norm"]
    assert all(e.considered == ("pair: left to Inductor: zero: it is slow",) for e in seen.sites)


@dataclass(frozen=True)
class Copy(Call):
    x: Any
    y: Any = None


def made_up(
    name: str, covers: dict[str, int], *targets: Any, fuses: bool = False, anchor: int = 0
) -> Idiom:
    """One site: the first node of each of these targets; what it becomes is wrong, and easy
    to see.
    """

    def find(graph: fx.Graph, context: Context) -> Iterator[Match]:
        nodes = [next(iter(graph.find_nodes(op="call_function", target=t))) for t in targets]
        x = next(iter(graph.find_nodes(op="placeholder")))
        yield Match(nodes[anchor], frozenset(nodes), (nodes[-1],), Copy(x), covers, {"of": name})

    lowering = Lowering("copy", write=lambda b, call: b(aten.clone.default, call.x))
    return Idiom(name, find, (lowering,), fuses=fuses)


def chain(x: Tensor) -> Tensor:
    return torch.sin(torch.neg(torch.exp(x)))


def cut(monkeypatch: pytest.MonkeyPatch, *idioms: Idiom, slow: Sequence[str] = ()) -> list[Any]:
    """The entries of the chain, where by rule each idiom pays that is not `slow`."""
    install(monkeypatch, *idioms)
    for idiom in idioms:
        rule(monkeypatch, idiom.name, idiom.name not in slow)
    x = torch.randn(3, D)
    return rewrite(chain, x, options={"select": "auto"}).sites


EXP, NEG, SIN = aten.exp.default, aten.neg.default, aten.sin.default


def test_a_site_that_an_earlier_one_has_a_part_of_is_refused_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = made_up("first", {"rms_norm": 1}, EXP, NEG)
    late, taken = cut(monkeypatch, first, made_up("late", {"rotary": 1}, NEG, SIN, anchor=1))
    assert (late.idiom, late.outcome, late.lowering) == ("late", "refused", None)
    assert late.reason == "first's site has taken a part of it"
    assert late.covers == {"rotary": 1}
    assert late.parameters == {"of": "late", "taken_at": taken.location}
    assert taken.location.startswith(provenance.short(__file__))
    assert [i["shape"] for i in late.inputs] == [[3, D]]
    assert (taken.idiom, taken.outcome, taken.covers) == ("first", "rewritten", {"rms_norm": 1})


@pytest.mark.parametrize(
    ("covers", "left"),
    [
        ({"rms_norm": 1}, {}),
        ({"rotary": 1}, {"rotary": 1}),
        ({"rms_norm": 1, "rotary": 1}, {"rotary": 1}),
    ],
    ids=str,
)
def test_what_the_earlier_site_covers_at_its_anchor_is_not_counted_again(
    monkeypatch: pytest.MonkeyPatch, covers: dict[str, int], left: dict[str, int]
) -> None:
    first = made_up("first", {"rms_norm": 1}, EXP, NEG)
    late, _ = cut(monkeypatch, first, made_up("late", covers, NEG, SIN))
    assert (late.idiom, late.outcome, late.covers) == ("late", "refused", left)


@pytest.mark.parametrize("targets", [(NEG,), (EXP, NEG)], ids=["smaller", "the same"])
def test_a_site_inside_an_earlier_one_has_no_entry(
    monkeypatch: pytest.MonkeyPatch, targets: tuple[Any, ...]
) -> None:
    first = made_up("first", {"rms_norm": 1}, EXP, NEG)
    (taken,) = cut(monkeypatch, first, made_up("late", {"rms_norm": 1}, *targets))
    assert taken.idiom == "first"


def test_a_site_inside_two_earlier_ones_has_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made_up("first", {"rms_norm": 1}, EXP), made_up("second", {"rotary": 1}, NEG)
    sites = cut(monkeypatch, first, second, made_up("late", {"rms_norm": 1}, EXP, NEG))
    assert [e.idiom for e in sites] == ["first", "second"]


def test_a_site_beside_one_that_was_not_taken_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made_up("first", {"rms_norm": 1}, EXP, NEG)
    late = made_up("late", {"rotary": 1}, NEG, SIN)
    sites = cut(monkeypatch, first, late, slow=["first"])
    assert [(e.idiom, e.outcome) for e in sites] == [("first", "kept"), ("late", "rewritten")]


def test_a_fusion_that_an_earlier_site_has_a_part_of_is_noted_on_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = made_up("first", {"rms_norm": 1}, EXP, NEG)
    fusion = made_up("fusion", {"rms_norm": 1, "rotary": 1}, NEG, SIN, fuses=True)
    taken, late = cut(monkeypatch, first, fusion, made_up("late", {"rotary": 1}, SIN))
    assert (taken.idiom, taken.considered) == ("first", ())
    assert (late.idiom, late.outcome) == ("late", "rewritten")
    assert late.considered == ("fusion: first's site has taken a part of it",)


def test_two_chains_that_read_each_others_sums() -> None:
    """The first chain reads the second's sum in a node that stands behind all that the second
    reads. Taken as one site, it gives its own sum no earlier.
    """
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    a, b = (graph.call_function(torch.neg, (v,)) for v in (x, y))
    first = graph.call_function(torch.mul, (graph.call_function(torch.exp, (a,)), b))
    second = graph.call_function(torch.mul, (graph.call_function(torch.exp, (b,)), a))
    graph.output((first, second))
    contraction = Contraction(graph)
    one = Match(first, frozenset({a, *first.all_input_nodes, first}) - {b}, (a, first),
                Copy(x, b), {})  # fmt: skip
    other = Match(second, frozenset({b, *second.all_input_nodes, second}) - {a}, (b, second),
                  Copy(y, a), {})  # fmt: skip
    assert one.obstacle(contraction) is other.obstacle(contraction) is None
    contraction.contract(one.nodes, one.inputs(), one.outputs)
    assert other.obstacle(contraction) is not None


def test_two_chains_of_which_one_reads_the_other_through_a_node_that_is_not_its_own() -> None:
    """The first chain's call reads c, its node c + 1, which an output reads too."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    a, b = (graph.call_function(torch.neg, (v,)) for v in (x, y))
    c = graph.call_function(torch.exp, (b,))
    more = graph.call_function(torch.add, (c, 1))
    first = graph.call_function(torch.mul, (a, more))
    second = graph.call_function(torch.mul, (b, a))
    graph.output((first, second, more))
    contraction = Contraction(graph)
    one = Match(first, frozenset({a, first}), (a, first), Copy(x, c), {})
    other = Match(second, frozenset({b, second}), (b, second), Copy(y, a), {})
    assert one.obstacle(contraction) is other.obstacle(contraction) is None
    contraction.contract(one.nodes, one.inputs(), one.outputs)
    assert other.obstacle(contraction) is not None


def test_convexity() -> None:
    """A site whose input is computed from its own output can't be computed at once."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.neg, (x,))
    outside = graph.call_function(torch.exp, (a,))
    b = graph.call_function(torch.add, (a, outside))
    graph.output((a, b))
    contraction = Contraction(graph)
    loop = Match(a, frozenset({a, b}), (a, b), Copy(x, outside), {})
    assert loop.obstacle(contraction) == "one of its inputs is computed from a value inside it"
    assert Match(a, frozenset({a}), (a,), Copy(x), {}).obstacle(contraction) is None

"""What is cut out with a site: up to matrix products, convolutions, attention and opaque calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import rocm_passes.graph_pass as graph_pass
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.options import Options
from rocm_passes.report.ledger import Entry
from rocm_passes.rewrite import measuring
from rocm_passes.rewrite.cut import Cut, cut
from rocm_passes.rewrite.match import Idiom, Match
from rocm_passes.rewrite.measuring import CompiledSite
from rocm_passes.rewrite.neighbourhood import Neighbourhoods, NotCut
from rocm_passes.target import Target
from rocm_passes.tuning import budget, inductor_code
from rocm_passes.tuning.inductor_code import Code, Compiled
from rocm_passes.tuning.sites import Times
from rocm_passes.tuning.store import load
from tests.rewriting import ON_CPU, Rewritten, rewrite


@contextmanager
def sites_of(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[tuple[Idiom, Match, Cut | str]]]:
    """Every match of the graphs that are compiled meanwhile, and its cut or why there is none.

    Looked at while the graph stands.
    """
    found: list[tuple[Idiom, Match, Cut | str]] = []
    decided = graph_pass.GraphPass._decided

    def look(self: graph_pass.GraphPass, work: Any) -> Any:
        around = Neighbourhoods(work.graph, self.preserved)
        for idiom in self.idioms:
            for site in idiom.find(work.graph, self._context):
                if isinstance(site, Match):
                    try:
                        made: Cut | str = cut(around.of(site), idiom.name, self.preserved, False)
                    except NotCut as reason:
                        made = str(reason)
                    if isinstance(made, Cut):
                        _check(made, idiom)
                    found.append((idiom, site, made))
        return decided(self, work)

    monkeypatch.setattr(graph_pass.GraphPass, "_decided", look)
    yield found


def _check(made: Cut, idiom: Idiom) -> None:
    """Each lowering's replacement computes what the original does."""
    values = CompiledSite(made, idiom, (), "inductor")._drawn(0, 1.0)
    expected = fx.Interpreter(made.original()).run(*values)
    for lowering in idiom.lowerings:
        if lowering.name in ("reference", "real", "direct"):
            replaced = fx.Interpreter(made.rewritten(lowering, idiom.operator, "python"))
            for new, old in zip(replaced.run(*values), expected, strict=True):
                torch.testing.assert_close(new, old, rtol=2e-2, atol=2e-2)


class Block(nn.Module):
    """A residual stream, as a transformer's: modulated norm, product, gate, norm, product."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second, self.table = (nn.Linear(width, width) for _ in range(3))
        self.modulated = nn.LayerNorm(width, elementwise_affine=False)
        self.norm = nn.RMSNorm(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = self.table(F.silu(t)).unsqueeze(1)
        h = x + scale * self.first(self.modulated(x) * (1 + scale) + scale)
        return h + self.second(self.norm(h))


def targets(made: Cut | str) -> list[Any]:
    assert isinstance(made, Cut), made
    return [node.target for node in made.nodes.nodes]


def test_it_ends_at_matrix_products_and_keeps_its_own_residual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with sites_of(monkeypatch) as found:
        rewrite(Block(), torch.randn(2, 8, 32), torch.randn(2, 32), options={"select": "auto"})
    by_idiom = {idiom.name: made for idiom, _, made in found}
    assert {"rms_norm", "residual_norm", "layer_norm", "norm_modulate"} <= set(by_idiom)
    for made in by_idiom.values():
        assert not {aten.mm.default, aten.addmm.default} & set(targets(made))
    norm = by_idiom["rms_norm"]
    assert isinstance(norm, Cut)
    # The weight, the product's result, the gate and x enter; h leaves for the last sum.
    assert sorted(len(i.shape) for i in norm.inputs) == [1, 3, 3, 3]
    assert [n.shape(node) for node in norm.nodes.leaving()] == [(2, 8, 32), (16, 32)]


def test_alike_sites_share_a_key_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x, t) @ block.first.weight
            return x

    with sites_of(monkeypatch) as found:
        rewrite(Twice(), torch.randn(2, 8, 32), torch.randn(2, 32), options={"select": "auto"})
    keys: dict[str, list[str]] = {}
    for idiom, _, made in found:
        assert isinstance(made, Cut), made
        keys.setdefault(idiom.name, []).append(made.key)
    assert len(keys["rms_norm"]) == 2 and len(set(keys["rms_norm"])) == 1
    assert len(set(keys["rms_norm"] + keys["layer_norm"])) == 2
    with sites_of(monkeypatch) as others:
        rewrite(Block(), torch.randn(2, 9, 32), torch.randn(2, 32), options={"select": "auto"})
    assert not {m.key for _, _, m in others if isinstance(m, Cut)} & {
        key for each in keys.values() for key in each
    }


def test_a_value_and_its_cast_enter_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Tensor, w: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        y = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) @ w
        return y, (wide.unsqueeze(0) * other).sum()

    x = torch.randn(8, 32, dtype=torch.bfloat16)
    w, other = torch.randn(32, 32, dtype=torch.bfloat16), torch.randn(1)
    with sites_of(monkeypatch) as found:
        rewrite(function, x, w, other, options={"select": "auto"})
    (made,) = [m for idiom, _, m in found if idiom.name == "rms_norm"]
    assert isinstance(made, Cut)
    assert [i.dtype for i in made.inputs if i.shape == (8, 32)] == [torch.bfloat16]


def test_symbolic_sizes_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.RMSNorm(32)
    with sites_of(monkeypatch) as found:
        rewrite(lambda x: norm(x) * 2, torch.randn(8, 32), dynamic=True, options={"select": "auto"})
    assert [m for i, _, m in found if i.name == "rms_norm"] == ["its sizes are symbolic"]


def test_a_site_that_holds_a_product_is_not_cut() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.mm.default, (x, x))
    graph.output(y)
    for node in (x, y):
        node.meta["val"] = torch.empty(4, 4, device="meta")
    site = Match(y, frozenset({y}), (y,), object(), {})  # type: ignore[arg-type]
    with pytest.raises(NotCut, match="no pointwise code"):
        Neighbourhoods(graph).of(site)


class Planted:
    """Stands in for the GPU: times by candidate, in milliseconds."""

    def __init__(self, **ms: float) -> None:
        self.ms = ms

    def __call__(self, candidates: Mapping[str, Compiled], *_: Any) -> dict[str, Times]:
        return {name: Times(self.ms.get(name, 9.0), 0.0) for name in candidates}


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[Rewritten, list[fx.GraphModule]]]:
    """Compile a model on a CPU of which the backend believes that it can be measured."""
    graphs: list[fx.GraphModule] = []

    def generated(gm: fx.GraphModule) -> Code:
        graphs.append(gm)
        return Code("", {}, 0, gm)  # type: ignore[arg-type]

    def loaded(codes: Mapping[str, Code]) -> tuple[dict[str, Compiled], dict[str, str]]:
        runs: dict[str, Compiled] = {}
        for name, code in codes.items():
            gm: Any = code.lowering
            runs[name] = lambda inputs, gm=gm: fx.Interpreter(gm).run(*inputs)
        return runs, {}

    monkeypatch.setattr(measuring, "generated", generated)
    monkeypatch.setattr(measuring, "loaded", loaded)
    monkeypatch.setattr(measuring, "asks", lambda target, options: options.select != "rules")
    monkeypatch.setattr(measuring.policy, "settled", lambda *_: (False, False))
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    small = measuring.WORTH_MEASURING_SITE_MIB
    monkeypatch.setattr(measuring, "WORTH_MEASURING_SITE_MIB", _with_value(small, 0))

    def run(model: Any, *args: Any, clock: Planted, **options: Any) -> Any:
        monkeypatch.setattr("rocm_passes.tuning.sites.timed", clock)
        chosen = {"select": "measure", "choices": str(tmp_path / "c.json"), **options}
        return rewrite(model, *args, options=chosen, codegen=False), graphs

    return run


def _with_value(bound: Any, value: float) -> Any:
    return type(bound)(**{**bound.__dict__, "value": value})


def only(found: Sequence[Entry], idiom: str) -> Entry:
    (entry,) = [e for e in found if e.idiom == idiom]
    return entry


NORM, X = nn.RMSNorm(32), torch.randn(8, 32)


def test_the_ledger_has_the_figures_of_each_candidate(measured: Any, tmp_path: Path) -> None:
    seen, graphs = measured(NORM, X, clock=Planted(inductor=1.0, **{ON_CPU: 0.5}))
    entry = only(seen.sites, "rms_norm")
    assert (entry.outcome, entry.lowering) == ("rewritten", ON_CPU)
    assert entry.reason.startswith("measured on this machine: 0.5 ms against Inductor's own code 1")
    (verdict,) = [v for v in entry.verdicts if v.lowering == ON_CPU]
    assert verdict.verdict == "taken"
    assert verdict.measured == {
        "ms": 0.5, "inductor_ms": 1.0, "host_ms": 0.0, "inductor_host_ms": 0.0,
    }  # fmt: skip
    assert len(graphs) >= 2
    ((machine, entries),) = load(tmp_path / "c.json").items()
    assert machine.startswith("cpu / torch") and "rocm-passes" in machine
    assert [key.split()[0] for key in entries] == ["rms_norm"]


def test_a_slow_lowering_is_left_to_inductor(measured: Any) -> None:
    seen, _ = measured(NORM, X, clock=Planted(inductor=1.0, **{ON_CPU: 0.99}))
    entry = only(seen.sites, "rms_norm")
    assert entry.outcome == "kept" and "Inductor's own code 1 ms" in entry.reason
    assert {v.verdict for v in entry.verdicts if v.measured} == {"not_faster"}


def test_a_measurement_that_raises_leaves_it_to_the_rules_and_is_said(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(measuring.Neighbourhoods, "of", raises)
    seen, _ = measured(NORM, X, clock=Planted(inductor=1.0))
    entry = only(seen.sites, "rms_norm")
    assert entry.outcome == "kept"
    assert entry.notes == ("measuring it failed: RuntimeError: no such device",)


def test_a_wrong_lowering_is_not_chosen_however_fast(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CompiledSite._graph

    def broken(self: CompiledSite, lowering: Any) -> fx.GraphModule:
        gm = original(self, lowering)
        if lowering is not None:
            (output,) = gm.graph.find_nodes(op="output")
            with gm.graph.inserting_before(output):
                twice = [gm.graph.call_function(aten.mul.Tensor, (o, 2)) for o in output.args[0]]
            output.args = (tuple(twice),)
        return gm

    monkeypatch.setattr(CompiledSite, "_graph", broken)
    seen, _ = measured(NORM, X, clock=Planted(inductor=1.0, **{ON_CPU: 0.1}))
    entry = only(seen.sites, "rms_norm")
    assert entry.outcome == "kept"
    (verdict,) = [v for v in entry.verdicts if v.lowering == ON_CPU]
    assert verdict.verdict == "wrong" and "its error against float64" in verdict.reason


def test_by_rules_nothing_is_measured(measured: Any, tmp_path: Path) -> None:
    seen, graphs = measured(NORM, X, clock=Planted(inductor=1.0), select="rules")
    assert only(seen.sites, "rms_norm").outcome == "kept"
    assert graphs == [] and not (tmp_path / "c.json").exists()


def test_generated_code_is_inductor_s_and_runs() -> None:
    """Code generation within a compile, on a CPU: the result is right and kernels are counted."""

    def function(x: Tensor) -> Tensor:
        return torch.relu(x) * 2

    gm = torch.fx.experimental.proxy_tensor.make_fx(function, tracing_mode="fake")(X)
    code = inductor_code.generated(gm)
    assert code.launches == 1 and code.bytes == 2 * X.numel() * 4
    (run,) = inductor_code.loaded({"a": code})[0].values()
    torch.testing.assert_close(run([X])[0], function(X))


def test_code_that_does_not_compile_is_one_candidate_less() -> None:
    gm = torch.fx.experimental.proxy_tensor.make_fx(torch.neg, tracing_mode="fake")(X)
    code = inductor_code.generated(gm)
    broken = Code("raise ValueError('no compiler')", {}, 0, code.lowering)
    assert inductor_code.loaded({"a": broken}) == (
        {},
        {"a": "its code does not compile: ValueError: no compiler"},
    )


def test_auto_leaves_the_rules_architecture_to_them_and_says_how_to_measure(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Target.of_device(X.device).arch
    monkeypatch.setattr(measuring.policy, "MEASURED_ON", {here})
    seen, graphs = measured(NORM, X, clock=Planted(inductor=1.0), select="auto")
    assert graphs == [] and measuring.NOT_ASKED in only(seen.sites, "rms_norm").notes


def test_auto_measures_where_the_rules_come_from_another_architecture(measured: Any) -> None:
    seen, graphs = measured(NORM, X, clock=Planted(inductor=1.0, **{ON_CPU: 0.5}), select="auto")
    assert graphs and only(seen.sites, "rms_norm").lowering == ON_CPU


def test_nobody_asked_so_sites_have_half_of_the_time(measured: Any) -> None:
    budget.BUDGET.spend(40)
    given = {"clock": Planted(inductor=1.0, **{ON_CPU: 0.5}), "tune_seconds": 60}
    seen, graphs = measured(NORM, X, select="auto", **given)
    assert graphs == []
    assert (
        "not measured: no figure within 30 s (tune_seconds)" in only(seen.sites, "rms_norm").notes
    )
    seen, graphs = measured(NORM, X, select="measure", **given)
    assert graphs and only(seen.sites, "rms_norm").lowering == ON_CPU


@pytest.mark.parametrize(
    ("arch", "select", "expected"),
    [
        *(("gfx942", "auto", True), ("gfx1201", "auto", True), ("sm_80", "auto", True)),
        *(("sm_90", "auto", False), ("sm_90", "measure", True), ("gfx942", "rules", False)),
    ],
)
def test_who_measures_sites(arch: str, select: str, expected: bool) -> None:
    target = Target.named(arch)
    assert target is not None
    assert measuring.measures(target, Options(select=select)) == expected


def test_auto_takes_what_was_measured_before(measured: Any) -> None:
    measured(NORM, X, clock=Planted(inductor=1.0, **{ON_CPU: 0.1}))
    seen, _ = measured(NORM, X, clock=Planted(), select="auto")
    assert only(seen.sites, "rms_norm").reason.startswith("measured on this machine")


def test_options_have_the_two_ways_of_selecting() -> None:
    assert Options(select="rules").select == "rules"

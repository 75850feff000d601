"""The pass: what it changes, in what time, and what is in its key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn

from rocm_passes.graph_pass import GraphPass
from rocm_passes.idioms.convolution import conv3d
from rocm_passes.kernels.aiter import installation
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options, parse
from rocm_passes.report.ledger import LoweringVerdict
from rocm_passes.rewrite.cache_key import cache_key
from rocm_passes.rewrite.match import Context, Idiom, Miss
from rocm_passes.target import Target
from tests.doubles.aiter_double import installed
from tests.rewriting import copied, rewrite
from tests.small_graphs import CPU, GPU, D, TwoNorms, check_eager, install, verdicts, with_lowerings


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)


def test_select_off_changes_nothing_and_reports() -> None:
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x, options={"select": "off"})
    assert [e.outcome for e in seen.sites] == ["kept", "kept"]
    assert "could be rewritten by" in seen.sites[0].reason
    assert (
        "able" in verdicts(seen.sites[0]).values()
        and "taken" not in verdicts(seen.sites[0]).values()
    )
    assert seen.targets("before") == seen.targets("after")


def test_auto_leaves_to_inductor_what_is_not_known_to_pay() -> None:
    seen = rewrite(TwoNorms(), torch.randn(3, D), options={"select": "auto"})
    assert [e.outcome for e in seen.sites] == ["kept", "kept"]
    assert all(e.reason.startswith("left to Inductor") for e in seen.sites)
    assert all("not_faster" in verdicts(e).values() for e in seen.sites)


def test_fuel_bounds_the_rewrites() -> None:
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x, options={"fuel": 1})
    assert sorted(e.outcome for e in seen.sites) == ["kept", "rewritten"]
    assert next(e.reason for e in seen.sites if e.outcome == "kept") == "fuel=1 is used up"
    for site in seen.sites:
        assert ("taken" in verdicts(site).values()) == (site.outcome == "rewritten")
    check_eager(seen, model, x)


def test_an_unmet_requirement_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        with_lowerings(Lowering("far", requires=(lambda t: f"{t.name} is not a Radeon",))),
    )
    seen = rewrite(TwoNorms(), torch.randn(3, D))
    assert {e.reason for e in seen.sites} == {"far: CPU is not a Radeon"}
    assert seen.sites[0].verdicts == (LoweringVerdict("far", "unavailable", "CPU is not a Radeon"),)


def test_cache_key_covers_options_target_and_keep_table() -> None:
    keys = {
        cache_key(Options(), CPU, ()),
        cache_key(Options(select="off"), CPU, ()),
        cache_key(Options(), GPU, ()),
        cache_key(Options(), CPU, ("silu",)),
    }
    assert len(keys) == 4
    assert cache_key(Options(), CPU, ()) == cache_key(Options(), CPU, ())


def test_cache_key_covers_what_aiter_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version, its build, and FlyDSL, which is a package of its own."""
    amd = Target("amd", "gfx950", "MI350X", "2.13", "3.6")
    keys = []
    for version in ("0.1.22", "0.1.23"):
        with installed(version, "gfx950"):
            keys.append(cache_key(Options(), amd, ()))
            monkeypatch.setenv("ENABLE_CK", "0")
            keys.append(cache_key(Options(), amd, ()))
            monkeypatch.delenv("ENABLE_CK")
    with installed("0.1.23", "gfx950"):
        gone = mock.patch.object(installation, "import_error", lambda module: f"no {module}")
        with gone:
            keys.append(cache_key(Options(), amd, ()))
    assert len(set(keys)) == 5


class Deep(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(D, eps=1e-6) for _ in range(blocks))
        self.convs = nn.ModuleList(nn.Conv3d(2, 2, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x, video = norm(x) * 1.5, conv(video)
        return x, video


@pytest.mark.exhaustive
def test_time_grows_linearly_with_the_graph() -> None:
    """4x the blocks in at most 8x the time, 16x in at most 32x (a quadratic pass would need
    256x).
    """

    def seconds(traced: fx.Graph) -> float:
        graph = copied(traced)
        fx.GraphModule(nn.Module(), graph)
        pipeline = GraphPass(Options(select="always"), CPU)
        started = time.perf_counter()
        pipeline(graph)
        return time.perf_counter() - started

    inputs = torch.randn(3, D), torch.randn(1, 2, 3, 4, 4)
    graphs = [_graph(Deep(blocks), *inputs) for blocks in (4, 16, 64)]
    seconds(graphs[0])
    small, medium, large = (min(seconds(graph) for _ in range(3)) for graph in graphs)
    assert medium <= 8 * small, (small, medium)
    assert large <= 32 * small, (small, large)


def _graph(model: nn.Module, *args: Tensor) -> fx.Graph:
    """The ATen graph that our pass is given, without compiling it."""
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._inductor.decomposition import select_decomp_table

    found: list[fx.Graph] = []

    def keep(gm: fx.GraphModule, _: Any) -> Any:
        found.append(gm.graph)
        return gm.forward

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        return aot_module_simplified(
            gm, inputs, fw_compiler=keep, decompositions=select_decomp_table()
        )

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(*args)
    return found[0]


def test_near_miss_has_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(graph: fx.Graph, context: Context) -> Iterator[Miss]:
        yield Miss(next(iter(graph.nodes)), "groups=2", {"conv3d": 1}, {"groups": 2})

    install(monkeypatch, Idiom("conv3d", find, ()))
    entry = rewrite(TwoNorms(), torch.randn(3, D)).only().to_dict()
    assert (entry["outcome"], entry["reason"], entry["parameters"]) == (
        "refused",
        "groups=2",
        {"groups": 2},
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"select": "off"}, False),
        ({"fuel": 0}, False),
        ({"fuel": 1}, True),
        ({"idioms": "rotary"}, False),
    ],
    ids=str,
)
def test_graphs_are_prepared_only_where_something_may_be_rewritten(
    options: dict[str, Any], expected: bool
) -> None:
    settings, _ = parse(options, None)
    assert GraphPass(settings, CPU).may_rewrite(conv3d.IDIOM) is expected

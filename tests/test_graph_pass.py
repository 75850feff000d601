"""The pass itself: what is decided, fuel, what a bug may and may not cost, linear time, and the
structured record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rocm_passes.graph_pass import GraphPass
from rocm_passes.idioms.convolution import conv3d
from rocm_passes.idioms.norms import rms_norm
from rocm_passes.kernels.aiter import installation
from rocm_passes.ops.operator import Call, Lowering, Operator, same_bits
from rocm_passes.options import Options, parse
from rocm_passes.report.ledger import Entry, LoweringVerdict
from rocm_passes.rewrite.cache_key import cache_key
from rocm_passes.rewrite.choose import Choice, choose
from rocm_passes.rewrite.match import Context, Idiom, Match, Miss
from rocm_passes.target import Target, needs_import
from tests.doubles.aiter_double import installed
from tests.rewriting import copied, rewrite

CPU = Target("cpu", "", "CPU", torch.__version__, None)
GPU = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6")
D = 32

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * 2)


@dataclass(frozen=True)
class Twice(Call):
    x: Tensor


@dataclass(frozen=True)
class Anything(Call):
    x: tuple[Any, ...] = ()


def with_lowerings(*lowerings: Lowering[Any]) -> Idiom:
    return Idiom("rms_norm", rms_norm.find, lowerings, rms_norm.IDIOM.operator)


def install(monkeypatch: pytest.MonkeyPatch, *idioms: Idiom) -> None:
    monkeypatch.setattr("rocm_passes.graph_pass.IDIOMS", idioms)


def check_eager(seen: Any, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(seen.result, model(x), rtol=1e-5, atol=1e-5)


def verdicts(entry: Entry) -> dict[str, str]:
    return {v.lowering: v.verdict for v in entry.verdicts}


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


def test_a_lowering_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Lowering(
        "broken", requires=(needs_import("rocm_passes.no_such_kernel"),), run=lambda *a: 1 / 0
    )
    install(monkeypatch, with_lowerings(broken))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert [e.outcome for e in seen.sites] == ["refused", "refused"]
    assert (
        "broken: rocm_passes.no_such_kernel does not import: ModuleNotFoundError"
        in seen.sites[0].reason
    )
    check_eager(seen, model, x)


def test_a_requirement_that_raises_counts_as_unmet(monkeypatch: pytest.MonkeyPatch) -> None:
    def requirement(_: Target) -> str | None:
        raise OSError("no such device")

    install(monkeypatch, with_lowerings(Lowering("broken", requires=(requirement,))))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert "could not be checked: OSError: no such device" in seen.sites[0].reason
    check_eager(seen, model, x)


def test_an_unmet_requirement_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        with_lowerings(Lowering("far", requires=(lambda t: f"{t.name} is not a Radeon",))),
    )
    seen = rewrite(TwoNorms(), torch.randn(3, D))
    assert {e.reason for e in seen.sites} == {"far: CPU is not a Radeon"}
    assert seen.sites[0].verdicts == (LoweringVerdict("far", "unavailable", "CPU is not a Radeon"),)


def test_a_decomposition_that_raises_leaves_the_graph_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(b: Any, call: Any) -> Any:
        b(torch.ops.aten.neg.default, call.x)
        raise RuntimeError("half way")

    install(monkeypatch, with_lowerings(Lowering("broken", write=write)))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert {e.outcome for e in seen.sites} == {"refused"}
    assert "broken: writing it failed: RuntimeError: half way" in seen.sites[0].reason
    assert verdicts(seen.sites[0]) == {"broken": "failed"}
    assert seen.targets("before") == seen.targets("after")
    check_eager(seen, model, x)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda b, call: b(torch.ops.aten.sum.dim_IntList, call.x, [0]),
            "where the graph has float32 [3, 32]",
        ),
        (
            lambda b, call: b(torch.ops.prims.convert_element_type.default, call.x, torch.float16),
            "it gives float16",
        ),
        (lambda b, call: [call.x, call.x], "2 results where the graph has 1"),
    ],
    ids=["shape", "dtype", "count"],
)
def test_a_lowering_with_a_wrong_result_is_refused(
    monkeypatch: pytest.MonkeyPatch, write: Any, said: str
) -> None:
    install(monkeypatch, with_lowerings(Lowering("wrong", write=write)))
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert said in seen.sites[0].reason
    check_eager(seen, model, x)


def test_a_matcher_that_raises_costs_only_its_own_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(graph: fx.Graph, context: Context) -> Iterator[Match]:
        raise KeyError("val")
        yield

    install(monkeypatch, Idiom("buggy", find, ()), rms_norm.IDIOM)
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    by_idiom = {e.idiom: e for e in seen.sites}
    assert "looking for it failed: KeyError" in by_idiom["buggy"].reason
    assert by_idiom["buggy"].error == "KeyError('val')"
    assert by_idiom["rms_norm"].error == ""
    assert by_idiom["rms_norm"].outcome == "rewritten"
    check_eager(seen, model, x)


def test_a_kernel_that_raises_at_run_time_is_said_once_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(call: Twice) -> Tensor:
        raise RuntimeError("no kernel image")

    twice = Operator(
        "test_twice", Twice, lambda call: call.x * 2, lambda call: torch.empty_like(call.x)
    )
    twice.register(Lowering("kernel", run=run))
    x = torch.ones(3)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.ERROR, "rocm_passes"):
        patch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: True)
        for _ in range(2):
            assert torch.equal(twice.overload(x, "kernel"), x * 2)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "test_twice: the kernel kernel failed" in said[0]


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


def test_a_reader_that_raises_costs_its_own_candidate_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rocm_passes.idioms.norms import rms

    original, calls = rms.with_bias, iter(range(9))

    def faulty(found: Any) -> Any:
        if next(calls) == 0:
            raise ZeroDivisionError("a planted fault")
        return original(found)

    monkeypatch.setattr(rms, "with_bias", faulty)
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    assert sorted(e.outcome for e in seen.sites) == ["refused", "rewritten"]
    refused = next(e for e in seen.sites if e.outcome == "refused")
    assert "reading it failed: ZeroDivisionError: a planted fault" in refused.reason
    check_eager(seen, model, x)


@pytest.mark.parametrize("step", ["__init__", "keep_apart", "keep_strides"])
def test_a_graph_that_cannot_be_finished_is_left_as_it_was(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(f"rocm_passes.graph_pass.Promises.{step}", fail)
    model, x = TwoNorms(), torch.randn(3, D)
    seen = rewrite(model, x)
    check_eager(seen, model, x)
    assert not [t for t in seen.targets() if "rocm_passes" in str(t)]
    assert seen.ledgers[0].notes == [
        "the pass failed: LookupError: a fault of ours; nothing is rewritten"
    ]
    assert {(e.outcome, e.lowering) for e in seen.sites} <= {("refused", None)}
    assert len(seen.sites) == (0 if step == "__init__" else 2)
    for entry in seen.sites:
        assert "could not be finished" in entry.reason and "a fault of ours" in entry.error

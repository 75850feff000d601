"""The benchmark of a user's script: what replaces torch.compile, what is timed, and how its
processes run.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rocm_passes import compile_pipeline
from rocm_passes.backend import rocm_diffusion
from rocm_passes.bench import script, script_calls, script_child
from rocm_passes.bench.script_calls import Watch, arguments

COMPILE = torch.compile


def eager_compile(model: Any, **keywords: Any) -> Any:
    """Dynamo without a compiler behind it."""
    return COMPILE(model, backend="eager", dynamic=keywords.get("dynamic"))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Watch]:
    def replaced(form: str) -> Watch:
        made = Watch(form)
        monkeypatch.setattr(torch, "compile", made.compile(eager_compile))
        return made

    return replaced


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.mark.parametrize("form", ["eager", "static", "ours"])
def test_every_way_to_compile_is_watched(watch: Callable[[str], Watch], form: str) -> None:
    made = watch(form)
    module, in_place = Doubled(), Doubled()

    @torch.compile(dynamic=True)
    def decorated(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    compiled = torch.compile(module)
    in_place.compile()
    x = torch.ones(3)
    for function in (decorated, compiled, in_place):
        for _ in range(3):
            assert torch.equal(function(x), 2 * x)
    assert compiled.weight is module.weight
    assert isinstance(compiled, nn.Module)
    figures = made.figures()
    assert [w["name"] for w in figures["callables"]] == ["decorated", "Doubled", "Doubled"]
    assert [w["calls"] for w in figures["callables"]] == [3, 3, 3]
    assert figures["calls_ms"] == pytest.approx(sum(w["ms"] for w in figures["callables"]))
    assert [s.tolist() for s in made.samples()] == [[2.0] * 3] * 3


def test_a_call_within_a_call_is_part_of_it(watch: Callable[[str], Watch]) -> None:
    made = watch("static")
    inner = torch.compile(Doubled())

    @torch.compile
    def outer(x: torch.Tensor) -> torch.Tensor:
        return inner(x) + 1

    assert outer(torch.ones(2)).tolist() == [3.0, 3.0]
    assert [w["name"] for w in made.figures()["callables"]] == ["outer"]


def test_one_call_has_no_median(watch: Callable[[str], Watch]) -> None:
    made = watch("eager")
    torch.compile(lambda x: x)(torch.ones(1))
    torch.compile(lambda x: x)
    figures = made.figures()
    assert figures["calls_ms"] is None and figures["first_s"] > 0
    assert len(figures["callables"]) == 1


def test_compile_pipeline_is_compiled_as_the_form_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def noted(model: Any, **keywords: Any) -> Any:
        seen.append(keywords)
        return eager_compile(model)

    made = Watch("inductor")
    monkeypatch.setattr(torch, "compile", made.compile(noted))
    module = Doubled()
    compile_pipeline(module, options={"select": "always", "max_autotune": True})
    assert module(torch.ones(1)).item() == 2
    assert seen[0]["backend"] == "inductor" and seen[0]["options"] == {"max_autotune": True}
    assert made.figures()["callables"][0]["calls"] == 1


def test_arguments_of_torch_compile_by_form() -> None:
    ours = {"backend": "rocm_diffusion", "fullgraph": True, "options": {"select": "always"}}
    assert arguments("ours", ours) == ours
    assert arguments("ours", {"backend": rocm_diffusion}) == {"backend": rocm_diffusion}
    assert arguments("ours", {"mode": "max-autotune"}) == {
        "mode": "max-autotune",
        "backend": rocm_diffusion,
    }
    assert arguments("inductor", ours) == {"backend": "inductor", "fullgraph": True}
    assert arguments("static", {"dynamic": True}) == {"backend": "inductor", "dynamic": False}
    graphs = arguments(
        "inductor", {"backend": rocm_diffusion, "options": {"mode": "reduce-overhead"}}
    )
    assert graphs == {"backend": "inductor", "options": {"triton.cudagraphs": True}, "mode": None}


PROGRAM = """
import sys, torch
@torch.compile
def f(x):
    return x * float(sys.argv[1])
for _ in range(3):
    print(f(torch.randn(4)))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_the_child_writes_figures_and_keeps_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr("sys.argv", ["child"])
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    found = script_child.main(
        "eager", str(tmp_path / "f.json"), [str(tmp_path / "program.py"), "2", str(code)]
    )
    assert found == code and torch.compile is COMPILE
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["callables"][0]["calls"] == 3 and figures["peak_gib"] > 0
    assert figures["total_s"] > figures["first_s"] > 0


class FakeProcesses:
    """Stands in for subprocess.run: the script's processes in each form, with given milliseconds or
    failures.
    """

    def __init__(self, ms: dict[str, float], codes: dict[str, int]) -> None:
        self.ms, self.codes, self.ran, self.caches = ms, codes, list[str](), set[str]()

    def __call__(self, command: list[str], env: dict[str, str], **about: Any) -> Any:
        form, file = command[3], command[4]
        self.ran.append(form)
        self.caches.add(env["TORCHINDUCTOR_CACHE_DIR"])
        code = self.codes.get(form, 0)
        if not code:
            figures = {
                "callables": [{}],
                "calls_ms": self.ms[form],
                "first_s": 2.0,
                "total_s": 5.0,
                "peak_gib": 1.0,
            }
            Path(file).write_text(json.dumps(figures | {"ledger": {"graphs": [form]}}))
            torch.save([torch.full((4,), self.ms[form])], file + script.OUTPUTS)
        return subprocess.CompletedProcess(command, code, "Traceback\nValueError: out of luck\n")


def run(
    monkeypatch: pytest.MonkeyPatch, fake: FakeProcesses, **how: Any
) -> tuple[dict[str, Any], Any]:
    monkeypatch.setattr(script.subprocess, "run", fake)
    rows, ledger = script.measure(["my.py"], say=lambda what: None, **how)
    return {row["form"]: row for row in rows}, ledger


def test_forms_run_cold_and_then_in_rotating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses({"eager": 4.0, "inductor": 2.5, "static": 2.0, "ours": 1.0}, {})
    rows, ledger = run(monkeypatch, fake, rounds=1)
    assert fake.ran == [
        "eager",
        "inductor",
        "static",
        "ours",
        "inductor",
        "static",
        "ours",
        "eager",
    ]
    assert len(fake.caches) == 4
    assert rows["ours"]["runs"] == 1 and rows["ours"]["difference"] == 0.75
    assert ledger == {"graphs": ["ours"]}
    cells = {row[0]: row for row in script.table(list(rows.values()))}
    assert cells["ours"][1:4] == ["1.00", "5.00", "2.00"] and cells["ours"][-1] == "0.500"
    assert cells["eager"][-2:] == ["0.0e+00", "2.000"]


def test_a_form_that_fails_runs_no_more_and_shows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses({"eager": 4.0, "ours": 1.0}, {"inductor": 1, "static": 1})
    rows, _ = run(monkeypatch, fake)
    assert fake.ran.count("inductor") == 1 and fake.ran.count("ours") == 3
    assert "code 1" in rows["inductor"]["failed"] and "out of luck" in rows["inductor"]["failed"]
    assert [row[-1] for row in script.table(list(rows.values()))] == ["-", "-"]


def test_no_process_starts_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses({}, {})
    rows, _ = run(monkeypatch, fake, seconds=0.0)
    assert fake.ran == [] and rows["ours"]["failed"] == "not run: --seconds were over"


def test_outputs_of_other_shapes_have_no_difference(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "a")
    torch.save([torch.ones(3)], tmp_path / "b")
    assert script.difference(tmp_path / "a", tmp_path / "b") is None


def test_a_sample_is_small_and_of_the_first_floating_tensor() -> None:
    made = script_calls.sample(
        (torch.arange(3), {"x": torch.ones(1000, 1000, dtype=torch.bfloat16)})
    )
    assert made is not None and made.dtype == torch.float32 and made.numel() == script_calls.SAMPLE
    assert script_calls.sample("nothing") is None


@pytest.mark.exhaustive
def test_a_script_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    (tmp_path / "program.py").write_text(PROGRAM)
    rows, ledger = script.measure([str(tmp_path / "program.py"), "2", "0"], ("eager", "ours"), 1)
    assert [row["form"] for row in rows] == ["eager", "ours"]
    assert rows[1]["difference"] == 0.0 and rows[1]["calls_ms"] > 0 and rows[1]["callables"] == 1
    assert "environment" in ledger or "graphs" in ledger


def test_of_several_ranks_the_slowest_counts() -> None:
    rows = {
        0: [{"form": "ours", "calls_ms": 2.0, "difference": None}, {"form": "eager"}],
        1: [{"form": "ours", "calls_ms": 3.0, "difference": 0.1}, {"form": "eager", "failed": "x"}],
    }
    assert script.slowest(rows) == [
        {"form": "ours", "calls_ms": 3.0, "difference": 0.1},
        {"form": "eager", "failed": "x"},
    ]

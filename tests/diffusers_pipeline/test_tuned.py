"""How a denoiser is compiled, by measurement: a fake clock, and models that say what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rocm_passes import OptionError, compile_pipeline
from rocm_passes.diffusers_pipeline import tuned
from rocm_passes.diffusers_pipeline.report import Report
from rocm_passes.diffusers_pipeline.settings import Settings
from rocm_passes.diffusers_pipeline.tuned import Call, Clock, Trial, Way, compile_tuned, fastest
from tests.diffusers_pipeline.doubles import Graphs
from tests.diffusers_pipeline.models import flux, flux_inputs


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


class Denoiser(nn.Module):
    """Blocks that hold most of the weights, and a head."""

    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(20)])
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Machine:
    """A clock that the pipeline moves: what a forward costs follows from how it is compiled.

    host, device: milliseconds by way: "eager", "blocks", "whole", "graphs".
    """

    def __init__(self, model: Denoiser, host: dict[str, float], device: dict[str, float]) -> None:
        self.model, self.host, self.device = model, host, device
        self.time = self.done = 0.0
        self.runs: list[str] = []
        self.seen: list[tuple[str, bool]] = []

    def clock(self, graphs: bool = True) -> Clock:
        def wait() -> None:
            self.time = max(self.time, self.done)

        return Clock(lambda: self.time, wait, lambda: graphs)

    def way(self) -> str:
        blocks = self.model.blocks[0]._compiled_call_impl is not None
        if self.current != "whole":
            return "blocks" if blocks and self.current == "blocks" else "eager"
        return "graphs" if self.graphs else "whole"

    current, graphs = "eager", False

    def forward(self) -> None:
        self.runs.append(self.way())
        way = self.runs[-1]
        self.time += self.host[way] / 1000
        self.done = max(self.done, self.time - self.host[way] / 1000) + self.device[way] / 1000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiling marks the model; nothing is compiled."""

    def make(host: dict[str, float], device: dict[str, float]) -> Machine:
        model = Denoiser()
        made = Machine(model, host, device)

        def compile_denoiser(
            component: nn.Module, *, name: str, report: Report, settings: Settings
        ) -> None:
            whole = settings.how == "whole"
            modules = [component] if whole else [*model.blocks]
            made.current, made.graphs = "whole" if whole else "blocks", settings.graphs
            for module in modules:
                module._compiled_call_impl = module._call_impl
            report.add_compiled(name, settings.how, 0.9, modules)

        model.register_forward_pre_hook(lambda *_: made.forward())
        monkeypatch.setattr(tuned, "compile_denoiser", compile_denoiser)
        return made

    return make


def run_of(machine: Machine) -> Any:
    return lambda: [machine.model(torch.ones(2, 4), torch.ones(2)) for _ in range(2)]


def tune(machine: Machine, settings: Settings | None = None, graphs: bool = True) -> Report:
    report = Report()
    compile_tuned(
        machine.model,
        name="unet",
        report=report,
        settings=settings or Settings(),
        run=run_of(machine),
        clock=machine.clock(graphs),
    )
    return report


DEVICE_BOUND = {"eager": 1.0, "blocks": 1.0, "whole": 1.0, "graphs": 1.0}


def test_the_faster_way_is_taken_and_the_report_has_the_times(machine: Any) -> None:
    made = machine(DEVICE_BOUND, {"eager": 30, "blocks": 20, "whole": 15, "graphs": 5})
    report = tune(made)
    assert made.current == "whole" and not made.graphs
    assert "graphs" not in made.runs, "the host does not bound it"
    (said,) = [p.detail for p in report.parts if p.action == "tuned"]
    assert said.startswith("how='whole': 15 ms a forward") and "how='auto': 20 ms" in said


def test_near_ties_go_to_the_shorter_first_call() -> None:
    slow = Trial(Way("whole"), 40.0, Call(0.001, 0.0199), [])
    quick = Trial(Way("auto"), 5.0, Call(0.001, 0.0200), [])
    assert fastest([slow, quick]) is quick
    assert fastest([Trial(Way("auto"), 5.0, Call(0.001, 0.021), []), slow]) is slow
    assert fastest([]) is None


def test_graphs_are_tried_where_the_host_bounds_the_fastest_way(machine: Any) -> None:
    host = {"eager": 30.0, "blocks": 40.0, "whole": 25.0, "graphs": 1.0}
    made = machine(host, {"eager": 15, "blocks": 15, "whole": 15, "graphs": 15})
    report = tune(made)
    assert made.graphs and made.current == "whole"
    said = next(p.detail for p in report.parts if p.action == "tuned")
    assert said.startswith("how='whole', mode='reduce-overhead': 15 ms a forward")


@pytest.mark.parametrize(
    ("settings", "graphs"),
    [(Settings(), False), (Settings(dynamic=True), True), (Settings(options={"mode": "x"}), True)],
    ids=["no GPU", "sizes that change", "a mode was given"],
)
def test_graphs_are_not_tried_where_the_inputs_do_not_allow_it(
    machine: Any, settings: Settings, graphs: bool
) -> None:
    host = {"eager": 30.0, "blocks": 40.0, "whole": 25.0, "graphs": 1.0}
    made = machine(host, {"eager": 15, "blocks": 15, "whole": 15, "graphs": 15})
    tune(made, settings, graphs)
    assert "graphs" not in made.runs and made.current == "whole"


def test_weights_that_move_are_not_replayed(machine: Any) -> None:
    class CpuOffload:
        pass

    host = {"eager": 30.0, "blocks": 40.0, "whole": 25.0, "graphs": 1.0}
    made = machine(host, {"eager": 15, "blocks": 15, "whole": 15, "graphs": 15})
    made.model._hf_hook = CpuOffload()
    tune(made)
    assert "graphs" not in made.runs and made.current == "whole"


def test_what_the_user_asks_for_is_not_put_to_the_test(machine: Any) -> None:
    made = machine(DEVICE_BOUND, {"eager": 30, "blocks": 20, "whole": 15, "graphs": 5})
    tune(made, Settings(how="blocks"))
    assert "whole" not in made.runs and made.current == "blocks"


def test_a_way_that_fails_is_said_and_the_others_are_measured(machine: Any) -> None:
    made = machine(DEVICE_BOUND, {"eager": 30, "blocks": 20, "whole": 15, "graphs": 5})
    forward = made.forward

    def fails() -> None:
        if made.way() == "whole":
            raise RuntimeError("out of registers\nand more")
        forward()

    made.forward = fails
    report = tune(made)
    assert made.current == "blocks"
    assert "how='whole' failed: RuntimeError: out of registers" in str(report)


def test_nothing_of_a_trial_stays(machine: Any) -> None:
    made = machine(DEVICE_BOUND, {"eager": 30, "blocks": 10, "whole": 15, "graphs": 5})
    tune(made)
    assert made.model._compiled_call_impl is None
    assert all(b._compiled_call_impl is not None for b in made.model.blocks)
    assert not any("timed" in repr(b._compiled_call_impl) for b in made.model.blocks)


def test_the_share_is_of_the_time_in_eager(graphs: Graphs) -> None:
    """Really compiled, by a backend that runs graphs as they are."""
    report = compile_pipeline(flux(), tune=flux_inputs())
    (part,) = [p for p in report.parts if p.action == "compiled"]
    assert part.share_of == "time in eager" and part.share is not None and 0 < part.share <= 1
    assert "of its time in eager" in str(part)
    (said,) = [p.detail for p in report.parts if p.action == "tuned"]
    assert "ms a forward" in said and "how='whole'" in said
    assert graphs.count > 0


def test_a_wrong_argument_is_refused_before_anything_runs(graphs: Graphs) -> None:
    with pytest.raises(OptionError, match=r"tune: .* takes no argument"):
        compile_pipeline(flux(), tune={"no_such_argument": 1})
    with pytest.raises(OptionError, match="tune"):
        compile_pipeline(flux(), tune=3)  # type: ignore[arg-type]
    assert graphs.count == 0

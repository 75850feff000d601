"""The benchmark of whole pipelines: its models, its forms, its tables, and how it starts and stops
its workers.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rocm_passes.bench import pipeline_table, pipeline_worker, pipelines
from rocm_passes.bench.pipeline_forms import FORMS, compile_as
from rocm_passes.bench.pipeline_jobs import differences
from rocm_passes.bench.pipeline_models import watched
from rocm_passes.bench.pipeline_specs import PIPELINES
from rocm_passes.bench.workers import WorkerFailed
from tests.without_codegen import without_codegen

#: Millions of parameters of the denoisers, as their model cards and files have them.
PARAMETERS = {
    "sdxl": 2567, "wan": 1419, "z_image": 6155, "flux": 11901, "sd15": 860, "sd35": 2243,
    "qwen_image": 20430, "wan22_5b": 5000, "hunyuan_video": 12821, "ltx": 1923, "cogvideox": 5570,
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_denoisers_have_production_size(name: str) -> None:
    import diffusers
    from accelerate import init_empty_weights

    spec = PIPELINES[name](False)
    cls, config = spec.parts[spec.denoiser]
    with init_empty_weights(include_buffers=True):
        model = getattr(diffusers, cls)(**config)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], rel=0.01)
    assert spec.weights_gib > 2 * count / 2**30


def subject(form: str = "eager", pipeline: str = "flux") -> pipeline_worker.Subject:
    given = argparse.Namespace(
        device="cpu", form=form, pipeline=pipeline, tiny=True, backend="eager"
    )
    return pipeline_worker.Subject(given)


@pytest.fixture(scope="module")
def eager() -> pipeline_worker.Subject:
    return subject()


def test_a_call_is_split_at_the_decode(eager: pipeline_worker.Subject) -> None:
    with watched(eager.pipe.vae, eager.clock.mark, eager.latents):
        times, image = eager.timed_call()
        again = eager.timed_call()[1]
        assert set(times) == {"denoise", "decode", "denoise_host", "decode_host"}
        assert all(ms > 0 for ms in times.values())
        assert torch.equal(image, again) and image.std() > 0.01
        assert not torch.equal(image, eager.call(1))
        assert tuple(eager.latent().shape) == (1, 16, 8, 8)
        assert eager.decode(eager.latent())[0].isfinite().all()
    assert "decode" not in vars(eager.pipe.vae)


def test_weights_that_were_let_go_are_drawn_again_alike(eager: pipeline_worker.Subject) -> None:
    before = pipeline_worker.sample(eager.forward())
    eager.weights.let_go()
    assert all(p.untyped_storage().nbytes() == 0 for p in eager.denoiser.parameters())
    eager.weights.take_again()
    assert torch.equal(pipeline_worker.sample(eager.forward()), before)


def test_every_form_compiles_what_it_says() -> None:
    def compiled(form: str) -> tuple[bool, bool, bool]:
        torch._dynamo.reset()
        made = subject(form)
        parts = (made.denoiser, made.denoiser.transformer_blocks[0], made.pipe.vae.decoder)
        return tuple(part._compiled_call_impl is not None for part in parts)  # type: ignore[return-value]

    found = {form: compiled(form) for form in FORMS}
    whole, blocks = (True, False, True), (False, True, True)
    # The blocks of the tiny model hold less than 90 % of its weights: `ours` takes the whole.
    assert found == {
        "eager": (False, False, False), "blocks": (False, True, False), "blocks+vae": blocks,
        "whole+vae": whole, "whole+graphs": whole,
        "ours": whole, "ours+whole": whole, "ours+blocks": blocks, "ours+graphs": whole,
        "ours+plain": whole,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no form 'all'"):
        compile_as("all", None, torch.nn.Module())


@pytest.mark.exhaustive
def test_outputs_of_a_compiled_form_are_near_those_of_eager(
    eager: pipeline_worker.Subject, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    files = {}
    with without_codegen():
        for made in (eager, subject("ours")):
            with watched(made.pipe.vae, made.clock.mark, made.latents):
                figures = made.finish(str(tmp_path / made.form), made.call(1))
            files[made.form] = tmp_path / made.form
    assert figures["graphs"] > 0 and figures["sites"]
    away = differences(files["ours"], files["eager"])
    assert set(away) == {"forward", "decode", "image"}
    assert all(distance < 1e-4 for distance in away.values())
    assert set(differences(files["eager"], files["eager"]).values()) == {0.0}


class FakeWorker:
    """Answers as a worker does, at once. `broken` forms fail at the named command; `hanging` ones
    never answer.
    """

    said: ClassVar[list[tuple[str, ...]]] = []
    broken: ClassVar[dict[str, str]] = {}
    hanging: ClassVar[set[str]] = set()

    def __init__(self, module: str, words: list[str], env: dict[str, str], log: Path) -> None:
        self.form, self.role = words[words.index("--form") + 1], words[words.index("--role") + 1]
        self.env, self.killed = env, threading.Event()
        self.replies = [
            {"first_s": 3.0, "compiled": 0},
            {"settled_s": 1.0, "reserved_gib": 2.0, "call_s": 0.1},
        ]
        self.said.append((self.form, self.role))

    def wait(self) -> dict[str, Any]:
        self._maybe_fail(self.role)
        return self.replies.pop(0)

    def ask(self, *words: str) -> dict[str, Any]:
        self.said.append((self.form, *words[:1]))
        self._maybe_fail(words[0])
        if words[0] == "run":
            ms = {"eager": 90.0, "blocks+vae": 60.0, "ours": 45.0}[self.form]
            return {
                "calls": [{"denoise": ms, "decode": 10.0, "denoise_host": 5.0, "decode_host": 1.0}]
                * 2
            }
        if words[0] == "finish":
            torch.save({"image": torch.ones(4)}, words[1])
            return {
                "forward_host": 4.0,
                "forward_device": 7.0,
                "decode_device": 9.0,
                "forward_launches": 3,
            }
        return {"done": words[0]}

    def _maybe_fail(self, command: str) -> None:
        if self.form in self.hanging:
            assert self.killed.wait(20)
            raise WorkerFailed("killed")
        if self.broken.get(self.form) == command:
            raise WorkerFailed("RuntimeError: out of luck")

    def close(self) -> None:
        self.said.append((self.form, "close"))

    def kill(self) -> None:
        self.killed.set()


Rows = dict[str, dict[str, Any]]


@pytest.fixture
def run_pipelines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Rows]:
    monkeypatch.setattr(pipelines, "Worker", FakeWorker)
    for name, empty in (("said", []), ("broken", {}), ("hanging", set())):
        monkeypatch.setattr(FakeWorker, name, empty)

    def run(*words: str) -> Rows:
        given = ["--tiny", "--device", "cpu", "--forms", "eager,blocks+vae,ours", "--rounds", "2"]
        given += ["--caches", str(tmp_path / "caches"), "--only", "sdxl", *words]
        rows = pipelines.Run(pipelines.parser().parse_args(given))()
        return {row["form"]: row for row in rows}

    return run


def test_forms_take_turns_in_rotating_order(run_pipelines: Callable[..., Rows]) -> None:
    rows = run_pipelines("--gib", "100")
    runs = [form for form, word, *_ in FakeWorker.said if word == "run"]
    assert runs == ["eager", "blocks+vae", "ours", "blocks+vae", "ours", "eager"]
    assert {form: row["total"] for form, row in rows.items()} == {
        "eager": 100,
        "blocks+vae": 70,
        "ours": 55,
    }
    assert rows["ours"]["device"] == 8 * 7.0 + 9.0
    assert rows["ours"]["calls"] == 4 and rows["ours"]["difference"] == {"image": 0.0}
    assert rows["ours"]["first_cold"] == rows["ours"]["first_warm"] == 3.0


def test_each_form_starts_cold_and_again_and_eager_once(run_pipelines: Callable[..., Rows]) -> None:
    run_pipelines()
    starts = [(form, word) for form, word, *_ in FakeWorker.said if word in ("cold", "kept")]
    assert sorted(starts) == [
        ("blocks+vae", "cold"), ("blocks+vae", "kept"), ("eager", "kept"), ("ours", "cold"),
        ("ours", "kept"),
    ]  # fmt: skip
    FakeWorker.said.clear()
    rows = run_pipelines()
    assert not [form for form, word, *_ in FakeWorker.said if word == "cold"], (
        "what is cached compiles no more"
    )
    assert rows["ours"]["first_cold"] == 3.0


def test_once_times_the_process_that_compiled(run_pipelines: Callable[..., Rows]) -> None:
    rows = run_pipelines("--once")
    assert not [form for form, word, *_ in FakeWorker.said if word == "cold"]
    assert rows["ours"]["first_cold"] == 3.0 and "first_warm" not in rows["ours"]


@pytest.mark.parametrize("command", ["cold", "kept", "run", "finish"])
def test_a_form_that_fails_does_not_stop_the_others(
    run_pipelines: Callable[..., Rows], command: str
) -> None:
    FakeWorker.broken["blocks+vae"] = command
    rows = run_pipelines()
    assert "out of luck" in rows["blocks+vae"]["failed"]
    assert rows["ours"]["total"] == 55 and "failed" not in rows["ours"]
    assert "out of luck" in pipeline_table.text(list(rows.values()))


def test_a_form_that_never_compiles_is_ended(
    run_pipelines: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "SPARE", 0.0)
    monkeypatch.setattr(pipelines, "COMPILING", 0.02)
    FakeWorker.hanging.add("blocks+vae")
    rows = run_pipelines("--seconds", "30")
    assert rows["blocks+vae"]["failed"] == "not compiled in 1 s"
    assert rows["ours"]["total"] == 55


def test_a_form_that_does_not_start_is_ended_and_the_others_are_timed(
    run_pipelines: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "STARTING", 0.02)
    FakeWorker.hanging.add("ours")
    rows = run_pipelines("--seconds", "40", "--once")
    assert rows["ours"]["failed"] == "not started in 1 s"
    assert rows["blocks+vae"]["total"] == 70


def test_the_limit_ends_everything(
    run_pipelines: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "SPARE", 0.0)
    monkeypatch.setattr(pipelines, "STARTING", 9.0)
    FakeWorker.hanging.add("eager")
    rows = run_pipelines("--seconds", "1")
    assert rows["eager"]["failed"] == "not done in 1 s"


def test_memory_decides_whether_workers_keep_theirs(run_pipelines: Callable[..., Rows]) -> None:
    def words(gib: str) -> set[str]:
        FakeWorker.said.clear()
        run_pipelines("--gib", gib)
        return {word for _, word, *_ in FakeWorker.said} & {"release", "let_go", "take_again"}

    assert words("100") == set()
    assert words("26") == set()  # three times 5.2 + 1.6, and 4.5 to run one
    assert words("10") == {"let_go", "take_again"}


def test_several_pipelines_compile_before_any_is_timed(
    run_pipelines: Callable[..., Rows], tmp_path: Path
) -> None:
    out, table = tmp_path / "rows.json", tmp_path / "table.md"
    run_pipelines("--only", "sdxl,wan", "--json", str(out), "--table", str(table))
    order = [word for _, word, *_ in FakeWorker.said if word in ("cold", "kept")]
    assert order == ["cold"] * 4 + ["kept"] * 6
    document = json.loads(out.read_text())
    assert len(document["rows"]) == 6 and document["machine"]["torch"] == torch.__version__
    assert "| ours | 45.0 | 10.0 | 55.0 |" in table.read_text()
    assert "geometric mean of `ours`, total: 0.786 (2 pipelines)" in table.read_text()


def row(pipeline: str, form: str, total: float, device: float) -> dict[str, Any]:
    return {"pipeline": pipeline, "note": pipeline, "form": form, "total": total, "device": device}


def test_ours_is_compared_with_the_best_inductor_form_of_its_mode() -> None:
    rows = [
        row("sdxl", "eager", 50, 10), row("sdxl", "blocks+vae", 200, 80), row("sdxl", "whole+vae",
        100, 90),
        row("sdxl", "whole+graphs", 80, 80), row("sdxl", "ours", 90, 60), row("sdxl",
        "ours+graphs", 60, 60), row("sdxl", "ours+plain", 120, 45),
        row("wan", "blocks+vae", 100, 100), row("wan", "ours", 40, 50),
    ]  # fmt: skip
    text = pipeline_table.summary(rows)
    assert "sdxl ours: 90 ms, Inductor's best (whole+graphs) 80, total 1.125, device 0.750" in text
    assert "ours+plain: 120 ms, Inductor's best (whole+vae) 100, total 1.200, device 0.562" in text
    assert (
        "sdxl ours+graphs: 60 ms, Inductor's best (whole+graphs) 80, total 0.750, device 0.750"
        in text
    )
    assert "geometric mean of `ours`, total: 0.671 (2 pipelines)" in text
    assert pipeline_table.summary(rows[:1]).startswith("nothing to compare")


def test_the_plan_says_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    pipelines.main(["--plan", "--tiny", "--device", "cpu", "--gib", "76", "--only", "sdxl,flux"])
    said = capsys.readouterr().out
    assert "SDXL, 1024 px, 8 steps, guidance: eager, blocks+vae" in said
    assert (
        "weights redrawn at each turn" in said.splitlines()[2]
        and "redrawn" not in said.splitlines()[1]
    )
    with pytest.raises(SystemExit):
        pipelines.main(["--only", "sdxxl"])
    assert "no 'sdxxl'; there are sdxl, wan" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_processes_speak_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    out = tmp_path / "rows.json"
    pipelines.main(
        [
            "--tiny",
            "--device",
            "cpu",
            "--only",
            "flux",
            "--forms",
            "eager,ours",
            "--rounds",
            "1",
            "--json",
            str(out),
        ]
    )
    rows = json.loads(out.read_text())["rows"]
    assert [row["form"] for row in rows] == ["eager", "ours"]
    assert all(row["total"] > 0 and row["forward_host"] > 0 for row in rows)

"""Compiling ahead, and the file of compiled code."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from rocm_passes import OptionError, RocmPassesError, compile_pipeline
from rocm_passes.diffusers_pipeline import warm
from tests.diffusers_pipeline.doubles import Graphs
from tests.diffusers_pipeline.models import flux, flux_inputs, image_vae


def flux_pipeline() -> Any:
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=flux(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SIZE = {
    "prompt_embeds": torch.zeros(1, 4, 32),
    "pooled_prompt_embeds": torch.zeros(1, 32),
    "height": 16,
    "width": 16,
}


def test_a_warm_run_compiles_and_says_what(
    graphs: Graphs, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = flux_pipeline()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    report = compile_pipeline(pipe, how="blocks", warm=SIZE)
    assert torch.rand(1) == expected
    compiled = graphs.count
    assert compiled == 3
    assert report.parts[-1].name == "warm"
    assert report.parts[-1].detail.startswith("height=16, width=16: first calls: transformer ")
    assert "vae.decoder" in report.parts[-1].detail
    assert report.parts[-1].detail.endswith("; did not run: vae.encoder")
    lines = capsys.readouterr().err.splitlines()
    assert "compile_pipeline: warm: transformer: compiling" in lines
    pipe(**SIZE, num_inference_steps=3)
    assert graphs.count == compiled
    assert not any(
        "timed" in str(m._compiled_call_impl) for ms in report.modules.values() for m in ms
    )


def test_without_a_compiled_decoder_nothing_is_decoded(graphs: Graphs) -> None:
    report = compile_pipeline(
        flux_pipeline(), vae=False, transformer=False, warm={**SIZE, "steps": 1}
    )
    assert (
        report.parts[-1].detail
        == "height=16, width=16, num_inference_steps=1: first calls: no compiled part ran"
    )


def test_a_bare_model_takes_its_own_arguments(graphs: Graphs) -> None:
    report = compile_pipeline(flux(), how="blocks", warm=[flux_inputs()])
    assert graphs.count == 2
    assert "FluxTransformer2DModel" in report.parts[-1].detail


def test_a_wrong_argument_is_refused_before_anything_is_compiled(graphs: Graphs) -> None:
    pipe = flux_pipeline()
    with pytest.raises(
        OptionError, match="FluxPipeline takes no argument 'hight'; did you mean 'height'"
    ):
        compile_pipeline(pipe, warm={"hight": 16})
    assert pipe.vae.decoder._compiled_call_impl is None


class Artifacts:
    """Stands in for torch.compiler's two functions."""

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.loaded: list[bytes] = []
        self.artifacts = defaultdict(list, inductor=["a", "b"], autotune=["c"])

    def save(self) -> Any:
        return None if self.content is None else (self.content, self)

    def load(self, content: bytes) -> Any:
        self.loaded.append(content)
        return self


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    artifacts = Artifacts(b"compiled code")
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", artifacts.save)
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", artifacts.load)
    return artifacts


def test_artifacts_are_saved_and_loaded(graphs: Graphs, stored: Artifacts, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "flux.bin"
    report = compile_pipeline(image_vae(), cache_artifacts=path)
    assert str(report.parts[0]) == (
        "cache: cache: no file yet; report.save_cache_artifacts() writes it after a run"
    )
    assert report.save_cache_artifacts() == 3
    assert path.read_bytes() == b"compiled code"
    report = compile_pipeline(image_vae(), cache_artifacts=path)
    assert stored.loaded == [b"compiled code"]
    assert report.parts[0].detail == "3 artifacts were loaded"
    assert report.save_cache_artifacts(tmp_path / "other.bin") == 3
    assert [p.name for p in path.parent.iterdir()] == ["flux.bin"]


def test_a_warm_run_saves_them(graphs: Graphs, stored: Artifacts, tmp_path: Path) -> None:
    path = tmp_path / "flux.bin"
    report = compile_pipeline(flux(), how="blocks", warm=flux_inputs(), cache_artifacts=path)
    assert report.parts[-1].detail == "3 artifacts were saved"
    assert path.read_bytes() == b"compiled code"


def test_a_warm_run_that_compiles_nothing_saves_nothing(
    graphs: Graphs, stored: Artifacts, tmp_path: Path
) -> None:
    stored.content = None
    model = flux()
    model.compile(backend="eager")
    path = tmp_path / "flux.bin"
    report = compile_pipeline(model, warm=flux_inputs(), cache_artifacts=path)
    assert "nothing was compiled in this process yet" in report.parts[-1].detail
    assert not path.exists()


def test_an_unreadable_file_is_said_to_be_that(graphs: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(b"no artifacts")
    report = compile_pipeline(image_vae(), cache_artifacts=path)
    assert (
        report.parts[0].detail
        == "the file holds no readable artifacts; everything is compiled anew"
    )


def test_saving_without_a_path_or_without_content(
    graphs: Graphs, stored: Artifacts, tmp_path: Path
) -> None:
    with pytest.raises(RocmPassesError, match="expected a path, found none"):
        compile_pipeline(image_vae()).save_cache_artifacts()
    stored.content = None
    with pytest.raises(RocmPassesError, match="nothing was compiled in this process yet"):
        compile_pipeline(image_vae()).save_cache_artifacts(tmp_path / "empty.bin")
    assert list(tmp_path.iterdir()) == []


def test_random_numbers_of_each_device_of_the_pipeline_are_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pipeline on cuda:1 while cuda:0 is current."""
    forked: dict[str, Any] = {}

    @contextlib.contextmanager
    def fork_rng(devices: Any, device_type: str = "cuda") -> Any:
        forked.update(devices=devices, type=device_type)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    with warm.random_state({torch.device("cuda", 1)}):
        pass
    assert forked == {"devices": [0, 1], "type": "cuda"}

"""The VAE benchmark's phases, on the CPU with the tests' models; and what its rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rocm_passes.bench import vae, vae_worker
from tests import suites
from tests.zygote import WITHOUT_CODEGEN

TINY = ["--device", "cpu", "--tiny", "--at-once", "2"]


def run(*arguments: str) -> vae.Run:
    return vae.Run(vae.parser().parse_args([*TINY, *arguments]))


def test_a_row_is_printed_and_written_for_each_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not suites.codegen():
        monkeypatch.setenv(WITHOUT_CODEGEN, "1")
    out = tmp_path / "rows.json"
    run("--only", "vae_image@float32", "--variants", "eager,ours", "--out", str(out),
        "--options", '{"select": "off", "idioms": "none"}', "--tune-seconds", "0")()  # fmt: skip
    eager, ours = json.loads(out.read_text())
    assert (eager["variant"], ours["variant"]) == ("eager", "ours")
    assert eager["dtype"] == "float32"
    # (A sample in half precision may well agree to the bit.)
    assert eager["difference_to_eager"] == 0 <= ours["difference_to_eager"] < 1e-4
    assert ours["compile_s"] > eager["compile_s"]
    for row in (eager, ours):
        assert row["ms"] > 0
        assert vae.line(row) in capsys.readouterr().out or row is ours


def test_the_choices_are_measured_before_anything_compiles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tiny model's convolutions are too small to be measured: none is noted, and both workers say
    so.
    """
    made = run("--only", "vae_qwen_image", "--variants", "eager,pipeline")
    made.measure_choices()
    assert "0 convolutions noted" in capsys.readouterr().out
    assert all(job.worker is None for job in made.jobs)


def test_a_job_that_fails_costs_its_own_row_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(
        "--only",
        "vae_image,no_such_vae",
        "--variants",
        "eager",
        "--out",
        str(tmp_path / "rows.json"),
    )
    made()
    assert [row["decoder"] for row in made.rows] == ["vae_image"]
    assert "no_such_vae eager failed:" in capsys.readouterr().out


def test_what_is_not_compiled_in_time_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(
        "--only",
        "vae_image",
        "--variants",
        "eager",
        "--seconds",
        "0",
        "--out",
        str(tmp_path / "rows.json"),
    )
    made()
    assert made.rows == []
    assert "vae_image eager failed: not compiled within the time" in capsys.readouterr().out


def test_the_difference_is_relative_to_the_reference(tmp_path: Path) -> None:
    torch.save(torch.tensor([3.0, 4.0]), tmp_path / "a.pt")
    torch.save(torch.tensor([3.0, 4.5]), tmp_path / "b.pt")
    assert vae.difference(tmp_path / "b.pt", tmp_path / "a.pt") == 0.1


def test_float32_is_admitted_with_twice_the_memory() -> None:
    wide, narrow = run("--dtype", "float32"), run()
    assert wide.gib(wide.jobs[0]) == 2 * narrow.gib(narrow.jobs[0]) > 0


def test_a_decoder_may_have_a_dtype_of_its_own() -> None:
    made = run("--only", "vae_wan,vae_wan@float32", "--variants", "static,pipeline+fp16")
    found = [(job.name, job.dtype, job.variant) for job in made.jobs]
    # conv_dtype is for float32: in bfloat16 there is nothing to compare.
    assert found == [
        ("vae_wan", "bfloat16", "static"),
        ("vae_wan", "float32", "static"),
        ("vae_wan", "float32", "pipeline+fp16"),
    ]
    assert made.gib(made.jobs[1]) == 2 * made.gib(made.jobs[0])


def test_a_conv_dtype_stands_behind_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "rocm_passes.diffusers_pipeline.compile_vae", lambda module, options: seen.append(options)
    )
    vae_worker.compile_as("pipeline+fp16", None, {"select": "always"})
    vae_worker.compile_as("pipeline", None, {})
    assert seen == [{"select": "always", "conv_dtype": "fp16"}, None]
    assert (
        vae_worker.is_ours("pipeline+fp16")
        and vae_worker.is_ours("ours")
        and not vae_worker.is_ours("static")
    )


def test_weights_may_lie_channels_last() -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv3d(4, 5, 3), torch.nn.Conv2d(4, 5, 3), torch.nn.Conv3d(1, 5, 1)
    )
    before = [p.clone() for p in module.parameters()]
    vae_worker.lay_out_weights(module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert module[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[2].weight.is_contiguous()
    given = vae.parser().parse_args(["--weights", "channels_last"])
    assert given.weights == "channels_last"

"""The quality benchmark: its clip has structure, its PSNR is PSNR, and it runs on a CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rocm_passes.bench import quality


def test_the_clip_moves_and_has_sharp_edges() -> None:
    video = quality.clip(5, 64, 80)
    assert video.shape == (1, 3, 5, 64, 80)
    assert video.abs().max() <= 1
    assert not torch.equal(video[:, :, 0], video[:, :, -1])
    assert (video[..., 1:] - video[..., :-1]).abs().max() > 1  # across a glyph's edge
    smooth = video[:, :, :, -8:, -8:]
    assert (smooth[..., 1:] - smooth[..., :-1]).abs().max() < 0.3


def test_psnr_is_relative_to_the_reference_s_range() -> None:
    reference = torch.tensor([-1.0, 0.0, 3.0])
    assert quality.psnr(reference + 0.04, reference) == pytest.approx(40, abs=1e-4)
    assert quality.psnr(reference, reference) == math.inf
    with pytest.raises(ValueError, match="not finite"):
        quality.psnr(torch.tensor([math.nan, 0.0, 0.0]), reference)


def test_lower_precision_has_lower_psnr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    quality.main(
        ["--device", "cpu", "--tiny", "--only", "fp32 eager,bf16 eager", "--out", str(out)]
    )
    single, half = json.loads(out.read_text())
    assert (single["form"], half["form"]) == ("fp32 eager", "bf16 eager")
    assert single["psnr_db"] > 100
    assert 25 < half["psnr_db"] < 60
    assert "bf16 eager" in capsys.readouterr().out


def test_every_form_can_be_asked_for() -> None:
    assert not any("," in name for name in quality.FORMS)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(SystemExit, match="no form 'bf8'; there are reference, fp32 eager"):
        quality.main(["--only", "bf8"])

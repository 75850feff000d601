"""vae_dtype: the decoder alone, and what it costs."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from rocm_passes import compile_pipeline
from rocm_passes.diffusers_pipeline import vae as vae_module
from rocm_passes.diffusers_pipeline.probe import ConvolutionsIn, psnr
from tests.diffusers_pipeline.models import image_vae
from tests.zoo import vaes


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each module that would be compiled: decoder, then encoder."""
    seen: list[dict[str, Any]] = []

    def record(module: Any, *, options: dict[str, Any], dynamic: bool | None) -> None:
        seen.append(options)

    monkeypatch.setattr(vae_module, "compile_in_place", record)
    return seen


def stated(detail: str) -> float:
    found = re.search(r"PSNR ([0-9.]+) dB on a probe decode of a 1x4x2x8x8 latent", detail)
    assert found is not None, detail
    return float(found.group(1))


def test_the_decoder_alone_and_its_error(compiled: list[dict[str, Any]]) -> None:
    vae = vaes.WAN.build(torch.float32)
    report = compile_pipeline(vae, vae_dtype="bf16", options={"select": "off"})
    assert compiled == [{"select": "off", "conv_dtype": "bf16"}, {"select": "off"}]
    assert 30 < stated(report.parts[0].detail) < 70
    assert "PSNR" not in report.parts[1].detail
    in_half = stated(compile_pipeline(vae, vae_dtype="fp16").parts[0].detail)
    assert in_half > stated(report.parts[0].detail) + 10  # three more bits: 18 dB


@pytest.mark.parametrize(
    ("vae", "why"),
    [
        (lambda: vaes.WAN.build(torch.bfloat16), "the decoder's convolutions are in bfloat16"),
        (image_vae, "the decoder has no 3-D convolutions"),
    ],
)
def test_where_it_changes_nothing(compiled: list[dict[str, Any]], vae: Any, why: str) -> None:
    report = compile_pipeline(vae(), vae_dtype="bf16")
    assert compiled == [{}, {}]
    assert report.parts[0].detail == f"static shapes; vae_dtype changes nothing: {why}"


def test_a_probe_that_fails_is_reported(
    compiled: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae: Any = vaes.WAN.build(torch.float32)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(vae, "decode", fail)
    detail = compile_pipeline(vae, vae_dtype="bf16").parts[0].detail
    assert detail.endswith("PSNR unknown, the probe decode failed: RuntimeError: out of memory")


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_convolutions_of_the_mode(dtype: torch.dtype, digits: int, scale: float) -> None:
    """Both factors are rounded to `digits` bits, the products and sums are not; 2-D ones are left
    alone.
    """
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 8, 3, 6, 6) * scale, torch.randn(4, 8, 3, 3, 3), torch.randn(4)
    exact = torch.nn.functional.conv3d(x.double(), weight.double(), bias.double())
    with torch.no_grad(), ConvolutionsIn(dtype):
        got = torch.nn.functional.conv3d(x, weight, bias)
        flat = torch.nn.functional.conv2d(x[:, :, 0], weight[:, :, 0])
    assert got.dtype is torch.float32
    bound = 3 * 2.0**-digits * torch.nn.functional.conv3d(x.abs(), weight.abs()).max()
    assert 0 < (got - exact).abs().max() < bound
    assert torch.equal(flat, torch.nn.functional.conv2d(x[:, :, 0], weight[:, :, 0]))


def test_psnr() -> None:
    expected = torch.tensor([0.0, 2.0])
    assert psnr(expected, expected) == math.inf
    assert psnr(expected + 0.02, expected) == pytest.approx(40.0, abs=1e-3)
    assert psnr(torch.ones(2), torch.zeros(2)) == -math.inf

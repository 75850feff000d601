"""VAEs run through aiter's double on every architecture: no call breaks the contract.

Wherever the real aiter would have done harm, the double raises and writes it into its log.
"""

from __future__ import annotations

import logging

import pytest
import torch

from rocm_passes.ops.aiter_conv import AITER_CONV
from rocm_passes.target import AMD_ARCHITECTURES, Target
from tests.doubles import aiter_double
from tests.doubles.aiter_double import installed
from tests.rewriting import Rewritten
from tests.zoo import tensors_in
from tests.zoo.traced import exact, passed, results

#: Wan's, Qwen-Image's, and the one that FLUX and SDXL have.
VAES = ("vae_wan", "vae_image", pytest.param("vae_qwen_image", marks=pytest.mark.exhaustive))


@pytest.fixture(autouse=True)
def operators_run_their_lowerings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: True)


@pytest.mark.each_value
@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("arch", AMD_ARCHITECTURES)
@pytest.mark.parametrize("version", ["0.1.20", "0.1.23"])
def test_no_call_breaks_the_contract(
    version: str, arch: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (eager,), (true,) = results(name), exact(name)
    kind = "flydsl" if arch == "gfx950" and version == "0.1.23" else "triton"
    with installed(version, arch):
        seen, (ours,) = through_aiter(arch, f"aiter_{kind}", name)
        log = aiter_double.log()
    called = [t for t in seen.targets() if t is AITER_CONV.overload]
    assert [entry for entry in log if entry.harm is not None] == []
    # Without conv3d, which 0.1.20 has not, videos still have convolutions over frames.
    assert len([entry for entry in log if "conv" in entry.function]) == len(called) > 0
    # What two orders of rounding differ by in so small a model.
    assert _rms(ours, true) <= 1.2 * _rms(eager, true)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def through_aiter(arch: str, lowering: str, name: str) -> tuple[Rewritten, list[torch.Tensor]]:
    """Every convolution and norm that aiter can take goes there."""
    seen = passed(
        name,
        runs=True,
        target=Target("amd", arch, "AMD", torch.__version__, None),
        idioms="conv3d,conv2d,group_norm",
        select="always",
        lowering={"conv3d": lowering, "conv2d": lowering, "group_norm": "aiter"},
    )
    return seen, tensors_in(seen.result)


def _rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())

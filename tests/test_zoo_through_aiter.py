"""VAEs run through aiter's double on every architecture: no call breaks the contract.

Wherever the real aiter would have done harm, the double raises and writes it into its log.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from rocm_passes.ops.aiter_conv import AITER_CONV
from rocm_passes.target import AMD_ARCHITECTURES, Target
from tests.doubles import aiter_double
from tests.doubles.aiter_double import installed
from tests.rewriting import Rewritten, recording
from tests.without_codegen import without_codegen
from tests.zoo import case, tensors_in

#: Wan's, Qwen-Image's, and the one that FLUX and SDXL have.
VAES = ("vae_wan", "vae_qwen_image", "vae_image")


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
    zoo = case(name)
    model = zoo.build(torch.bfloat16)
    inputs = zoo.inputs(model)
    (eager,), (exact,) = zoo.run(model, inputs), zoo.reference(model, inputs)
    kind = "flydsl" if arch == "gfx950" and version == "0.1.23" else "triton"
    with installed(version, arch):
        seen, (ours,) = through_aiter(arch, f"aiter_{kind}", zoo.function(model), inputs)
        log = aiter_double.log()
    called = [t for t in seen.targets() if t is AITER_CONV.overload]
    assert [entry for entry in log if entry.harm is not None] == []
    # Without conv3d, which 0.1.20 has not, videos still have convolutions over frames.
    assert len([entry for entry in log if "conv" in entry.function]) == len(called) > 0
    # What two orders of rounding differ by in so small a model.
    assert _rms(ours, exact) <= 1.2 * _rms(eager, exact)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def through_aiter(
    arch: str, lowering: str, function: Any, inputs: Any
) -> tuple[Rewritten, list[torch.Tensor]]:
    """Every convolution and norm that aiter can take goes there."""
    amd = Target("amd", arch, "AMD", torch.__version__, None)
    options = {
        "idioms": "conv3d,conv2d,group_norm",
        "select": "always",
        "lowering": {"conv3d": lowering, "conv2d": lowering, "group_norm": "aiter"},
    }
    seen = Rewritten()
    args, kwargs = inputs
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, without_codegen(), torch.no_grad():
        patch.setattr("rocm_passes.backend.Target.of_inputs", staticmethod(lambda _: amd))
        compiled = torch.compile(
            function, backend=lambda gm, i: recording(seen, gm, i, options=options, caches=False)
        )
        return seen, tensors_in(compiled(*args, **kwargs))


def _rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())

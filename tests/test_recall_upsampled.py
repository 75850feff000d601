"""CogVideoX's decoder: every convolution of an upsampled latent is found, moved before it, and read
by index.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests.without_codegen import without_codegen
from tests.zoo import case

#: Of 42 such convolutions, the 16 of the middle and the first block see no upsampling; each norm
#: has two.
SMALL, LARGE = 16, 26


@pytest.fixture(scope="module")
def decoded() -> tuple[list[Ledger], dict[str, torch.Tensor]]:
    """Five latent frames: the decoder runs on three, and again on two with cached frames."""
    zoo = case("vae_cogvideox")
    model: Any = zoo.build(torch.bfloat16)
    z = torch.randn(1, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    inputs = (), {"z": z, "return_dict": False}
    results = {"exact": zoo.reference(model, inputs)[0], "eager": zoo.run(model, inputs)[0]}
    ledgers: list[Ledger] = []
    options = {"select": "auto", "lowering": {"group_norm": "triton"}}

    def backend(gm: Any, example_inputs: Any) -> Any:
        return rocm_diffusion(
            gm, example_inputs, options=options, listener=ledgers.append, caches=False
        )

    torch._dynamo.reset()
    model.decoder = torch.compile(model.decoder, backend=backend, dynamic=False)
    with without_codegen(), torch.no_grad():
        results["ours"] = zoo.run(model, inputs)[0]
    return ledgers, results


def test_every_convolution_of_an_upsampled_latent_is_moved(decoded: Any) -> None:
    ledgers, _ = decoded
    assert len(ledgers) == 2
    for ledger in ledgers:
        moved = [e for e in ledger.entries if e.idiom == "upsampled_conv"]
        assert [e.outcome for e in moved] == ["rewritten"] * LARGE
        left = [c for e in ledger.entries if e.idiom == "conv3d" for c in e.considered]
        assert len(left) == SMALL
        assert all("the input has only 1 times the pixels" in reason for reason in left)


def test_their_norms_read_them_by_index(decoded: Any) -> None:
    for ledger, frames in zip(decoded[0], (3, 2), strict=True):
        norms = [e.parameters for e in ledger.entries if e.idiom == "group_norm"]
        assert all(p["spatial"] for p in norms)
        by_index = [p["source_pixels"] for p in norms if "source_pixels" in p]
        assert by_index == [frames * 4 * 4] * (LARGE // 2)


def test_the_result_is_as_exact_as_eager(decoded: Any) -> None:
    results = decoded[1]
    error = {
        k: float((results[k].double() - results["exact"]).square().mean().sqrt())
        for k in ("ours", "eager")
    }
    assert 0 < error["ours"] <= 1.1 * error["eager"]

"""Causal video decoders: norms write behind the frames that stand in front of them, and the decode
is as exact.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests.without_codegen import without_codegen
from tests.zoo import case

#: By model: the norm's idiom, the latent, and in each graph of its decode how many norms stand
#: behind how many frames. CogVideoX: all of them, behind the first frame twice, then behind two
#: cached ones. Wan: nothing but zeros stands before the first chunk, one cached frame before the
#: second, two before all others. Where the second has one frame itself, the new cache is the same
#: cat once more: a norm that goes into two is left alone.
DECODES: dict[str, tuple[str, tuple[int, ...], list[dict[int, int]]]] = {
    "vae_cogvideox": ("group_norm", (1, 4, 5, 4, 4), [{2: 21}, {2: 21}]),
    "vae_wan": ("channel_norm", (1, 4, 3, 4, 4), [{}, {1: 8}, {2: 21}]),
}


@pytest.mark.parametrize("name", DECODES)
def test_norms_stand_behind_their_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The operators' references run: Triton's interpreter truncates to bfloat16, which adds up over
    # a decode.
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)
    idiom, shape, expected = DECODES[name]
    zoo = case(name)
    model: Any = zoo.build(torch.bfloat16)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    inputs = (), {"z": z, "return_dict": False}
    exact, eager = zoo.reference(model, inputs)[0], zoo.run(model, inputs)[0]
    ledgers: list[Ledger] = []
    # Fast: the convolutions of Wan's second chunk are sums of two taps, which spell the cat behind
    # the norm.
    options = {"select": "auto", "lowering": {idiom: "triton"}, "rewrite_numerics": "fast"}

    def backend(gm: Any, example_inputs: Any) -> Any:
        return rocm_diffusion(
            gm, example_inputs, options=options, listener=ledgers.append, caches=False
        )

    torch._dynamo.reset()
    model.decoder = torch.compile(model.decoder, backend=backend, dynamic=False)
    with without_codegen(), torch.no_grad():
        ours = zoo.run(model, inputs)[0]
    found = []
    for ledger in ledgers:
        frames = [e.parameters.get("front_frames") for e in ledger.entries if e.idiom == idiom]
        found.append({f: frames.count(f) for f in frames if f is not None})
    assert found == expected
    error = [float((x.double() - exact).square().mean().sqrt()) for x in (ours, eager)]
    assert 0 < error[0] <= 1.1 * error[1]

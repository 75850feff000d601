"""vae_dtype in the graphs themselves: the decoder's 3-D convolutions, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

import rocm_passes
import rocm_passes.backend as backend
from rocm_passes import compile_pipeline
from rocm_passes.diffusers_pipeline.probe import psnr
from tests.without_codegen import without_codegen
from tests.zoo import vaes

CONV = torch.ops.aten.convolution.default


class Compiled:
    """Decodes and encodes a compiled VAE, and keeps the convolutions of each graph after the
    passes.
    """

    def __init__(self, vae: Any, monkeypatch: Any, **how: Any) -> None:
        self.vae = vae
        self.convolutions: dict[str, list[torch.dtype]] = {"decoder": [], "encoder": []}
        self._now = ""
        original, seen = backend.GraphPass, self

        class Recording(original):  # type: ignore[misc, valid-type]
            def __call__(self, graph: fx.Graph) -> None:
                super().__call__(graph)
                seen.note(graph)

        monkeypatch.setattr(backend, "GraphPass", Recording)
        self.report = compile_pipeline(vae, **how)

    def note(self, graph: fx.Graph) -> None:
        found = graph.find_nodes(op="call_function", target=CONV)
        self.convolutions[self._now] += [node.args[0].meta["val"].dtype for node in found]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        self._now = "decoder"
        with torch.no_grad(), without_codegen():
            result: torch.Tensor = self.vae.decode(latent, return_dict=False)[0]
        return result

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        self._now = "encoder"
        with torch.no_grad(), without_codegen():
            result: torch.Tensor = self.vae.encode(video, return_dict=False)[0].mode()
        return result


def test_only_the_decoders_convolutions_change(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    vae: Any = vaes.SMALL_WAN.build(torch.float32)
    latent, video = torch.randn(1, 4, 2, 4, 4), torch.rand(1, 3, 3, 16, 16)
    with torch.no_grad():
        decoded = vae.decode(latent, return_dict=False)[0]
        encoded = vae.encode(video, return_dict=False)[0].mode()
    weights = {name: p.clone() for name, p in vae.named_parameters()}
    made = Compiled(vae, monkeypatch, vae_dtype="bf16")
    got = made.decode(latent)
    videos = sum(isinstance(m, nn.Conv3d) for m in vae.decoder.modules())
    in_bf16 = made.convolutions["decoder"].count(torch.bfloat16)
    # Conv2d of the attention and of the upsampling stays in float32.
    assert in_bf16 >= videos and torch.float32 in made.convolutions["decoder"]
    assert got.dtype is torch.float32
    assert 25 < psnr(got, decoded) < 70
    torch.testing.assert_close(made.encode(video), encoded, atol=1e-4, rtol=1e-4)
    assert set(made.convolutions["encoder"]) == {torch.float32}
    assert all(torch.equal(p, weights[name]) for name, p in vae.named_parameters())
    assert all(p.dtype is torch.float32 for p in vae.parameters())


def test_the_ledger_says_which_and_the_report_what_it_costs(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    vae: Any = vaes.SMALL_WAN.build(torch.float32)
    before = len(rocm_passes.history())
    made = Compiled(vae, monkeypatch, vae_dtype="bf16")
    assert "3-D convolutions in bf16: PSNR " in made.report.parts[0].detail
    made.decode(torch.randn(1, 4, 1, 4, 4))
    sites = [e for g in rocm_passes.history()[before:] for e in g.entries if e.idiom == "conv3d"]
    rewritten = [e for e in sites if e.outcome == "rewritten"]
    assert rewritten and all(
        any("convolved in bfloat16" in note for note in e.notes) for e in rewritten
    )

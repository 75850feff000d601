"""CogVideoX's decoder, compiled alone and run once: what several tests look at."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests.without_codegen import without_codegen

from . import case


@dataclass(frozen=True)
class Decoded:
    """A decode in bfloat16, in float64 (exact), and with the decoder compiled (ours)."""

    ledgers: list[Ledger]
    exact: Tensor
    eager: Tensor
    ours: Tensor

    def is_as_exact_as_eager(self) -> bool:
        ours, eager = (
            float((x.double() - self.exact).square().mean().sqrt()) for x in (self.ours, self.eager)
        )
        return 0 < ours <= 1.1 * eager


def decode(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> Decoded:
    """Operators run their references: Triton's interpreter truncates to bfloat16, which adds up."""
    zoo = case(name)
    model: Any = zoo.build(torch.bfloat16)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    inputs = (), {"z": z, "return_dict": False}
    exact, eager = zoo.reference(model, inputs)[0], zoo.run(model, inputs)[0]
    ledgers: list[Ledger] = []

    def backend(gm: Any, example_inputs: Any) -> Any:
        return rocm_diffusion(
            gm, example_inputs, options=options, listener=ledgers.append, caches=False
        )

    torch._dynamo.reset()
    model.decoder = torch.compile(model.decoder, backend=backend, dynamic=False)
    interpreted = mock.patch("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)
    with interpreted, without_codegen(), torch.no_grad():
        return Decoded(ledgers, exact, eager, zoo.run(model, inputs)[0])


@functools.cache
def cogvideox() -> Decoded:
    """Five latent frames: the decoder runs on three, and again on two with cached frames."""
    options = {"select": "auto", "lowering": {"group_norm": "triton"}}
    return decode("vae_cogvideox", (1, 4, 5, 4, 4), options)

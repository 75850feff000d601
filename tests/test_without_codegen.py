"""The two ways to run the passes and generate no code find what a compile finds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rocm_passes
from rocm_passes.backend import rocm_diffusion
from rocm_passes.target import Target
from rocm_passes.tuning import ahead
from tests.without_codegen import without_codegen


class Upsampled(nn.Module):
    """A padded convolution of an upsampled latent: the matcher computes its indices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(F.silu(x), scale_factor=2.0, mode="nearest"))
        return result


@pytest.mark.parametrize("context", [without_codegen, ahead.noting])
def test_an_upsampling_is_read_where_no_code_is_generated(
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    torch.manual_seed(0)
    model, x = Upsampled(), torch.randn(1, 8, 4, 4)
    before = len(rocm_passes.history())

    def backend(gm: Any, inputs: Any) -> Any:
        return rocm_diffusion(gm, inputs, options={"select": "always"}, caches=False)

    with context(), torch.no_grad():
        result = torch.compile(model, backend=backend)(x)
    entries = [e for g in rocm_passes.history()[before:] for e in g.entries]
    assert [(e.idiom, e.outcome) for e in entries] == [("pad", "rewritten")]
    torch.testing.assert_close(result, model(x))


@pytest.mark.parametrize("arch", ["cpu", "sm_90", "gfx942"])
@pytest.mark.parametrize("on_compile_error", ["raise", "fallback"])
def test_no_code_is_generated_whatever_wraps_the_compile(
    arch: str, on_compile_error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in random programs, which run without the suite's environment (seed 1003230). For a GPU a
    wrapper explains launches that fail.
    """

    def lower(*_: Any, **__: Any) -> Any:
        raise AssertionError("it generates code")

    target = Target.named(arch, triton="3.6.0")
    monkeypatch.delenv("ROCM_PASSES_ON_COMPILE_ERROR")
    monkeypatch.setattr(Target, "of_inputs", staticmethod(lambda _: target))
    monkeypatch.setattr("torch._inductor.graph.GraphLowering.__init__", lower)
    torch._dynamo.reset()
    norm, x = nn.RMSNorm(16), torch.randn(3, 16)
    options = {
        "select": "always", "tune_seconds": 0.0, "on_compile_error": on_compile_error,
        "launch": "python",
    }  # fmt: skip
    ours = functools.partial(rocm_diffusion, options=options, caches=False)
    with torch.no_grad(), without_codegen():
        compiled = torch.compile(norm, backend=ours)
        torch.testing.assert_close(compiled(x), norm(x))

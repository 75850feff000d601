"""SDXL, text to image, compiled: `python -m examples.sdxl`.

A UNet of many small kernels is bound by the host. CUDA graphs (HIP graphs on AMD) take the launches
away: `mode="reduce-overhead"`. On a CPU there are none, and the mode is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline

import rocm_passes
from examples.setting import setting


def main(argv: Sequence[str] | None = None) -> None:
    with setting(__doc__, "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", argv) as run:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            run.model, torch_dtype=torch.bfloat16, **run.parts
        )
        pipe.to(run.device)
        graphs = None if run.options or run.device == "cpu" else "reduce-overhead"
        report = rocm_passes.compile_pipeline(pipe, mode=graphs, options=run.options)
        call = run.call(
            prompt="A watercolour of a harbour at dusk",
            height=1024,
            width=1024,
            num_inference_steps=30,
        )
        pipe(**call).images[0].save("sdxl.png")
        run.finish(report)


if __name__ == "__main__":
    main()

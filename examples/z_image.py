"""Z-Image-Turbo, text to image, compiled: `python -m examples.z_image`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ZImagePipeline

import rocm_passes
from examples.setting import setting


def main(argv: Sequence[str] | None = None) -> None:
    with setting(__doc__, "z_image", "Tongyi-MAI/Z-Image-Turbo", argv) as run:
        pipe = ZImagePipeline.from_pretrained(run.model, torch_dtype=torch.bfloat16, **run.parts)
        pipe.to(run.device)
        report = rocm_passes.compile_pipeline(pipe, options=run.options)
        call = run.call(
            prompt="A red fox in fresh snow, morning light",
            height=1024,
            width=1024,
            num_inference_steps=9,
            guidance_scale=0.0,
        )
        pipe(**call).images[0].save("z_image.png")
        run.finish(report)


if __name__ == "__main__":
    main()

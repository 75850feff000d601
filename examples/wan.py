"""Wan 2.1, text to video, compiled: `python -m examples.wan`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import rocm_passes
from examples.setting import setting


def main(argv: Sequence[str] | None = None) -> None:
    with setting(__doc__, "wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", argv) as run:
        pipe = WanPipeline.from_pretrained(run.model, torch_dtype=torch.bfloat16, **run.parts)
        pipe.to(run.device)
        report = rocm_passes.compile_pipeline(pipe, options=run.options)
        call = run.call(
            prompt="A cat walks on the grass, realistic",
            negative_prompt="blurry, low quality",
            height=480,
            width=832,
            num_frames=81,
            guidance_scale=5.0,
        )
        frames = pipe(**call).frames[0]
        if run.tiny_call is None:
            export_to_video(frames, "wan.mp4", fps=16)
        run.finish(report)


if __name__ == "__main__":
    main()

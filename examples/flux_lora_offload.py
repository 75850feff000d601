"""FLUX.1 with a LoRA and group offloading, compiled: `python -m examples.flux_lora_offload`.

The LoRA is loaded before the pipeline is compiled: a new adapter changes the model's graph, which
costs a compile. Group offloading moves weights block by block, so the blocks are compiled one by
one (docs/pipelines.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import FluxPipeline

import rocm_passes
from examples.setting import setting

LORA = "XLabs-AI/flux-RealismLora"


def main(argv: Sequence[str] | None = None) -> None:
    with setting(__doc__, "flux", "black-forest-labs/FLUX.1-dev", argv, lora=LORA) as run:
        pipe = FluxPipeline.from_pretrained(run.model, torch_dtype=torch.bfloat16, **run.parts)
        pipe.load_lora_weights(run.lora)
        pipe.transformer.enable_group_offload(
            onload_device=torch.device(run.device),
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        )
        for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
            if part is not None:
                part.to(run.device)
        report = rocm_passes.compile_pipeline(pipe, options=run.options)
        call = run.call(
            prompt="A lighthouse in a storm, photograph",
            height=1024,
            width=1024,
            num_inference_steps=28,
        )
        pipe(**call).images[0].save("flux.png")
        run.finish(report)


if __name__ == "__main__":
    main()

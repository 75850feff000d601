"""Compile the parts of a diffusers pipeline that pay, each in the way that it must be, and say what
was done.

    report = rocm_passes.compile_pipeline(pipe)
    print(report)

What this knows, and `torch.compile(pipe.vae)` does not:
- `decode()` and tiling call `vae.decoder`, not `vae.forward`: a compiled VAE that is not called as
  a module runs in eager. So decoder and encoder are compiled, in place, and with them every way to
  reach them.
- A video VAE decodes chunk by chunk in a few shapes. With automatic dynamic shapes they run into
  Dynamo's recompile limit and fall back to eager; with static shapes Wan's decode settles on three
  graphs.
- A transformer's blocks are alike: compiled one by one they share one graph, and compile in
  seconds. The blocks that a UNet declares are not all of it: its ResNets are compiled too.
- What is compiled already, or taken apart by offloading hooks, is left alone, and the report says
  so.
"""

from rocm_passes.diffusers_pipeline.denoiser import compile_denoiser
from rocm_passes.diffusers_pipeline.pipeline import compile_pipeline
from rocm_passes.diffusers_pipeline.report import Part, Report
from rocm_passes.diffusers_pipeline.vae import compile_vae

__all__ = ["Part", "Report", "compile_denoiser", "compile_pipeline", "compile_vae"]

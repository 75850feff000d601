"""Three nodes: compile a model, compile a VAE, show the ledger.

A model is compiled through ComfyUI's own helper where ComfyUI has one
(`comfy_api.torch_helpers.set_torch_compile_wrapper`), which swaps the compiled module in while the
model is applied, so LoRA and offloading see the plain one. Older versions of ComfyUI take an object
patch instead. A VAE's decoder and encoder are compiled in place, in static shapes, as
`rocm_passes.compile_pipeline` compiles them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BACKEND = "rocm_diffusion"
CATEGORY = "rocm-passes"
#: The part of ComfyUI's model that denoises.
DIFFUSION_MODEL = "diffusion_model"
SELECT = ("auto", "always", "off")


def without_transformer_options(guards: Sequence[Any]) -> list[bool]:
    """Which guards Dynamo keeps: ComfyUI changes `transformer_options` at each step, and a guard on
    it would compile anew each time.
    """
    return ["transformer_options" not in guard.name for guard in guards]


class CompileModel:
    """Compiles the diffusion model at its first step."""

    CATEGORY = CATEGORY
    FUNCTION = "compile"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "select": (list(SELECT), {"default": "auto"}),
                "dynamic": ("BOOLEAN", {"default": False}),
            }
        }

    def compile(self, model: Any, select: str, dynamic: bool) -> tuple[Any]:
        import torch

        cloned = model.clone()
        options = {"select": select, "guard_filter_fn": without_transformer_options}
        helper = _helper()
        if helper is not None:
            helper(model=cloned, backend=BACKEND, options=options, dynamic=dynamic or None)
            return (cloned,)
        compiled = torch.compile(
            cloned.get_model_object(DIFFUSION_MODEL),
            backend=BACKEND,
            options=options,
            dynamic=dynamic or None,
        )
        cloned.add_object_patch(DIFFUSION_MODEL, compiled)
        return (cloned,)


def _helper() -> Callable[..., Any] | None:
    """ComfyUI's helper, or None in versions that have none."""
    try:
        from comfy_api.torch_helpers import set_torch_compile_wrapper
    except ImportError:
        return None
    found: Callable[..., Any] = set_torch_compile_wrapper
    return found


class CompileVAE:
    """Compiles the VAE's decoder and encoder at their first call."""

    CATEGORY = CATEGORY
    FUNCTION = "compile"
    RETURN_TYPES = ("VAE", "STRING")
    RETURN_NAMES = ("vae", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": ("VAE",), "select": (list(SELECT), {"default": "auto"})}}

    def compile(self, vae: Any, select: str) -> tuple[Any, str]:
        import rocm_passes

        report = rocm_passes.compile_pipeline(vae.first_stage_model, options={"select": select})
        return (vae, str(report))


class ShowLedger:
    """Gives the ledger of this process as text, and writes it as a page beside the images.

    Connect an image or a latent that comes after the compiled part: the ledger is complete once
    that has run.
    """

    CATEGORY = CATEGORY
    FUNCTION = "show"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("ledger",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "after": ("*", {}),
                "file": ("STRING", {"default": "rocm-passes.html"}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any = None) -> bool:
        """Any type may be connected to `after`."""
        return True

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Never equal to itself: the node runs each time."""
        return float("nan")

    def show(self, after: Any, file: str) -> dict[str, Any]:
        from rocm_passes import history
        from rocm_passes.environment import document
        from rocm_passes.report import html
        from rocm_passes.report.text import table

        graphs = history()
        text = table(graphs, width=100)
        if file:
            # Beneath ComfyUI's output folder, wherever the name points.
            target = _output_folder() / Path(file).name
            target.write_text(html.page(document(graphs), "ComfyUI"), encoding="utf-8")
        return {"ui": {"text": [text]}, "result": (text,)}


def _output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


NODE_CLASS_MAPPINGS = {
    "RocmPassesCompileModel": CompileModel,
    "RocmPassesCompileVAE": CompileVAE,
    "RocmPassesLedger": ShowLedger,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RocmPassesCompileModel": "Compile Model (rocm-passes)",
    "RocmPassesCompileVAE": "Compile VAE (rocm-passes)",
    "RocmPassesLedger": "Ledger (rocm-passes)",
}

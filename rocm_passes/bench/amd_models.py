"""Post-grad graphs of production models, traced on the meta device: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch.utils._python_dispatch import _disable_current_modes

from rocm_passes.bench.inputs import Draw
from rocm_passes.bench.models import workload
from rocm_passes.fx import decompositions
from rocm_passes.registry import IDIOMS

#: A graph, and the ATen operators that are kept whole in it.
Graph = tuple[fx.Graph, tuple[str, ...]]
PRESERVED = tuple(sorted({name for idiom in IDIOMS for name in idiom.preserves}))


def traced(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> list[Graph]:
    """The inference graphs that Inductor would get, as this package's pass sees them."""
    found: list[Graph] = []

    def instead_of_inductor(gm: fx.GraphModule, inputs: Any, **_: Any) -> Any:
        with _disable_current_modes():
            view_to_reshape(gm)
        found.append((gm.graph, PRESERVED))
        return make_boxed_func(gm.forward)

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        table = decompositions.table_preserving(PRESERVED)
        # On the meta device every value is alike to the folding of constants.
        patches = {"force_disable_caches": True, "joint_graph_constant_folding": False}
        compile_fx(
            gm,
            inputs,
            inner_compile=instead_of_inductor,
            decompositions=table,
            config_patches=patches,
        )
        forward: Callable[..., Any] = gm.forward
        return forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=False)(*args, **kwargs)
    return found


def _workload(name: str) -> list[Graph]:
    made = workload(name).build("meta")
    return traced(made.function, made.args, made.kwargs)


def _sdxl_part(path: str, inputs: Callable[[Draw], dict[str, Any]]) -> list[Graph]:
    """One part of SDXL's UNet at 1024 px, guidance in the batch."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL).to(torch.bfloat16).eval()
    part: nn.Module = unet.get_submodule(path)
    return traced(part, (), {k: v.to("meta") for k, v in inputs(Draw(0, torch.bfloat16)).items()})


SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def _sdxl_resnet(draw: Draw) -> dict[str, Any]:
    make = torch.zeros
    kind = torch.bfloat16
    return {
        "input_tensor": make(2, 320, 128, 128, dtype=kind),
        "temb": make(2, 1280, dtype=kind),
    }


def _sdxl_transformer(draw: Draw) -> dict[str, Any]:
    kind = torch.bfloat16
    return {
        "hidden_states": torch.zeros(2, 640, 64, 64, dtype=kind),
        "encoder_hidden_states": torch.zeros(2, 77, 2048, dtype=kind),
    }


#: Wan 2.1 14B at 480p, Z-Image and SDXL at 1024 px, and Wan's decode at 480p.
MODELS: dict[str, Callable[[], list[Graph]]] = {
    "wan_block": lambda: _workload("wan_block"),
    "z_image_block": lambda: _workload("z_image_block"),
    "sdxl_resnet": lambda: _sdxl_part("down_blocks.0.resnets.0", _sdxl_resnet),
    "sdxl_transformer": lambda: _sdxl_part("down_blocks.1.attentions.0", _sdxl_transformer),
    "vae_wan": lambda: _workload("vae_wan"),
}

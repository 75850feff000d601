"""A linear layer and GELU: in the product's epilogue, or one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import config

from rocm_passes.fx.nodes import LOW_PRECISION
from rocm_passes.ops.linear_gelu import LINEAR_GELU, LinearGelu
from rocm_passes.ops.operator import Lowering
from rocm_passes.target import Target

aten = torch.ops.aten


def write_epilogue(b: Any, call: LinearGelu) -> Any:
    made = b(aten._addmm_activation.default, call.added, call.x, call.weight, use_gelu=True)
    return b(aten.reshape.default, made, list(call.shape))


def refuses_epilogue(call: LinearGelu, target: Target) -> str | None:
    # aten._addmm_activation computes the one form on a GPU and the other on a CPU.
    computed = "tanh" if target.is_gpu else "none"
    if call.approximate != computed:
        where = "a GPU" if target.is_gpu else "a CPU"
        return (
            f"gelu(approximate={call.approximate!r}): on {where} the epilogue computes {computed!r}"
        )
    if config.max_autotune or config.max_autotune_gemm:
        return "max_autotune: Inductor fuses GELU into the product that it generates"
    return None


def note_epilogue(call: LinearGelu, target: Target) -> str | None:
    if call.x.dtype in LOW_PRECISION:
        return "it rounds once, after GELU, where the graph rounds the product too"
    return None


def write_addmm(b: Any, call: LinearGelu) -> Any:
    made = b(aten.addmm.default, call.added, call.x, call.weight)
    shaped = b(aten.reshape.default, made, list(call.shape))
    return b(aten.gelu.default, shaped, approximate=call.approximate)


EPILOGUE = LINEAR_GELU.register(
    Lowering("epilogue", refuses=refuses_epilogue, note=note_epilogue, write=write_epilogue)
)
ADDMM = LINEAR_GELU.register(Lowering("addmm", write=write_addmm))

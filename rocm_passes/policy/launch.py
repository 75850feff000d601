"""Who launches our Triton kernels where the option `launch` is "auto".

Inductor loads and launches its own kernels through a static launcher, without Triton: cheaper for
the host at each launch, and at the start from warm caches. Kernels of a user, ours among them, go
through it where an option of Inductor's says so. That holds for all kernels of a graph: one that
has Triton kernels of the user's own is left as torch would have it.

NVIDIA alone: on ROCm PyTorch skips its own test of this path (pytorch issue 168668).
"""

from __future__ import annotations

from torch import fx
from torch._inductor import config as inductor_config

from rocm_passes.options import STATIC_LAUNCH
from rocm_passes.target import Target

#: How a call of a user's Triton kernel is named in Dynamo's graph.
USER_KERNEL = "triton_kernel_wrapper"


def launched_by(asked: str, target: Target, gm: fx.GraphModule) -> str:
    """ "static", "inductor" or "python". asked: the option `launch`."""
    if asked != "auto":
        return asked
    able = target.vendor == "nvidia" and STATIC_LAUNCH in inductor_config.get_config_copy()
    return "static" if able and not has_user_kernels(gm) else "inductor"


def has_user_kernels(gm: fx.GraphModule) -> bool:
    """Does the graph, or a graph within it, call Triton kernels of the user's own?"""
    return any(
        node.op == "call_function" and USER_KERNEL in getattr(node.target, "__name__", "")
        for module in gm.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    )

"""Inductor's generated code for an AMD GPU that is not here.

Graphs are traced on fake tensors of a stubbed device and lowered as Inductor lowers them; the code
is read, and the kernels in it are compiled for the architecture, but nothing runs. It stands on
torch's private parts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor
from torch._inductor.codecache import PyCodeCache
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.triton_heuristics import StaticTritonCompileResult
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rocm_passes import registry  # noqa: F401  (defines the operators and registers their lowerings)
from rocm_passes.bench import faked_amd
from rocm_passes.kernels.triton import launched, launcher
from tests import forked

ARCH, WARP = "gfx942", 64


def device() -> AbstractContextManager[None]:
    """torch, Inductor and Triton believe in one gfx942."""
    return faked_amd.device(ARCH)


def code_for(
    function: Callable[..., Any],
    *metas: tuple[tuple[int, ...], torch.dtype],
    launched_by: str = "inductor",
) -> str:
    """Inductor's code for `function` over contiguous tensors of these shapes and dtypes; call in
    `device()`.
    """
    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    with fake_mode:
        inputs = [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in metas]
        graph = make_fx(function, decomposition_table=select_decomp_table())(*inputs)
    launcher.mark(graph.graph, launched_by)
    with V.set_fake_mode(fake_mode):
        lowering = GraphLowering(
            graph, example_inputs=inputs, is_inference=True, shape_env=fake_mode.shape_env
        )
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            code = lowering.codegen()[0]
    return str(getattr(code, "value", code))


def call_of(code: str) -> str:
    """The body of the generated `call`."""
    return code[code.index("def call(") :].split("\nrunner")[0]


KERNEL = r"(\w+) = async_compile\.triton\('\w+', \'\'\'\n(.*?)\n\'\'\', device_str"


def compiled_kernels(code: str) -> dict[str, str]:
    """Every kernel of ours in the code, compiled for the architecture: its assembly."""
    found = {}
    for name, source in re.findall(KERNEL, code, re.S):
        if "custom_kernel=True" in source:
            kernel = getattr(PyCodeCache.load(source), name.rpartition("_")[0])
            (config,) = kernel.configs
            meta = kernel.triton_meta
            source_of = ASTSource(
                kernel.fn,
                {n: meta["signature"][n] for n in kernel.fn.arg_names},
                meta["constants"],
                dict(meta["configs"][0]),
            )
            target = GPUTarget("hip", ARCH, WARP)
            found[name] = triton.compile(
                source_of, target=target, options={"num_warps": config.num_warps}
            )
    return {name: kernel.asm["amdgcn"] for name, kernel in found.items()}


def statically_launchable(code: str) -> list[bool]:
    """Of each kernel of ours, as a process of Inductor's that compiles it would find."""
    found = []
    for name, source in re.findall(KERNEL, code, re.S):
        if "custom_kernel=True" in source:
            kernel = getattr(PyCodeCache.load(source), name.rpartition("_")[0])
            made = kernel._precompile_config(kernel.configs[0])
            found.append(isinstance(made, StaticTritonCompileResult))
    return found


ops, aten = torch.ops.rocm_passes, torch.ops.aten
BF16, F32 = torch.bfloat16, torch.float32
Meta = tuple[tuple[int, ...], torch.dtype]


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return (
        ops.rms_norm(
            torch.relu(x), weight, None, None, 1e-6, 0.0, None, None, BF16, lowering="triton"
        )
        + 1
    )


def _by_a_library(x: Tensor, weight: Tensor) -> Tensor:
    return ops.rms_norm(x, weight, None, None, 1e-6, 0.0, None, None, BF16, "aiter")


def _slice_of_a_projection(x: Tensor, weight: Tensor) -> Tensor:
    return ops.rms_norm(
        aten.slice.Tensor(x * 2, 2, 1024, 2048),
        weight,
        None,
        None,
        1e-6,
        0.0,
        None,
        None,
        BF16,
        lowering="triton",
    )


def _chain(x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Any:
    return ops.fused_norm.of2(
        x, branch, gate, False, None, 0.0, None, 0.0, BF16, True, "layer", None, None, None, 1e-6,
        0.0, None,
        None, scale, shift, None, None, 1.0, 1, BF16, True, lowering="triton",
    )  # fmt: skip


def _rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return ops.rotary_pair(q, k, cos, sin, True, 128, False, None, BF16, "triton")


def _twice(x: Tensor, weight: Tensor) -> Tensor:
    """The second launch is like the first, which Inductor has analysed."""
    return _norm(_norm(x, weight), weight)


def _norm_and_rotation(
    q: Tensor, k: Tensor, weight: Tensor, cos: Tensor, sin: Tensor
) -> list[Tensor]:
    return ops.qk_norm_rotary(
        [q], [k], [weight], [weight], [cos], [sin], [0], [1e-6], [1e-6], False, True, True, True,
        128, False,
        BF16, "triton",
    )  # fmt: skip


def _channel_norm(x: Tensor, gamma: Tensor) -> Tensor:
    return ops.channel_norm(
        x, None, gamma, None, "l2", 1e-12, 9.8, True, None, True, BF16, lowering="triton"
    )


def _joined(front: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """A video behind frames that are contiguous, as a cache's are; both norms' results are
    channels-last.
    """
    last = aten.permute.default(x, [0, 4, 1, 2, 3])
    y = ops.channel_norm(
        last,
        None,
        gamma,
        None,
        "l2",
        1e-12,
        9.8,
        True,
        None,
        True,
        BF16,
        front,
        0,
        lowering="triton",
    )
    z = ops.group_norm(
        last, None, 32, None, None, 1e-6, True, None, None, True, BF16, None, front, 0, "triton"
    )
    return aten.add.Tensor(y, z)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.group_norm(
        x, None, 32, weight, bias, 1e-6, True, None, None, True, BF16, lowering="triton"
    )


def _pad(x: Tensor) -> Tensor:
    return ops.pad(torch.relu(x), [1, 1, 1, 1, 2, 0], "replicate", [2, 2, 2], 1, True, "triton")


def _turned(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    last = aten.permute.default(x, [0, 3, 1, 2])
    y = ops.group_norm(
        last, None, 32, weight, bias, 1e-6, True, None, None, True, BF16, lowering="triton"
    )
    return aten.clone.default(y, memory_format=torch.contiguous_format)


def _group_norm_and_pad(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = [1, 1, 1, 1, 2, 0]
    return ops.group_norm_pad(
        torch.relu(x),
        None,
        32,
        weight,
        bias,
        1e-6,
        True,
        True,
        BF16,
        padding,
        "replicate",
        True,
        "triton",
    )


def _convolution(x: Tensor, front: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Channels-last inputs, as a graph of that memory format has them."""
    x, front, weight = (aten.permute.default(t, [0, 4, 1, 2, 3]) for t in (x, front, weight))
    y = ops.implicit_gemm_conv(
        torch.relu(x), front, weight, bias, [0, 0], [1, 1, 1], [1, 1], [1, 1, 1], [1, 1],
        lowering="triton",
    )  # fmt: skip
    return y + 1


BY_PYTHON, STATICALLY = "by python", "statically"
BY = {BY_PYTHON: "python", STATICALLY: "static"}
STREAM: Meta = ((1, 4608, 3072), BF16)
TABLE: Meta = ((1, 1, 3072), BF16)
HEADS: Meta = ((1, 4608, 24, 128), BF16)
ANGLES: Meta = ((1, 4608, 1, 64), F32)
CASES: dict[str, tuple[Any, ...]] = {
    "norm": (_norm, STREAM, ((3072,), BF16)),
    "twice": (_twice, STREAM, ((3072,), BF16)),
    BY_PYTHON: (_norm, STREAM, ((3072,), BF16)),
    STATICALLY: (_twice, STREAM, ((3072,), BF16)),
    "by a library": (_by_a_library, STREAM, ((3072,), BF16)),
    "slice": (_slice_of_a_projection, STREAM, ((1024,), BF16)),
    "chain": (_chain, STREAM, STREAM, TABLE, TABLE, TABLE),
    "rotation": (_rotation, HEADS, HEADS, ANGLES, ANGLES),
    "norm and rotation": (_norm_and_rotation, HEADS, HEADS, ((128,), BF16), ANGLES, ANGLES),
    "channel norm": (_channel_norm, ((1, 96, 4, 60, 104), BF16), ((96, 1, 1, 1), BF16)),
    "group norm": (_group_norm, ((1, 128, 256, 256), BF16), ((128,), BF16), ((128,), BF16)),
    "turned": (_turned, ((1, 256, 256, 128), BF16), ((128,), BF16), ((128,), BF16)),
    "joined": (
        _joined,
        ((1, 96, 2, 60, 104), BF16),
        ((1, 4, 60, 104, 96), BF16),
        ((96, 1, 1, 1), BF16),
    ),
    "convolution": (
        _convolution,
        ((1, 4, 120, 208, 96), BF16),
        ((1, 2, 120, 208, 96), BF16),
        ((96, 3, 3, 3, 96), BF16),
        ((96,), BF16),
    ),
    "pad": (_pad, ((1, 256, 5, 32, 32), BF16)),
    "group norm and pad": (
        _group_norm_and_pad,
        ((1, 128, 5, 64, 64), BF16),
        ((128,), BF16),
        ((128,), BF16),
    ),
}


def answers_of(module: str, *words: str) -> Any:
    """What `python -m module words` prints as JSON: in a process of its own, where torch believes
    in a GPU and no kernel is interpreted.
    """
    done = forked.run([sys.executable, "-m", module, *words], env=forked.without_interpreter())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    """Print, as JSON, the generated call, each kernel's assembly and the noted launches of the
    cases that are named.
    """
    with device():
        answers = {}
        for name in sys.argv[1:]:
            with launched.collected() as noted:
                code = code_for(*CASES[name], launched_by=BY.get(name, "inductor"))
            answers[name] = {
                "call": call_of(code),
                "kernels": compiled_kernels(code),
                "noted": [(each.kernel, each.operator) for each in noted],
                "static": statically_launchable(code),
            }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

"""Inductor's code for a small graph, from within a compile: generated, loaded, and read.

Kernels are compiled by Inductor's own pool of processes; several codes are loaded in threads, so
that their kernels compile side by side.
"""

# mypy: allow-untyped-calls
# (Inductor's internals are partly untyped.)

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.codecache import PyCodeCache
from torch._inductor.debug import DebugContext
from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import _disable_current_modes

#: Runs compiled code: takes its arguments in a list, which it empties.
Compiled = Callable[[list[Any]], Any]
#: No pass of a user's or of this package runs on the small graph, and nothing is tuned inside.
PATCH: dict[str, Any] = {
    "post_grad_custom_pre_pass": None,
    "post_grad_custom_post_pass": None,
    "max_autotune": False,
    "max_autotune_gemm": False,
    "benchmark_fusion": False,
    "cpp_wrapper": False,
}
#: A call of a kernel in generated code: Triton's, C++'s, or a library's.
_LAUNCH = re.compile(
    r"\b\w+\.run\(|\bcpp_fused\w*\(|\bextern_kernels\.\w+\(|\btorch\.ops(?:\.\w+){2,3}\("
)


@dataclass(frozen=True)
class Code:
    """text: a Python module with a function `call`. launches: kernels and library calls of one
    call.
    """

    text: str
    constants: Mapping[str, Any]
    launches: int
    lowering: GraphLowering

    @property
    def bytes(self) -> int:
        """What one call's kernels read and write."""
        with V.set_graph_handler(self.lowering):
            return sum(map(_moved, self.lowering.scheduler.nodes))


def generated(gm: fx.GraphModule) -> Code:
    """Inductor's code for an inference graph whose nodes have values. The graph is changed."""
    inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    mode = next((i.fake_mode for i in inputs if hasattr(i, "fake_mode")), None)
    mode = mode or FakeTensorMode(shape_env=ShapeEnv())
    shown = V.set_debug_handler(DebugContext())
    patched = inductor_config.patch(PATCH)
    with _disable_current_modes(), patched, V.set_fake_mode(mode), shown:
        view_to_reshape(gm)
        post_grad_passes(gm, is_inference=True)
        lowering = GraphLowering(
            gm, example_inputs=inputs, is_inference=True, shape_env=mode.shape_env
        )
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            code = lowering.codegen()[0]
    text = str(getattr(code, "value", code))
    return Code(text, dict(lowering.constants), _launches(text), lowering)


def _moved(node: Any) -> int:
    """Bytes that a scheduler's node reads and writes. A kernel of this package reads or writes each
    of its arguments once; to Inductor it also reads what it writes. An allocation under a new name
    (`Written` of kernels/triton/inductor.py) moves nothing.
    """
    if getattr(node.node, "moves_nothing", False):
        return 0
    if not isinstance(node.node, ir.UserDefinedTritonKernel):
        return int(node.get_read_write_buffers_sizes())
    tensors = [a for a in node.node.inputs if isinstance(a, ir.IRNode)]
    sizes = {a.get_name(): (a.get_numel(), a.get_dtype().itemsize) for a in tensors}
    return sum(int(count) * size for count, size in sizes.values())


def loaded(codes: Mapping[str, Code]) -> tuple[dict[str, Compiled], dict[str, str]]:
    """Each code, compiled; and why the others could not be."""
    compiled: dict[str, Compiled] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, len(codes))) as pool:
        jobs = {
            name: pool.submit(contextvars.copy_context().run, _load, code)
            for name, code in codes.items()
        }
        for name, job in jobs.items():
            try:
                compiled[name] = job.result()
            except Exception as error:
                failed[name] = f"its code does not compile: {type(error).__name__}: {error}"
    return compiled, failed


def _load(code: Code) -> Compiled:
    with V.set_graph_handler(code.lowering), torch.no_grad():
        key, path = PyCodeCache.write(code.text)
        module: Any = PyCodeCache.load_by_key_path(key, path, attrs=dict(code.constants))
    call: Compiled = module.call
    return call


def _launches(text: str) -> int:
    body = text[text.index("def call(") :].split("\nrunner")[0]
    return len(_LAUNCH.findall(body))

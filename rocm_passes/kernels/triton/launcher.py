"""Who launches the kernels of our operators: Inductor's generated code, or an operator call each.

Inductor's code does so through private names of torch (inductor.py says what each is for). A torch
that lacks one still runs: operators stay opaque calls, and the ledger says why.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Mapping

from torch import fx

from rocm_passes.kernels.triton.lowering import LAUNCHED_BY
from rocm_passes.ops.operator import OPERATORS

#: The private names, by module.
PRIVATE: Mapping[str, tuple[str, ...]] = {
    "torch._higher_order_ops.triton_kernel_wrap": (
        *("kernel_side_table", "triton_kernel_wrapper_mutation"),
    ),
    "torch._inductor.codegen.wrapper": (
        "PythonWrapperCodegen.codegen_exact_buffer_reuse",
        "PythonWrapperCodegen.define_kernel",
        "PythonWrapperCodegen.define_user_defined_triton_kernel",
        "PythonWrapperCodegen.make_buffer_free",
    ),
    "torch._inductor.ir": (
        *("ExternKernel.realize_input", "ExternKernelAlloc", "FixedLayout", "IRNode"),
        *("InputsKernel.unwrap_storage_for_input", "MutationOutput", "NoneLayout"),
        *("ReinterpretView", "TensorBox.create", "UserDefinedTritonKernel"),
        *("as_storage_and_layout", "is_storage_and_layout"),
    ),
    "torch._inductor.lowering": ("fallback_handler", "lowerings", "register_lowering"),
    "torch._inductor.runtime.hints": ("HeuristicType.TEMPLATE",),
    "torch._inductor.virtualized": ("V",),
}


@functools.cache
def lacking() -> str | None:
    """The private names that this torch does not have, or None."""
    return lacking_of(PRIVATE)


def lacking_of(names: Mapping[str, tuple[str, ...]]) -> str | None:
    absent = [f"{module}.{name}" for module, of in names.items() for name in of
              if not _is_there(module, name)]  # fmt: skip
    return ", ".join(absent) or None


def _is_there(module: str, name: str) -> bool:
    try:
        operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return True


def mark(graph: fx.Graph, by: str) -> None:
    """Have Inductor launch the kernels of our operators in the graph, or leave them opaque calls.

    by: the option `launch`.
    """
    if lacking() is None:
        # Imported here: where a name is lacking this module cannot be imported.
        from rocm_passes.kernels.triton import inductor

        inductor.register()
    for each in (overload for known in OPERATORS for overload in known.overloads.values()):
        for node in graph.find_nodes(op="call_function", target=each):
            node.meta[LAUNCHED_BY] = by

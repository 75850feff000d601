"""Who launches the kernels of our operators: Inductor's generated code, or an operator call each.

Before                                          After
    y = rocm_passes.rms_norm(x, ..., "triton")      the same node, its meta says launch="inductor"
    or "python"
"""

from __future__ import annotations

from torch import fx

from rocm_passes.ops.operator import OPERATORS
from rocm_passes.rewrite.work import WholeGraphPass, Work


def mark_launcher(graph: fx.Graph, by: str) -> None:
    """Have Inductor launch the kernels of our operators in the graph, or leave them opaque
    calls.
    """
    # Imported here: the passes of a CPU graph need none of Inductor's lowerings.
    from rocm_passes.kernels.triton import inductor

    inductor.register()
    for operator in OPERATORS:
        for overload in operator.overloads.values():
            for node in graph.find_nodes(op="call_function", target=overload):
                node.meta[inductor.LAUNCHED_BY] = by


def _applies(work: Work) -> bool:
    return work.on_gpu and work.rewritten > 0


def _run(work: Work) -> None:
    mark_launcher(work.graph, work.context.options.launch)


PASS = WholeGraphPass("mark_launcher", _run, _applies)

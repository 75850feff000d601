"""How Inductor's code reads the parts of a complex tensor: as a view, or by a call that copies.

Before                                          After
    f = rocm_passes.as_real(freqs)                  the same node; the ledger says which of
                                                    view_as_real(freqs) and as_real(freqs) runs
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.kernels.triton import launcher
from rocm_passes.ops.as_real import AS_REAL, why_copied
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_REASON = "they are the same numbers"


def read_parts(graph: fx.Graph) -> list[Change]:
    return [change_at(node, _said(node), _REASON) for node in n.calls(graph, AS_REAL.overload)]


def _said(node: fx.Node) -> str:
    lacking = launcher.lacking()
    why = why_copied(node) if lacking is None else f"this torch lacks {lacking}"
    how = "as a view" if why is None else f"by a call that copies them: {why}"
    return f"the parts of a complex tensor are read {how}"


def _applies(work: Work) -> bool:
    # On a CPU it is the operator's call, which needs no lowering.
    return work.on_gpu and bool(n.calls(work.graph, AS_REAL.overload))


def _run(work: Work) -> Sequence[Change]:
    return read_parts(work.graph)


PASS = WholeGraphPass("read_parts", _run, _applies)

"""Who launches the kernels of our operators: Inductor's generated code, or an operator call each.

Before                                          After
    y = rocm_passes.rms_norm(x, ..., "triton")      the same node, whose meta says
                                                    launch="inductor" or "python"
"""

from __future__ import annotations

from collections.abc import Sequence

from rocm_passes.kernels.triton import launcher
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work


def _applies(work: Work) -> bool:
    return work.on_gpu and work.rewritten > 0


def mark_launcher(work: Work) -> Sequence[Change]:
    """It changes no value and no call. Notes of the sites say why Python launches kernels."""
    launcher.mark(work.graph, work.context.options.launch)
    return ()


PASS = WholeGraphPass("mark_launcher", mark_launcher, _applies)

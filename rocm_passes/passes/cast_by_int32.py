"""Casts to int8 on a CPU go by int32, so that values beyond int8 become what they are in eager.

Before                                          After
    y = convert_element_type(x, int8)               i = convert_element_type(x, int32)
                                                    y = convert_element_type(i, int8)

C++ leaves such values open. ATen's code wraps, and the vectorised code that Inductor writes
saturates: a quantised model differs from eager. Strict numerics keep Inductor's bits. On a GPU, and
for other dtypes, nothing was found to differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.nodes import prims
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_REASON = (
    "values beyond int8 wrap as in eager, where Inductor's own code saturates; others are the same"
)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def casts(graph: fx.Graph) -> list[fx.Node]:
    """From floating point to int8."""
    return [
        node
        for node in n.calls(graph, prims.convert_element_type.default)
        if n.dtype(node) is torch.int8 and n.dtype(n.argument(node)) in _FLOATS
    ]


def _applies(work: Work) -> bool:
    strict = work.context.options.rewrite_numerics == "strict"
    return work.may_rewrite and not work.on_gpu and not strict and bool(casts(work.graph))


def _run(work: Work) -> Sequence[Change]:
    found = casts(work.graph)
    for node in found:
        with work.graph.inserting_before(node):
            b = Builder(work.graph, work.fake_mode, node)
            wide = b(prims.convert_element_type.default, n.argument(node), torch.int32)
        node.update_arg(0, wide)
    return [change_at(node, "a cast to int8 goes by int32", _REASON, "eager") for node in found]


PASS = WholeGraphPass("cast_by_int32", _run, _applies)

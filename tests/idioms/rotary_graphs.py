"""The post-grad graph of a function, traced without Dynamo and Inductor, and our pass over it: in
50 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._inductor.compile_fx import view_to_reshape
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import remove_noop_ops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from rocm_passes.graph_pass import GraphPass
from rocm_passes.options import Options
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.target import Target

ROTARY = ("qk_norm_rotary", "rotary_pair", "rotary")


@dataclass
class Passed:
    """result: of the rewritten graph. before: of the graph as it was traced, run node by node."""

    result: list[Tensor]
    before: list[Tensor]
    sites: list[Entry]
    graph: fx.Graph

    def outcomes(self) -> list[tuple[str, str]]:
        return [(e.idiom, e.outcome) for e in self.sites]


def traced(fn: Callable[..., Any], *args: Tensor, dynamic: Collection[int] = ()) -> fx.GraphModule:
    """fn as Inductor's post-grad passes see it: functional, decomposed, views as reshapes.

    dynamic: the sizes of the arguments' dims that are symbolic.
    """

    def flat(*args: Tensor) -> list[Tensor]:
        return pytree.tree_leaves(torch.func.functionalize(fn)(*args))

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [_fake(mode, x, i, dynamic) for i, x in enumerate(args)]
    with torch.no_grad(), mode:
        gm = make_fx(flat, decomposition_table=select_decomp_table())(*fakes)
    view_to_reshape(gm)
    gm.graph.eliminate_dead_code()
    remove_noop_ops(gm.graph)
    gm.recompile()
    return gm


def _fake(mode: FakeTensorMode, x: Tensor, number: int, dynamic: Collection[int]) -> Tensor:
    sizes = [DimDynamic.DUCK if size in dynamic else DimDynamic.STATIC for size in x.shape]
    context = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * x.dim())
    return mode.from_tensor(x, symbolic_context=context, source=ConstantSource(f"input_{number}"))


def passed(
    fn: Callable[..., Any],
    *args: Tensor,
    idioms: Sequence[str] = ROTARY,
    dynamic: Collection[int] = (),
    options: Mapping[str, Any] | None = None,
) -> Passed:
    gm = traced(fn, *args, dynamic=dynamic)
    before = list(gm(*args))
    ledgers: list[Ledger] = []
    given = Options(**{"select": "always", "idioms": tuple(idioms), **(options or {})})
    # The reference and not the interpreted kernel: what is tested is what was read off the graph.
    target = replace(Target.of_device("cpu"), interpreted=False)
    GraphPass(given, target, ledgers.append)(gm.graph)
    gm.graph.lint()
    gm.recompile()
    return Passed(list(gm(*args)), before, [e for g in ledgers for e in g.entries], gm.graph)

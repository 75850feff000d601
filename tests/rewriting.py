"""Compile a function with the backend and keep what a test wants to look at."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

import rocm_passes.backend as backend
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.target import triton_is_interpreted
from tests.without_codegen import codegen_if_asked, without_codegen

#: What takes a CPU graph's site that a Triton kernel of ours could take: the kernel, where Triton's
#: interpreter is on (it is wherever there is no GPU), else the operator's reference.
ON_CPU = "triton" if triton_is_interpreted() else "reference"


@dataclass
class Rewritten:
    """result: what the compiled callable returned. before, after: the post-grad graphs round our
    pass.
    """

    result: Any = None
    ledgers: list[Ledger] = field(default_factory=list)
    before: list[fx.Graph] = field(default_factory=list)
    after: list[fx.Graph] = field(default_factory=list)

    @property
    def sites(self) -> list[Entry]:
        return [e for g in self.ledgers for e in g.entries]

    def targets(self, which: str = "after") -> list[Any]:
        graphs = self.after if which == "after" else self.before
        return [n.target for g in graphs for n in g.nodes if n.op == "call_function"]

    def only(self) -> Entry:
        assert len(self.sites) == 1, [str(e) for e in self.sites]
        return self.sites[0]


def rewrite(
    fn: Callable[..., Any],
    *args: Any,
    options: Mapping[str, Any] | None = None,
    dynamic: bool | None = None,
    grad: bool = False,
    fullgraph: bool = True,
    codegen: bool | None = None,
    runs: bool = True,
    **kwargs: Any,
) -> Rewritten:
    """Compile past every cache, with select="always" by default, and call the result once.

    codegen: whether Inductor generates code, which takes some 20 s a graph in C++. Otherwise the
    rewritten graph is run as it is in under 1 s, with the same ledger and the same operators.
    The default is False, and True under pytest's option --codegen.
    runs: False where the graph may have operators of another device, which do not run here.
    """
    seen = Rewritten()
    generating = {None: codegen_if_asked, False: without_codegen, True: nullcontext}[codegen]
    torch._dynamo.reset()
    compiled = torch.compile(
        fn,
        backend=functools.partial(
            recording, seen, options={"select": "always", **(options or {})}, caches=False
        ),
        dynamic=dynamic,
        fullgraph=fullgraph,
    )
    unrunnable = nullcontext() if runs else suppress(NotImplementedError)
    with torch.set_grad_enabled(grad), generating(), unrunnable:
        seen.result = compiled(*args, **kwargs)
    return seen


def recording(seen: Rewritten, gm: fx.GraphModule, inputs: Any, **kwargs: Any) -> Any:
    class Recording(backend.GraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            seen.before.append(copied(graph))
            super().__call__(graph)
            graph.lint()
            seen.after.append(copied(graph))

    original, backend.GraphPass = backend.GraphPass, Recording
    try:
        return backend.rocm_diffusion(gm, inputs, listener=seen.ledgers.append, **kwargs)
    finally:
        backend.GraphPass = original


def copied(graph: fx.Graph) -> fx.Graph:
    made = fx.Graph()
    output = made.graph_copy(graph, {})
    made.output(output)
    for old, new in zip(graph.nodes, made.nodes, strict=True):
        new.meta = copy.copy(old.meta)
    return made

"""Models of the zoo as Dynamo traced them: once a process, for every test that compiles one whole.

Dynamo takes most of the time of a compile without code generation, and no option of the backend
changes what it does. Tests that vary the backend's options compile copies of these graphs.
AOTAutograd takes most of the rest: tests of what the pass decides run it over copies of the
post-grad graphs.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import detect_fake_mode
from torch._guards import TracingContext, tracing
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.utils._python_dispatch import _disable_current_modes

import rocm_passes.backend as backends
import rocm_passes.target as targets
from rocm_passes.graph_pass import GraphPass
from rocm_passes.options import parse
from rocm_passes.report.ledger import Ledger
from rocm_passes.target import Target
from tests.rewriting import Rewritten, copied
from tests.without_codegen import without_codegen

from . import case

Backend = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]
T = TypeVar("T")


def _once(make: Callable[[str, torch.dtype], T]) -> Callable[..., T]:
    """Kept by model and dtype, bfloat16 by default."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def found(name: str, dtype: torch.dtype = torch.bfloat16) -> T:
        return kept(name, dtype)

    return found


@_once
def built(name: str, dtype: torch.dtype) -> nn.Module:
    """The model, for tests that leave it as it is."""
    return case(name).build(dtype)


@_once
def live(name: str, dtype: torch.dtype) -> Counter[str]:
    return case(name).live(built(name, dtype))


@_once
def results(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Of one eager call."""
    return case(name).run(built(name, dtype))


@_once
def exact(name: str, dtype: torch.dtype) -> list[Tensor]:
    """The same call in float64."""
    return case(name).reference(built(name, dtype))


@dataclass
class Traced:
    """graphs: as the backend was given them, each with its fake inputs. executed: the number of
    every graph that one call ran. values: the real inputs of the last.
    """

    graphs: list[tuple[fx.GraphModule, list[Any]]] = field(default_factory=list)
    executed: list[int] = field(default_factory=list)
    values: tuple[Any, ...] = ()

    def compiled(self, backend: Backend) -> list[Callable[..., Any]]:
        """What the backend makes of a copy of each graph."""
        return [compile_alone(backend, *each) for each in self.graphs]


@_once
def traced(name: str, dtype: torch.dtype) -> Traced:
    zoo, model = case(name), built(name, dtype)
    args, kwargs = zoo.inputs(model)
    if zoo.warm_up:
        zoo.run(model)
    seen = Traced()
    torch._dynamo.reset()
    # fullgraph: Dynamo then captures sizes that values decide, such as Mochi's valid text tokens.
    compiled = torch.compile(
        zoo.function(model), backend=functools.partial(_keep, seen), fullgraph=zoo.one_graph
    )
    with torch.no_grad():
        compiled(*args, **kwargs)
    torch._dynamo.reset()
    assert zoo.one_graph == (len(seen.graphs) == 1), len(seen.graphs)
    return seen


def _keep(seen: Traced, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    number = len(seen.graphs)
    fakes = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
    seen.graphs.append((_copied(gm), fakes))

    def run(*values: Any) -> Any:
        seen.executed.append(number)
        seen.values = values
        return gm.forward(*values)

    return run


@dataclass
class PostGrad:
    """A graph as our pass was given it, and for which device."""

    graph: fx.GraphModule
    target: Target

    def passed(
        self, options: dict[str, Any], target: Target | None = None
    ) -> tuple[Ledger, fx.GraphModule]:
        """What the pass says of a copy, and the copy behind it. target: in place of the CPU."""
        settings, _ = parse(options, None)
        ledgers: list[Ledger] = []
        gm = _copied(self.graph)
        own = replace(self.target, interpreted=targets.triton_is_interpreted())
        with _disable_current_modes():
            GraphPass(settings, target or own, ledgers.append)(gm.graph)
        gm.graph.lint()
        return ledgers[0], gm


class _Reached(BaseException):
    """Ends a compile at our pass."""


@_once
def post_grad(name: str, dtype: torch.dtype) -> list[PostGrad]:
    """By graph of `traced`. The backend's own way to them, with default options.

    It ends there: Inductor's passes behind ours take a sixth of a compile without code generation.
    """
    kept: list[PostGrad] = []

    class Keeping(GraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            kept.append(PostGrad(_copied(graph.owning_module), self.target))
            raise _Reached

    backend = functools.partial(backends.rocm_diffusion, caches=False)
    with without_codegen(), mock.patch.object(backends, "GraphPass", Keeping):
        for each in traced(name, dtype).graphs:
            with suppress(_Reached):
                compile_alone(backend, *each)
    assert len(kept) == len(traced(name, dtype).graphs)
    return kept


@functools.cache
def ledgers(name: str, dtype: torch.dtype, **options: Any) -> list[Ledger]:
    """The ledger of every graph that one call runs, as often as it runs it."""
    found = [each.passed(options)[0] for each in post_grad(name, dtype)]
    return [found[number] for number in traced(name, dtype).executed]


def passed(
    name: str, *, runs: bool = False, target: Target | None = None, **options: Any
) -> Rewritten:
    """The graphs before and behind the pass, and its ledgers.

    runs: whether the rewritten graph is run, on the traced call's inputs. The model must be one
    graph.
    """
    seen = Rewritten()
    for each in post_grad(name):
        ledger, after = each.passed(options, target)
        seen.ledgers.append(ledger)
        seen.before.append(each.graph.graph)
        seen.after.append(after.graph)
    if runs:
        assert len(seen.after) == 1
        after.recompile()
        with torch.no_grad():
            seen.result = after(*traced(name).values)
    return seen


def _copied(gm: fx.GraphModule) -> fx.GraphModule:
    graph = copied(gm.graph)
    for node in graph.nodes:
        node.meta.pop("grapharg", None)
    # Its Python is written when it is called, as few copies are.
    with _use_lazy_graph_module(True):
        made = _make_graph_module(gm, graph)
    made.meta = dict(gm.meta)
    return made


def compile_alone(backend: Backend, gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """What the backend makes of a copy of the graph, called as Dynamo would call it."""
    with tracing(TracingContext(detect_fake_mode(inputs))), torch.no_grad():
        return backend(_copied(gm), list(inputs))

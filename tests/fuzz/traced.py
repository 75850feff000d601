"""One trace of a function to the graph that our pass is given, and runs of that graph rewritten in
several ways.

Inductor's way to a post-grad graph, without Dynamo: AOTAutograd with our decomposition table, the
pass over complex numbers, views as reshapes. It is made once a program; each setting rewrites a
copy. A decomposition behind the pass is traced once a process and signature.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_function
from torch._inductor import compile_fx
from torch.fx._lazy_graph_module import _LazyGraphModule, _use_lazy_graph_module
from torch.utils._python_dispatch import _disable_current_modes

from rocm_passes.fx import decompositions, strides
from rocm_passes.fx.builder import outputs
from rocm_passes.fx.nodes import aten
from rocm_passes.graph_pass import GraphPass
from rocm_passes.options import Options
from rocm_passes.passes.complex_to_real import ComplexToReal
from rocm_passes.report.ledger import Ledger
from rocm_passes.target import Target

_TABLES: dict[tuple[str, ...], Any] = {}


def _raise(reason: str) -> None:
    raise AssertionError(reason)


class Traced:
    """The program's graph, and a callable that runs the copy which was last rewritten."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self._original: fx.GraphModule | None = None
        self._now: fx.GraphModule | None = None
        keep = GraphPass(Options(), target_named("cpu")).preserved
        if keep not in _TABLES:
            _TABLES[keep] = decompositions.table_preserving(keep)
        self._call = aot_function(
            function,
            fw_compiler=self._compiled,
            decompositions=_TABLES[keep],
            keep_inference_input_mutations=True,
        )
        self._inputs = inputs
        self._lays_outputs = False

    def _compiled(self, gm: fx.GraphModule, inputs: Any) -> Any:
        with _disable_current_modes():
            compile_fx.view_to_reshape(gm)
            ComplexToReal(lambda: "fuzz", lambda changes: None, _raise)(gm.graph)
            gm.graph.eliminate_dead_code()
        self._original = self._now = gm

        def run(args: list[Any]) -> Any:
            assert self._now is not None and self._original is not None
            found = AsInductorLays(self._now, garbage_collect_values=False).run(
                *args, enable_io_processing=False
            )
            if not self._lays_outputs:
                return found
            promised = (_value(o) for o in outputs(self._original.graph))
            return [_strided_like(f, p) for f, p in zip(found, promised, strict=True)]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def trace(self) -> None:
        """Run once as it is, to have the graph."""
        with _use_lazy_graph_module(True):
            self._call(*self._inputs)

    def rewrite(self, options: Options, target: Target, visible: bool = True) -> Ledger:
        """Rewrite a copy of the graph; calls run it from now on.

        visible: the outputs are a user's, whose strides Inductor sees to; else a control flow's
        body.
        """
        assert self._original is not None
        ledgers: list[Ledger] = []
        gm = copied(self._original)
        if visible:
            gm.graph.output_node().meta["user_visible_output_idxs"] = list(
                range(len(outputs(gm.graph)))
            )
        with _disable_current_modes(), decompositions_traced_once():
            GraphPass(options, target, ledgers.append)(gm.graph)
        gm.graph.lint()
        self._now = gm
        return ledgers[0]

    def changed_silently(self, ledger: Ledger) -> str:
        """How the graph that was last rewritten differs from the unfused one, where its ledger has
        neither a rewritten site nor a change; else "".
        """
        if ledger.changes or any(entry.outcome == "rewritten" for entry in ledger.entries):
            return ""
        now = self._now
        assert now is not None
        self.leave()
        assert self._now is not None
        unfused, self._now = self._now, now
        more, fewer = _calls(now) - _calls(unfused), _calls(unfused) - _calls(now)
        return "".join(f"; {word} {sorted(found)}" for word, found in
                       (("more", more), ("fewer", fewer)) if found)  # fmt: skip

    def leave(self) -> None:
        """Calls run the unfused graph, ATen node by node."""
        self.rewrite(Options(select="off"), target_named("cpu"))

    def leave_whole(self) -> None:
        """Calls run the graph as it was traced: LayerNorm, GroupNorm and SiLU are ATen's own
        operators.
        """
        self._now = self._original

    @contextmanager
    def laid_as_promised(self) -> Iterator[None]:
        """Within it the outputs lie as the traced graph says: a branch of control flow gives them
        so. Not their values: some elements of an expanded tensor are the same one.
        """
        self._lays_outputs = True
        try:
            yield
        finally:
            self._lays_outputs = False

    def __call__(self, *inputs: Tensor) -> Any:
        return self._call(*inputs)


def _calls(gm: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_function")


#: On a CPU ATen gives these in the input's memory format, and promises them contiguous.
LAID_OTHERWISE = frozenset(
    {
        *(aten.replication_pad1d.default, aten.replication_pad2d.default),
        *(aten.replication_pad3d.default, aten.reflection_pad1d.default),
        *(aten.reflection_pad2d.default, aten.reflection_pad3d.default),
    }
)


class AsInductorLays(fx.Interpreter):
    """Runs a graph node by node. Who reads by strides finds those that the graph's values promise.

    Inductor's lowerings of these readers see to it. For one that reads a view of memory with gaps
    nothing is done. A pad lies as promised from the start, as Inductor's code writes it: the bits
    of a convolution depend on how its input lies.
    """

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and strides.sees_strides(n):
            for read in n.all_input_nodes:
                self.env[read] = _as_promised(self.env[read], read.meta.get("val"))
        found = super().run_node(n)
        return _as_promised(found, n.meta.get("val")) if n.target in LAID_OTHERWISE else found


def _value(output: Any) -> Any:
    return output.meta.get("val") if isinstance(output, fx.Node) else output


def _strided_like(found: Any, promised: Any) -> Any:
    if not isinstance(promised, Tensor) or found.stride() == promised.stride():
        return found
    return torch.empty_strided(found.shape, promised.stride(), dtype=found.dtype).zero_()


def _as_promised(found: Any, promised: Any) -> Any:
    if (
        not isinstance(found, Tensor)
        or not isinstance(promised, Tensor)
        or found.stride() == promised.stride()
    ):
        return found
    if found.shape != promised.shape or not strides.is_dense(promised):
        return found
    return torch.empty_strided(found.shape, promised.stride(), dtype=found.dtype).copy_(found)


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    made = graph.graph_copy(gm.graph, {})
    output = graph.output(made)
    for old, new in zip(gm.graph.nodes, graph.nodes, strict=True):
        new.meta = copy.copy(old.meta)
    output.meta = copy.copy(gm.graph.output_node().meta)
    # Lazy: the graph is interpreted, and no Python of it need be written.
    return _LazyGraphModule(gm, graph)


def target_named(name: str) -> Target:
    if name == "cpu":
        return Target("cpu", "", "CPU", torch.__version__, "3.7.1")
    vendor = "amd" if name.startswith("gfx") else "nvidia"
    return Target(vendor, name, "faked", torch.__version__, "3.7.1")


_TEMPLATES: dict[Any, fx.GraphModule] = {}


@contextmanager
def decompositions_traced_once() -> Iterator[None]:
    """The pass traces one decomposition a graph and signature; graphs of one process share them.

    They took a third of a rewrite's time. Inductor's options, on which the table depends, stay as
    they are.
    """
    original = decompositions._template

    def template(node: fx.Node, table: Any, _: Any, fake_mode: Any) -> fx.GraphModule:
        return original(node, table, _TEMPLATES, fake_mode)

    with mock.patch.object(decompositions, "_template", template):
        yield


@contextmanager
def kept_whole() -> Iterator[None]:
    """What no idiom takes stays ATen's own operator, so that its bits can be compared."""
    with mock.patch.object(decompositions, "decompose_preserved", lambda graph, keep: 0):
        yield


@contextmanager
def references_run() -> Iterator[None]:
    """Operators run their references: no Triton, and no interpreter of it."""
    no = lambda: False  # noqa: E731
    with (
        mock.patch("rocm_passes.ops.operator.triton_is_interpreted", no),
        mock.patch("rocm_passes.target.triton_is_interpreted", no),
    ):
        yield

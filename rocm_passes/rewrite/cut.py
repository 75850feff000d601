"""A site and its neighbours as a graph of their own, as the model has them or with a lowering."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._prims_common import make_channels_last_strides_for
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_arg

from rocm_passes.fx import decompositions
from rocm_passes.fx import nodes as n
from rocm_passes.fx.nodes import aten
from rocm_passes.kernels.triton import launcher
from rocm_passes.ops.operator import Lowering, Operator
from rocm_passes.rewrite.neighbourhood import Neighbourhood, NotCut, moved
from rocm_passes.rewrite.program import Input
from rocm_passes.rewrite.rewriter import Rewriter

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Cut:
    """inputs: of the tensors that enter, in the placeholders' order. constants: those of them whose
    values the graph holds.
    """

    nodes: Neighbourhood
    inputs: tuple[Input, ...]
    constants: Mapping[str, torch.Tensor]
    key: str
    device: torch.device
    preserved: tuple[str, ...]
    channels_last: bool

    @property
    def bytes(self) -> int:
        """What enters and leaves."""
        values = [node.meta["val"] for node in self.nodes.leaving()]
        written = sum(v.numel() * v.element_size() for v in values)
        return int(written) + sum(_bytes(i) for i in self.inputs)

    def original(self) -> fx.GraphModule:
        """The graph's own nodes, as Inductor gets them where nothing is rewritten."""
        return self._finished(*self._copied())

    def rewritten(
        self, lowering: Lowering[Any], operator: Operator[Any] | None, launch: str
    ) -> fx.GraphModule:
        """With the lowering in the site's place. Raises RewriteError."""
        made, mode, to = self._copied()
        Rewriter(made.graph, mode).apply(moved(self.nodes.site, to), lowering, operator)
        launcher.mark(made.graph, launch)
        return self._finished(made, mode, to)

    def plain(self) -> fx.GraphModule:
        """The graph's own nodes as they are, to be run one by one."""
        return self._copied()[0]

    def _copied(self) -> tuple[fx.GraphModule, FakeTensorMode, dict[fx.Node, fx.Node]]:
        """A copy with values of its own, whose layouts follow from what enters."""
        mode = FakeTensorMode(shape_env=ShapeEnv())
        made = fx.Graph()
        to: dict[fx.Node, fx.Node] = {}
        read = zip(self.nodes.distinct(), self.inputs, strict=True)
        first = {node: _placeholder(made, found, mode, self.device) for node, found in read}
        for node in self.nodes.entering():
            to[node] = first[self.nodes.sources.of(node)]
        for node in self.nodes.nodes:
            copy = to[node] = made.node_copy(node, to.__getitem__)
            copy.meta["val"] = _computed(copy, mode)
        made.output(tuple(to[node] for node in self.nodes.leaving()))
        return fx.GraphModule(torch.nn.Module(), made), mode, to

    def _finished(
        self, made: fx.GraphModule, mode: FakeTensorMode, to: Mapping[fx.Node, fx.Node]
    ) -> fx.GraphModule:
        """What leaves gets the strides that its readers expect; kept operators are decomposed."""
        graph = made.graph
        (output,) = graph.find_nodes(op="output")
        asked = []
        with graph.inserting_before(output):
            for node, found in zip(self.nodes.leaving(), output.args[0], strict=True):
                strides = self._strides(node, found)
                same = graph.call_function(inductor_prims.force_stride_order, (found, strides))
                same.meta["val"] = found.meta["val"]
                asked.append(same)
        output.args = (tuple(asked),)
        graph.eliminate_dead_code()
        decompositions.decompose_preserved(graph, self.preserved)
        graph.eliminate_dead_code()
        graph.lint()
        made.recompile()
        return made

    def _strides(self, node: fx.Node, found: fx.Node) -> list[int]:
        value = n.tensor(node)
        if self.channels_last and value.ndim in _FORMATS:
            return list(make_channels_last_strides_for(value.shape))
        return [int(stride) for stride in value.stride()]


def cut(nodes: Neighbourhood, idiom: str, preserved: Iterable[str], channels_last: bool) -> Cut:
    """channels_last: the graph's convolutions run in that layout. Raises NotCut."""
    if not nodes.leaving():
        raise NotCut("nothing outside reads it")
    inputs, constants = [], {}
    for at, node in enumerate(nodes.distinct()):
        found = _entering(node, f"x{at}", channels_last)
        inputs.append(found)
        if node.op == "get_attr":
            constants[found.name] = _attribute(node)
    devices = {node.meta["val"].device for node in nodes.leaving()}
    if len(devices) != 1:
        raise NotCut("it computes on several devices")
    key = _key(nodes, idiom, channels_last)
    return Cut(nodes, tuple(inputs), constants, key, devices.pop(), tuple(preserved), channels_last)


def _placeholder(
    graph: fx.Graph, entering: Input, mode: FakeTensorMode, device: torch.device
) -> fx.Node:
    made = graph.placeholder(entering.name)
    if entering.number is not None:
        made.meta["val"] = entering.number
        return made
    with mode:
        made.meta["val"] = torch.empty_strided(
            entering.shape, entering.strides, dtype=entering.dtype, device=device
        )
    return made


def _entering(node: fx.Node, name: str, channels_last: bool) -> Input:
    found = _attribute(node) if node.op == "get_attr" else node.meta.get("val")
    if not isinstance(found, torch.Tensor):
        raise NotCut(f"{node.name}, which enters it, is no tensor")
    if not all(isinstance(size, int) for size in (*found.shape, *found.stride())):
        raise NotCut("its sizes are symbolic")
    strides = tuple(found.stride())
    if channels_last and found.ndim in _FORMATS and node.op == "call_function":
        strides = tuple(make_channels_last_strides_for(found.shape))
    return Input(name, tuple(found.shape), strides, found.dtype)


def _attribute(node: fx.Node) -> torch.Tensor:
    found: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    if not isinstance(found, torch.Tensor):
        raise NotCut(f"the constant {node.target} is not a tensor")
    return found


def _computed(node: fx.Node, mode: FakeTensorMode) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda i: i.meta["val"])
    target: Any = node.target
    if target in (aten.view.default, aten._unsafe_view.default):
        # What lies otherwise than in the model may have no such view.
        node.target = target = aten.reshape.default
    with mode, torch.no_grad():
        return target(*args, **kwargs)


def _key(nodes: Neighbourhood, idiom: str, channels_last: bool) -> str:
    """Calls with the same key are the same computation on tensors that lie alike. Nodes are
    numbered from the site on, so that their order in the graph does not count.
    """
    inside = set(nodes.nodes)
    numbers: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in _in_order([*nodes.site.outputs, *nodes.nodes], inside):
        if node not in inside:
            source = nodes.sources.of(node)
            known = source in numbers
            numbers[node] = numbers.setdefault(source, f"%x{len(numbers)}")
            if not known:
                found = _entering(node, numbers[node], channels_last)
                lines.append(f"{numbers[node]}: {found.dtype} {found.shape} {found.strides}")
            continue
        args = map_arg((node.args, dict(node.kwargs)), numbers.__getitem__)
        numbers[node] = f"%{len(numbers)}"
        lines.append(f"{numbers[node]} = {node.target}{args}")
    lines.append(" ".join(sorted(numbers[node] for node in nodes.leaving())))
    lines.append(" ".join(sorted(numbers[node] for node in nodes.site.nodes)))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    result = n.tensor(nodes.site.outputs[0])
    kind = n.dtype_name(result.dtype)
    size = "x".join(map(str, result.shape))
    return f"{idiom} {kind} {size} in {len(nodes.nodes)} operators {digest}"


def _in_order(ends: Iterable[fx.Node], inside: Collection[fx.Node]) -> list[fx.Node]:
    """The ends and what they are computed from, each behind what it reads."""
    done: dict[fx.Node, None] = {}
    stack = [(node, False) for node in reversed(list(ends))]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready or node not in inside:
            done[node] = None
            continue
        stack.append((node, True))
        stack.extend((i, False) for i in reversed(node.all_input_nodes))
    return list(done)


def _bytes(entering: Input) -> int:
    sizes = zip(entering.shape, entering.strides, strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride else 1
    return count * entering.dtype.itemsize

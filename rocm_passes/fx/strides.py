"""Who sees how a tensor lies in memory, and how to give it the strides that they were promised.

Inductor computes by value: pointwise code, reductions and products do not see strides. A few
readers do, and read other elements where the strides change: as_strided, opaque operators, control
flow, and the outputs of a graph.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

from rocm_passes.fx import aliasing, chains
from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder, outputs, set_outputs
from rocm_passes.fx.nodes import aten

log = logging.getLogger(__name__)

_BY_STRIDES = frozenset(
    {
        aten.as_strided.default,
        aten.as_strided_copy.default,
        aten.as_strided_scatter.default,
        aten.sym_stride.int,
        aten.sym_storage_offset.default,
        aten.view.dtype,
        aten.view_as_complex.default,
    }
)
#: Operators of these namespaces are computed by value, but for those above. Ours take any strides.
_BY_VALUE = frozenset({"aten", "prims", "prim", "inductor_prims", "rocm_passes", "_operator"})


def same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Do two tensors of one shape lie alike? Strides of dims of size 0 or 1 do not count.

    Symbolic strides may be one number in two forms; dense tensors lie alike where their dims have
    one order.
    """
    alike = all(
        n.same_size(x, y) or n.known(size <= 1)
        for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True)
    )
    return alike or ((order := _dense_order(a)) is not None and order == _dense_order(b))


def _equal_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    return all(map(n.same_size, a.stride(), b.stride()))


def reader_of_strides(node: fx.Node) -> fx.Node | None:
    """The first reader, behind any views, that sees the strides of the node's value, or None."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if sees_strides(user):
                return user
            if user.target in n.VIEWS or _is_alias(user):
                stack.append(user)
    return None


def sees_strides(user: fx.Node) -> bool:
    if user.op == "output":  # `keep_output_strides` sees to those.
        return False
    if user.op != "call_function":
        return user.op != "get_attr"
    if user.target in _BY_STRIDES:
        return True
    if isinstance(user.target, torch._ops.OpOverload):
        return user.target.namespace not in _BY_VALUE
    return getattr(user.target, "__module__", "") not in _BY_VALUE


def _is_alias(user: fx.Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


#: Of each output: how it lies, and how that lies which it is a view of.
OutputStrides = list[tuple[torch.Tensor | None, chains.Root | None]]


def output_strides(graph: fx.Graph) -> OutputStrides:
    """How the outputs lie, for `keep_output_strides` after a change."""
    return [
        (n.value(o), chains.root(aliasing.viewed_by(o)) if isinstance(o, fx.Node) else None)
        for o in outputs(graph)
    ]


#: By a reader that sees strides: how the tensors lie that it reads, behind their views; by the
#: place among its inputs.
Promises = dict[fx.Node, dict[int, chains.Root]]


def promises(graph: fx.Graph) -> Promises:
    """What readers of strides were promised, for `keep_promises` after a change."""
    found = {}
    for node in graph.nodes:
        if node.op == "call_function" and sees_strides(node):
            # A graph's inputs lie as they do.
            read = {
                place: root
                for place, chain in enumerate(_chains(node))
                if chain[-1].op == "call_function" and (root := chains.root(chain)) is not None
            }
            if read:
                found[node] = read
    return found


def _chains(reader: fx.Node) -> list[list[fx.Node]]:
    """Each input of the reader, and what that is a view of, one behind the other."""
    inputs: list[fx.Node] = []
    map_arg((reader.args, reader.kwargs), inputs.append)
    return [_chain(node) for node in inputs]


def _chain(node: fx.Node) -> list[fx.Node]:
    chain = [node]
    while (node.target in n.VIEWS or _is_alias(node)) and node.all_input_nodes:
        node = node.all_input_nodes[0]
        chain.append(node)
    return chain


def keep_promises(graph: fx.Graph, before: Promises, fake_mode: FakeTensorMode) -> list[fx.Node]:
    """Give readers of strides what they were promised before a change. Returns the tensors that
    were not so.

    A tensor that was not rewritten changes its strides with those of what it is computed from.
    """
    left = [node for node in graph.nodes if node in before]
    if not left:
        return []
    _recompute_values(graph, fake_mode)
    changed = []
    for reader in left:
        for place, was in before[reader].items():
            now = was.now(_chains(reader)[place])
            if now is None or now.op != "call_function":
                continue
            alike = same_strides(n.tensor(now), was.value)
            if not alike and _lay_out(graph, now, was.value, fake_mode):
                changed.append(now)
    if changed:
        _recompute_values(graph, fake_mode)
    return changed


def keep_output_strides(
    graph: fx.Graph, before: OutputStrides, fake_mode: FakeTensorMode
) -> list[fx.Node]:
    """Give the outputs the strides that they had before a change. Returns what was not so.

    Inductor lays out what a user sees as eager does, each output by itself. It does not so for a
    branch or body of control flow, whose caller compares the strides, those of dims of size 1 too.
    """
    visible = graph.output_node().meta.get("user_visible_output_idxs")
    seen = range(len(before)) if visible is None else visible
    if visible is not None and not _shared(graph, seen):
        return []
    # What stands behind a change says still how it lay before.
    _recompute_values(graph, fake_mode)
    alike = same_strides if visible is not None else _equal_strides
    changed = _keep_strides_of_shared(graph, before, seen, fake_mode, alike)
    if visible is not None:
        return changed
    found = outputs(graph)
    made: dict[tuple[fx.Node, tuple[Any, ...]], fx.Node] = {}
    for place, (output, (was, _)) in enumerate(zip(found, before, strict=True)):
        now = n.value(output)
        if was is None or now is None or now.stride() == was.stride():
            continue
        # A tensor that is returned twice is one tensor still.
        once = output, tuple(was.stride())
        if once in made:
            found[place] = made[once]
            continue
        with graph.inserting_before(graph.output_node()):
            b = Builder(graph, fake_mode, output)
            forced = _placed(b, output, was)
        if forced is not None:
            found[place] = made[once] = forced
            changed.append(output)
    set_outputs(graph, found)
    return changed


def _keep_strides_of_shared(
    graph: fx.Graph,
    before: OutputStrides,
    seen: Iterable[int],
    fake_mode: FakeTensorMode,
    alike: Callable[[torch.Tensor, torch.Tensor], bool],
) -> list[fx.Node]:
    """Where outputs share memory, lay that out as it was: copied one by one they would not share
    it, nor where a view of one layout is a copy of another.
    """
    changed = []
    for place in _shared(graph, seen):
        output, (_, was) = outputs(graph)[place], before[place]
        root = None if was is None else was.now(aliasing.viewed_by(output))
        if was is None or root is None or alike(n.tensor(root), was.value):
            continue
        if _lay_out(graph, root, was.value, fake_mode):
            _recompute_values(graph, fake_mode)
            changed.append(root)
    return changed


def _shared(graph: fx.Graph, seen: Iterable[int]) -> list[int]:
    """The places of those outputs that share memory with another one of them."""
    found = outputs(graph)
    nodes = {place: found[place] for place in seen if isinstance(found[place], fx.Node)}
    roots = {place: aliasing.root_of(node) for place, node in nodes.items()}
    return [
        place
        for place, node in nodes.items()
        if any(roots[place] is roots[p] and o is not node for p, o in nodes.items())
    ]


def _recompute_values(graph: fx.Graph, fake_mode: FakeTensorMode) -> None:
    """Give each node the value that it has now; only strides can differ from those that it says.

    Inductor does so at the end of its passes (FakeTensorUpdater), and then runs control flow with
    what it finds.
    """
    for node in graph.nodes:
        # Control flow is Inductor's to run again. An operator with unbacked sizes would give new
        # symbols.
        plain = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
        if node.op != "call_function" or not plain or "unbacked_bindings" in node.meta:
            continue
        if not all("val" in i.meta for i in node.all_input_nodes):
            continue
        args, kwargs = map_arg((node.args, node.kwargs), lambda i: i.meta["val"])
        try:
            with fake_mode, torch.no_grad():
                node.meta["val"] = node.target(*args, **kwargs)
        except Exception:
            log.exception("rocm_passes: the strides of %s could not be computed again", node)


def restrided(b: Builder, made: fx.Node, like: torch.Tensor) -> fx.Node | None:
    """`made` with the strides of `like`, or None where they cannot be asked for (not known to be
    dense).
    """
    inner_first = _dense_order(like)
    if inner_first is None:
        return None
    if all(isinstance(s, int) for s in (*like.shape, *like.stride())):
        asked: fx.Node = b(inductor_prims.force_stride_order, made, list(like.stride()))
        return asked
    # Symbolic strides are products of sizes, which need no nodes where a copy makes them.
    outer_first = inner_first[::-1]
    back = [outer_first.index(dim) for dim in range(len(outer_first))]
    moved = b(aten.permute.default, made, outer_first)
    copied = b(aten.clone.default, moved, memory_format=torch.contiguous_format)
    placed: fx.Node = b(aten.permute.default, copied, back)
    return placed if same_strides(n.tensor(placed), like) else None


def _placed(b: Builder, made: fx.Node, like: torch.Tensor) -> fx.Node | None:
    """`made` with the strides of `like`: dense, with gaps, or expanded from one of these."""
    sizes = list(like.shape)
    repeated = [d for d, stride in enumerate(like.stride()) if sizes[d] != 1 and stride == 0]
    if not repeated or not all(isinstance(each, int) for each in (*sizes, *like.stride())):
        return restrided(b, made, like) or _with_gaps(b, made, like)
    if not like.numel():
        return None
    for dim in reversed(repeated):
        made, like = b(aten.select.int, made, dim, 0), like.select(dim, 0)
    once = restrided(b, made, like) or _with_gaps(b, made, like)
    if once is None:
        return None
    for dim in repeated:
        once = b(aten.unsqueeze.default, once, dim)
    expanded: fx.Node = b(aten.expand.default, once, sizes)
    return expanded


def _with_gaps(b: Builder, made: fx.Node, like: torch.Tensor) -> fx.Node | None:
    """`made` at the places of `like` in memory of its own; None where sizes are unknown or elements
    overlap.
    """
    sizes, strides = list(like.shape), list(like.stride())
    if (
        not all(isinstance(s, int) for s in (*sizes, *strides))
        or not like.numel()
        or _overlaps(like)
    ):
        return None
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    memory = b(aten.full.default, [reach], 0, dtype=like.dtype, device=like.device)
    written = b(aten.as_strided_scatter.default, memory, made, sizes, strides, 0)
    placed: fx.Node = b(aten.as_strided.default, written, sizes, strides, 0)
    return placed


def _overlaps(tensor: torch.Tensor) -> bool:
    reach = 0
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dims if size > 1):
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def is_dense(tensor: torch.Tensor) -> bool:
    """Is it known that every element has a place of its own, with no gaps between? Installs no
    guard.
    """
    return _dense_order(tensor) is not None


def _dense_order(tensor: torch.Tensor) -> list[int] | None:
    """The dims of a dense tensor, the innermost first and those of size 1 last; None where it is
    not known to be dense.
    """
    single = [dim for dim, size in enumerate(tensor.shape) if n.same_size(size, 1)]
    left = [dim for dim in range(tensor.dim()) if dim not in single]
    order: list[int] = []
    # ATen counts a size of 0 as 1 in strides; what is traced shows it, or does not.
    expected: tuple[Any, Any] = (1, 1)
    while left:
        dim = next((d for d in left if _is_one_of(tensor.stride(d), expected)), None)
        if dim is None:
            return None
        left.remove(dim)
        order.append(dim)
        size, stride = tensor.shape[dim], tensor.stride(dim)
        expected = size * stride, torch.sym_max(size, 1) * stride
    return order + single


def _is_one_of(stride: Any, expected: tuple[Any, Any]) -> bool:
    return any(n.same_size(stride, e) for e in expected)


def _lay_out(graph: fx.Graph, node: fx.Node, like: torch.Tensor, fake_mode: FakeTensorMode) -> bool:
    """Give all readers of the node its value with the strides of `like`, where that can be asked
    for.
    """
    b = Builder(graph, fake_mode, node)
    with graph.inserting_before(node.next):
        asked = restrided(b, node, like)
    if asked is not None:
        node.replace_all_uses_with(asked, delete_user_cb=lambda user: user not in b.inserted)
    return asked is not None

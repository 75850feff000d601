"""Which outputs of a graph share memory, with each other or with an input, and keeping it so.

A rewrite may make one output a view of another, or of an input, where the graph had computed a
tensor of its own. A caller that writes into one would then change the other.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder, outputs, set_outputs
from rocm_passes.fx.nodes import aten, value

#: They return their input as it is where it is so already, or a view that no schema declares.
_PERHAPS_SAME = frozenset(
    {
        *(aten.reshape.default, aten.contiguous.default, aten._unsafe_view.default),
        inductor_prims.force_stride_order,
    }
)

Sharing = frozenset[tuple[int, int | fx.Node]]


def sharing(graph: fx.Graph) -> Sharing:
    """Pairs that share memory: two outputs by their places, or an output's place and an input."""
    roots = [(i, root_of(o)) for i, o in enumerate(outputs(graph)) if isinstance(o, fx.Node)]
    tensors = [(i, r) for i, r in roots if value(r) is not None or r.op == "placeholder"]
    among = {(i, j) for (i, a), (j, b) in combinations(tensors, 2) if a is b}
    return frozenset(among | {(i, r) for i, r in tensors if r.op == "placeholder"})


def keep_apart(graph: fx.Graph, before: Sharing, fake_mode: FakeTensorMode) -> list[fx.Node]:
    """Copy outputs that share memory now and did not `before`. Returns what was copied.

    Outputs that shared memory before are views of one copy.
    """
    copied = []
    while fresh := sorted(sharing(graph) - before, key=lambda pair: pair[0]):
        place = fresh[0][0]
        copied.append(_copy(graph, [place, *_sharing_with(place, before)], fake_mode))
    return copied


#: Of each write into an input, the node whose memory the written value lay in.
Sources = dict[fx.Node, fx.Node]


def sources(graph: fx.Graph) -> Sources:
    """AOTAutograd puts the writes that a user's code does into its inputs at the graph's end."""
    written = n.calls(graph, aten.copy_.default)
    return {w: _copied_from(w.args[1]) for w in written if isinstance(w.args[1], fx.Node)}


def _copied_from(node: fx.Node) -> fx.Node:
    """Copies that Inductor drops are looked through, as views are."""
    root = root_of(node)
    source: Any = None
    if n.is_call(root, aten.copy.default):
        source = root.args[1]
    elif n.is_call(root, aten.clone.default):
        source = root.args[0]
    return _copied_from(source) if isinstance(source, fx.Node) else root


def check_sources(graph: fx.Graph, before: Sources) -> None:
    """Raises where a value that is written into an input is by now a view of an input that is
    written too. The write would read what another one left, and Inductor drops a copy in between.
    """
    now = sources(graph)
    changing = inputs_written(graph)
    for write, root in now.items():
        if root in changing and before.get(write) is not root:
            raise ValueError(f"{write.name} would read {root.name}, which is written too")


def inputs_written(graph: fx.Graph) -> frozenset[Any]:
    """The inputs that the graph writes into."""
    writes = n.calls(graph, aten.copy_.default)
    return frozenset(root_of(w.args[0]) for w in writes if isinstance(w.args[0], fx.Node))


def _before_writes(behind: fx.Node) -> fx.Node:
    """The first write into an input behind that node, or the output: up to there the node's memory
    holds what it held.
    """
    node = behind.next
    while node.op != "output" and not n.is_call(node, aten.copy_.default):
        node = node.next
    return node


def _sharing_with(place: int, shared: Sharing) -> list[int]:
    """The other outputs that share memory with the one at that place."""
    pairs = [(i, j) for i, j in shared if isinstance(j, int) and place in (i, j)]
    return sorted(i + j - place for i, j in pairs)


def _copy(graph: fx.Graph, places: Sequence[int], fake_mode: FakeTensorMode) -> fx.Node:
    """Let outputs be, or view, one copy of the last value that all are views of. Returns that
    value.
    """
    results = outputs(graph)
    chains = [viewed_by(results[place]) for place in places]
    root = next((node for node in chains[0] if all(node in c for c in chains)), None)
    if root is None:
        # The others lie elsewhere by now.
        return _copy(graph, places[:1], fake_mode)
    with graph.inserting_before(_before_writes(root)):
        b = Builder(graph, fake_mode, root)
        made: dict[Any, fx.Node] = {root: b(aten.clone.default, root)}

        def again(view: Any) -> Any:
            if view not in made:
                made[view] = b(view.target, again(view.args[0]), *view.args[1:], **view.kwargs)
            return made[view]

        for place in places:
            results[place] = again(results[place])
    set_outputs(graph, results)
    return root


def root_of(node: fx.Node) -> fx.Node:
    """The node whose memory the node's value lies in."""
    return viewed_by(node)[-1]


def viewed_by(node: fx.Node) -> list[fx.Node]:
    """The node, what it is a view of, and so on, up to the node whose memory it is."""
    found = [node]
    while (source := _viewed(found[-1])) is not None:
        found.append(source)
    return found


def is_view_of(user: fx.Node, node: fx.Node) -> bool:
    return _viewed(user) is node


def reaches_the_outputs(node: fx.Node) -> bool:
    """Is the node an output of the graph, or a view of it?"""
    return any(
        user.op == "output" or (_viewed(user) is node and reaches_the_outputs(user))
        for user in node.users
    )


def _viewed(node: fx.Node) -> fx.Node | None:
    if node.op != "call_function" or not node.args:
        return None
    source: Any = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if node.target is operator.getitem:
        return _viewed(source) if isinstance(source.meta.get("val"), (list, tuple)) else None
    if node.target in _PERHAPS_SAME:
        return source
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    returned = [r.alias_info for r in node.target._schema.returns]
    return source if any(a is not None and not a.is_write for a in returned) else None

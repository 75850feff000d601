"""Complex tables written in real numbers before Inductor's patterns look at the graph.

A model that indexes, reshapes or builds its rotary tables in the graph has complex nodes there that
Inductor warns of as soon as one of its own patterns matches them, long before the post-grad pass.
Here each table becomes the same computation on its parts, by ops/complex_tables.py, and one
`aten.view_as_complex`, a view, where a complex tensor is wanted: at the rotation, whose product the
idioms take away later, and at an output of the graph.

Before (Qwen-Image)                                After
    f = unsqueeze(slice(view(freqs, ..)), 1)           f = view_as_complex(unsqueeze(slice(reshape(
    z = mul(view_as_complex(x), f)                             as_real(freqs), ..)), 1))
                                                       z = mul(view_as_complex(x), f)

Left as it is: what no rule of complex_tables covers all the way up to the graph's inputs, and what
something reads by its strides that would have others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.pattern_matcher import stable_topological_sort

from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder, fake_mode_of
from rocm_passes.fx.nodes import aten
from rocm_passes.fx.reuse import reuse
from rocm_passes.fx.snapshot import Snapshot
from rocm_passes.ops.as_real import AS_REAL
from rocm_passes.ops.complex_tables import RULES, real_of
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import change_at

log = logging.getLogger(__name__)

#: Its name in the ledger.
PASS_NAME = "complex_to_real"
_DID = "a complex table is computed as its real and imaginary parts"
_REASON = "the parts move as the table moves; torch.polar becomes its cosine and sine"
_COMPLEX = frozenset({torch.complex64, torch.complex128})


class ComplexToReal(CustomGraphPass):
    """The pass for Inductor's joint_custom_pre_pass. key: gives all that a result depends on
    (`GraphPass.uuid`). said: is given what was changed, for the ledger of the next graph; failed:
    why nothing was.
    """

    def __init__(
        self,
        key: Callable[[], str],
        said: Callable[[Sequence[Change]], None],
        failed: Callable[[str], None],
    ) -> None:
        self._key = key
        self._said = said
        self._failed = failed

    def uuid(self) -> str:
        return self._key()

    def __call__(self, graph: fx.Graph) -> None:
        if is_training(graph) or not _has_complex(graph):
            return
        before = Snapshot(graph)
        try:
            changes = tables_in_real(graph)
        except Exception as error:
            log.exception("rocm_passes: complex tables are left as they are")
            before.restore()
            self._failed(f"{PASS_NAME} failed: {type(error).__name__}: {error}")
        else:
            self._said([replace(change, step=PASS_NAME, stays=True) for change in changes])


def is_training(graph: fx.Graph) -> bool:
    """Is it a joint graph of forward and backward?"""
    return any("tangents" in node.name for node in graph.find_nodes(op="placeholder"))


def _has_complex(graph: fx.Graph) -> bool:
    return any(n.dtype(node) in _COMPLEX for node in graph.nodes)


def tables_in_real(graph: fx.Graph) -> list[Change]:
    """Rewrite every complex table of the graph, at each of its uses."""
    fake_mode = fake_mode_of(graph)
    if fake_mode is None:
        return []
    changes = []
    for user in list(graph.nodes):
        if _by_rule(user):
            continue
        for z in user.all_input_nodes:
            if not _by_rule(z):
                continue
            b = Builder(graph, fake_mode, z)
            try:
                with graph.inserting_before(user):
                    if _rewrite(b, user, z):
                        changes.append(change_at(z, _DID, _REASON, "close"))
            except Exception:
                # It may cost a warning of Inductor's, but never a compile.
                log.exception("rocm_passes: writing the complex %s in real numbers failed", z)
                b.discard()
    if changes:
        # A value of the graph that was there already may be used again before its place.
        stable_topological_sort(graph)
        graph.eliminate_dead_code()
    return changes


def _by_rule(node: fx.Node) -> bool:
    """A complex value that is computed from others in a way that can be written for its parts."""
    if node.op != "call_function" or node.target is aten.view_as_complex.default:
        return False
    return node.target in RULES and n.dtype(node) in _COMPLEX


def _rewrite(b: Builder, user: fx.Node, z: fx.Node) -> bool:
    """Give the user z's parts, or a complex view of them; what it cannot take leaves the graph as
    it was.
    """
    parts = real_of(b, z)
    if any(
        n.is_call(i, AS_REAL.overload) and n.argument(i).op == "call_function" for i in b.inserted
    ):
        b.discard()
        return False
    if n.is_call(user, aten.view_as_real.default):
        user.replace_all_uses_with(parts)
        return True
    any_strides = n.is_call(user, aten.mul.Tensor)
    if not _viewed_alike(parts, z, any_strides):
        parts = b(aten.clone.default, parts, memory_format=torch.contiguous_format)
    if not _viewed_alike(parts, z, any_strides):
        b.discard()
        return False
    user.replace_input_with(z, reuse(b, aten.view_as_complex.default, parts))
    return True


def _viewed_alike(parts: fx.Node, z: fx.Node, any_strides: bool) -> bool:
    """Can the parts be viewed as complex, with the strides of z where those matter?"""
    *lead, last = n.tensor(parts).stride()
    if not n.same_size(last, 1):
        return False
    return any_strides or n.same_shape([stride // 2 for stride in lead], n.tensor(z).stride())

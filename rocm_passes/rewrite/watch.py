"""The first calls of a compiled graph, watched: each rewritten site on the values that it really
gets.

The graph as it was before the rewrites is run node by node beside the compiled one. Where a site is
wrong, that graph takes over, node by node, from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.compile_fx import compile_fx_inner
from torch.utils import _pytree as pytree

from rocm_passes.options import Options
from rocm_passes.report.ledger import Ledger
from rocm_passes.rewrite.program import Program, Unverifiable, run
from rocm_passes.rewrite.verify import SKIPPED, WRONG, Verdict, judged, limit, on_device

log = logging.getLogger("rocm_passes")


@dataclass
class Watch:
    """What the pass leaves for the calls of one graph. original: the graph before its rewrites.

    sites: a rewrite's entry in the ledger, by its place, and its programs.
    """

    original: fx.GraphModule
    options: Options
    ledger: Ledger
    sites: dict[int, Program] = field(default_factory=dict)

    def wrapped(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled graph, which takes its arguments in one list, watched."""
        return make_boxed_func(_Watched(self, compiled))


def inner_compile(taken: Callable[[], Watch | None]) -> Callable[..., Any]:
    """Inductor's compile of one graph, with its result watched where the pass has left something to
    watch.
    """

    def compile_one(gm: fx.GraphModule, example_inputs: Sequence[Any], **how: Any) -> Any:
        compiled = compile_fx_inner(gm, example_inputs, **how)
        watch = taken()
        return compiled if watch is None or not watch.sites else watch.wrapped(compiled)

    return compile_one


class _Watched:
    def __init__(self, watch: Watch, compiled: Callable[..., Any]) -> None:
        self._watch = watch
        self._compiled = compiled
        self._calls = max(watch.options.check_finite, int(watch.options.verify == "live"))
        self._done = 0
        self._wrong = False

    def __call__(self, *args: Any) -> Any:
        if self._wrong:
            return self._watch.original(*args)
        if self._done >= self._calls:
            return self._compiled(list(args))
        self._done += 1
        try:
            found = _Observed(self._watch, first=self._done == 1)
            expected = found.outputs(args)
        except Exception as error:
            self._calls = 0
            self._say(f"its first calls cannot be watched: {type(error).__name__}: {error}")
            return self._compiled(list(args))
        results = self._compiled(list(args))
        wrong = found.wrong or self._not_finite(results, expected)
        if not wrong:
            return results
        self._wrong = True
        self._say(f"{wrong}; the graph runs without rewrites, node by node, from now on")
        return expected

    def _not_finite(self, results: Any, expected: Any) -> str:
        """Is an output of the compiled graph not finite where the original's is, though each site's
        is?
        """
        if not self._watch.options.check_finite:
            return ""
        pairs = zip(pytree.tree_leaves(results), pytree.tree_leaves(expected), strict=True)
        lost = any(
            isinstance(a, Tensor) and isinstance(b, Tensor) and _loses(a, b) for a, b in pairs
        )
        return "an output is not finite, and the result of each rewritten site is" if lost else ""

    def _say(self, text: str) -> None:
        log.warning("rocm_passes: %s: %s", self._watch.ledger.graph, text)
        self._watch.ledger.notes.append(text)


class _Observed(fx.Interpreter):
    """The original graph on real inputs; each site is judged as soon as its inputs are there."""

    def __init__(self, watch: Watch, first: bool) -> None:
        super().__init__(watch.original)
        self._watch = watch
        self._live = first and watch.options.verify == "live"
        self._kept: dict[str, Any] = {}
        self._waiting = {at: {i.name for i in p.inputs} for at, p in watch.sites.items()}
        self.wrong = ""

    def outputs(self, args: Sequence[Any]) -> Any:
        mutable = any(_mutates(node) for node in self._watch.original.graph.nodes)
        values = [a.clone() if mutable and isinstance(a, Tensor) else a for a in args]
        device = next(iter(self._watch.sites.values())).device
        devices = [device] if device.type == "cuda" else []
        with on_device(device), torch.random.fork_rng(devices=devices):
            return self.run(*values)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        readers = [at for at, names in self._waiting.items() if n.name in names]
        if readers:
            self._kept[n.name] = value
        for at in readers:
            program = self._watch.sites[at]
            if all(i.name in self._kept for i in program.inputs):
                values = {i.name: self._kept[i.name] for i in program.inputs}
                del self._waiting[at]
                self._judge(at, program, {**values, **program.constants})
        if readers:
            needed = set().union(*self._waiting.values())
            self._kept = {name: kept for name, kept in self._kept.items() if name in needed}
        return value

    def _judge(self, at: int, program: Program, values: dict[str, Any]) -> None:
        if self._live:
            strict = self._watch.options.rewrite_numerics == "strict"
            self._record(at, _live(program, values, strict))
        if self._watch.options.check_finite and not self.wrong:
            originals = run(program.original, program.outputs, values)
            replaced = run(program.replacement, program.results, values)
            if any(map(_loses, replaced, originals)):
                self._record(
                    at, Verdict(WRONG, reason="it turns non-finite where the original is finite")
                )

    def _record(self, at: int, verdict: Verdict) -> None:
        entry = self._watch.ledger.entries[at]
        record = {**verdict.to_dict(), "inputs": "live", "drawn": dict(entry.verification)}
        self._watch.ledger.entries[at] = replace(entry, verification=record)
        if verdict.status == WRONG and not self.wrong:
            place = entry.location or entry.module or "an unknown place"
            self.wrong = (
                f"{entry.idiom} at {place} by {entry.lowering} is wrong on live inputs: "
                f"{verdict.reason}"
            )


def _live(program: Program, values: dict[str, Any], strict: bool) -> Verdict:
    if program.bytes > limit(program.device):
        return Verdict(SKIPPED, reason="it is too large to be verified on live inputs")
    try:
        return judged(program, [values], strict, "live")
    except Unverifiable as error:
        return Verdict(SKIPPED, reason=str(error))


def _loses(new: Tensor, old: Tensor) -> bool:
    """Is an element not finite that the other has finite?"""
    if new.shape != old.shape or not new.dtype.is_floating_point:
        return False
    return bool((old.isfinite() & ~new.isfinite()).any())


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)

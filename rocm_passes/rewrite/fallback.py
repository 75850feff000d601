"""A graph that does not compile with its rewrites is compiled without them.

Inductor lowers, generates code and compiles kernels after our pass. What raises there would fail
the user's compile, though the graph as it was may compile. So the compile of one graph is tried
again: the graph is put back as the pass was given it, the pass only decomposes what was kept whole,
and the ledger says why. AOTAutograd's work stays: its graph is what is put back. The backward graph
goes through the same function, whenever it is compiled.

The second result goes into no cache. It would lie there under the key of the rewritten graph
(AOTAutograd's is made before Inductor is asked), and a cause that passes, such as a full disk,
would stay. Each process tries the rewrites first.

A bundled cache of AOTAutograd (ahead-of-time compiles) takes what it is given. The ledger that is
kept beside the caches then says the same as this process's.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx
from torch._dynamo.exc import RestartAnalysis, SkipFrame
from torch._inductor import config as inductor_config

from rocm_passes.errors import OptionError
from rocm_passes.fx.snapshot import Snapshot
from rocm_passes.report.ledger import Ledger

log = logging.getLogger("rocm_passes")

#: Not failures of a compile. By SkipFrame Inductor has Dynamo run the frame in eager (bfloat16 that
#: a GPU lacks), and by RestartAnalysis Dynamo traces anew with what it has learnt: raised again
#: from a second compile they would find the state of the first. All others are told apart by the
#: second compile: what it raises, data-dependent guards for one, the graph raises without us, too.
#: (KeyboardInterrupt is no Exception.)
PASS_THROUGH = (SkipFrame, RestartAnalysis, OptionError)

UNCACHED: Mapping[str, Any] = {"fx_graph_cache": False, "fx_graph_remote_cache": False}

ADVICE = (
    "This is a fault of rocm_passes or of the compiler below it: please report it with the lines "
    "below and the output of `rocm-passes doctor`. `rocm-passes bisect script.py` names the "
    "rewrite, and options={'on_compile_error': 'raise'} fails the compile instead"
)


@dataclass
class Attempt:
    """One compile of a graph: what the pass was given (a graph for each branch of control flow).

    given: what Inductor was given, where other passes come before ours. given_up: the rewrites are,
    and the pass is to leave the graph as it is. failed: the pass itself raised.
    """

    passed: list[tuple[Snapshot, Ledger]] = field(default_factory=list)
    given: list[Snapshot] = field(default_factory=list)
    changed: bool = False
    given_up: bool = False
    failed: bool = False

    def add(self, before: Snapshot, ledger: Ledger, changed: bool) -> None:
        self.passed.append((before, ledger))
        self.changed = self.changed or changed


class Passes(Protocol):
    """The pass, as far as it is needed here."""

    attempt: Attempt | None
    #: The graph's own: a compile without rewrites raised it.
    own_error: BaseException | None

    @property
    def changed_early(self) -> bool:
        """Was the graph changed before it was split, so that a second compile has it changed?"""

    def published_empty(self) -> Ledger: ...

    def undone(self, ledger: Ledger, reason: str, error: str) -> None: ...

    def given_up(self, reason: str, error: str) -> None: ...


def inner_compile(passes: Passes, inner: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor's compile of one graph, tried without rewrites where it fails with them.

    inner: that compile.
    """

    def compile_one(gm: fx.GraphModule, example_inputs: Sequence[Any], **how: Any) -> Any:
        passes.attempt = attempt = Attempt()
        hook: Any = inductor_config.post_grad_custom_pre_pass
        if hook is not passes:
            # Passes of the user's come before ours, and must not meet a graph of theirs again.
            attempt.given = [Snapshot(module.graph) for module in modules(gm)]
        cudagraphs = getattr(how.get("cudagraphs"), "value", None)
        try:
            try:
                return inner(gm, example_inputs, **how)
            except PASS_THROUGH:
                raise
            except Exception as error:
                if not attempt.changed and not attempt.failed:
                    passes.own_error = None if passes.changed_early else error
                    raise
                # As text: the exception holds all that the compile had made.
                said, trace = first_line(error), "".join(traceback.format_exception(error))
            _put_back(attempt, gm)
            if cudagraphs is not None:
                # The first compile may have found a reason against them in what we wrote.
                how["cudagraphs"].value = cudagraphs
            # Not in the handler: an error of the graph's own is no consequence of ours.
            attempt.failed = False
            try:
                with inductor_config.patch(dict(UNCACHED)):
                    compiled = inner(gm, example_inputs, **how)
            except Exception as error:
                if not attempt.failed and not passes.changed_early:
                    passes.own_error = error
                raise
            # Only now is it known whose fault it was.
            _say(attempt, passes, said, trace)
            return compiled
        finally:
            passes.attempt = None

    return compile_one


_SAID: set[str] = set()


def _say(attempt: Attempt, passes: Passes, said: str, trace: str) -> None:
    """In each ledger, and in the log once for each error."""
    reason = f"its graph did not compile with the rewrites: {said}"
    # The pass may have failed before it had a ledger.
    found = [ledger for _, ledger in attempt.passed] or [passes.published_empty()]
    for ledger in found:
        passes.undone(ledger, reason, said)
    graphs = ", ".join(ledger.graph for ledger in found)
    text = f"rocm_passes: {graphs} did not compile with the rewrites, and was compiled without"
    if said in _SAID:
        log.info("%s, as other graphs before: %s", text, said)
    else:
        _SAID.add(said)
        log.warning("%s: %s. %s:\n%s", text, said, ADVICE, trace)


def first_line(error: Exception) -> str:
    """Its cause in one line: Inductor wraps an exception in its own, which begins with its name."""
    inner = getattr(error, "inner_exception", None)
    found = inner if isinstance(inner, Exception) else error
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    return f"{type(found).__name__}: {lines[0]}" if lines else type(found).__name__


def _put_back(attempt: Attempt, gm: fx.GraphModule) -> None:
    attempt.given_up = True
    for before in attempt.given or [before for before, _ in attempt.passed]:
        before.restore()
    for module in modules(gm):
        module.recompile()
    # Inductor fills this list at the end, and expects it empty.
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.output_strides:
        context.output_strides.clear()


def modules(gm: fx.GraphModule) -> list[fx.GraphModule]:
    """The graph and those of its control flow."""
    return [module for module in gm.modules() if isinstance(module, fx.GraphModule)]

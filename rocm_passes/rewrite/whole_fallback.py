"""A Dynamo graph that does not compile with this backend is compiled by plain Inductor.

`fallback` sees to what Inductor's compile of one graph raises. Beside it stand our decomposition
table, our passes over the graph before it is split into forward and backward, and our bookkeeping.
What raises there would fail the user's compile too. The whole compile is then done again as
backend="inductor" does it, and the ledger says why.

Nothing has run by then, so nothing has to be undone but the graph itself: Inductor's pre-grad
passes change it in place. Guards that the first compile put on symbolic sizes stay: they cost
compiles, and no values. A backward graph that autograd compiles later is beyond this.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import fx
from torch._guards import detect_fake_mode

from rocm_passes.fx.snapshot import Snapshot
from rocm_passes.rewrite.fallback import ADVICE, PASS_THROUGH, Passes, first_line, modules

log = logging.getLogger("rocm_passes")

Compiled = TypeVar("Compiled")


def compiled_or_plain(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    ours: Callable[[], Compiled],
    plain: Callable[[], Compiled],
    passes: Callable[[], Passes | None],
) -> Compiled:
    """What `ours` gives, or what `plain` gives where that fails. Raises what `plain` raises: the
    graph's own error.

    passes: those of `ours`, once there are any.
    """
    given = [(module, Snapshot(module.graph)) for module in modules(gm)]
    pending = _unbacked(example_inputs)
    before = None if pending is None else list(pending)
    try:
        return ours()
    except PASS_THROUGH:
        raise
    except Exception as error:
        made = passes()
        if made is not None and _caused_by(error, made.own_error):
            raise
        # As text: the exception holds all that the compile had made.
        said, trace = first_line(error), "".join(traceback.format_exception(error))
    for module, graph in given:
        graph.restore()
        module.recompile()
    if pending is not None:
        pending[:] = before or []
    compiled = plain()
    # Only now is it known whose fault it was.
    if made is not None:
        try:
            made.given_up(f"its graph did not compile with this backend: {said}", said)
        except Exception:
            # It may be the ledger that cannot be handed on.
            log.exception("rocm_passes: the ledger of a graph could not be written")
    log.warning(
        "rocm_passes: a graph did not compile, and was compiled by plain Inductor: %s. %s:\n%s",
        said,
        ADVICE,
        trace,
    )
    return compiled


def _caused_by(error: BaseException, own: BaseException | None) -> bool:
    """Is it the graph's own error, or was it raised from that?"""
    found: BaseException | None = error
    while found is not None and found is not own:
        found = found.__cause__ or found.__context__
    return found is not None and found is own


def _unbacked(example_inputs: Sequence[Any]) -> list[Any] | None:
    """Unbacked symbols that no value has been bound to so far; a trace expects none but its own."""
    mode = detect_fake_mode(list(example_inputs))
    return getattr(getattr(mode, "shape_env", None), "pending_fresh_unbacked_symbols", None)

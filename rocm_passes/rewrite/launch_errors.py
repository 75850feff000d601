"""A kernel of ours that cannot be launched when a compiled graph runs: an error that says which.

A kernel that does not compile or load fails the compile, which is tried again without rewrites
(`fallback`). A launch that the driver refuses raises in the generated code of a run. The graph may
have written into its inputs by then, drawn random numbers or met other ranks in a collective, so it
is not run again. The error names the operator, the source lines of its sites, and the options that
leave them alone.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from rocm_passes.errors import LaunchError, plural
from rocm_passes.kernels.triton import launched
from rocm_passes.kernels.triton.launched import Launched
from rocm_passes.report.ledger import Ledger
from rocm_passes.rewrite.fallback import first_line

#: A launch in Inductor's generated code: the kernel's name and a number.
_LAUNCH = re.compile(r"^\s*(?P<kernel>\w+?)_\d+\.run\(")
#: Source lines that the error names.
MOST = 3


def inner_compile(
    ledgers: Callable[[], Sequence[Ledger]], inner: Callable[..., Any]
) -> Callable[..., Any]:
    """Inductor's compile of one graph, whose result explains launches that fail.

    ledgers: those of the graphs that were compiled. inner: that compile.
    """

    def compile_one(gm: fx.GraphModule, example_inputs: Sequence[Any], **how: Any) -> Any:
        with launched.collected() as launches:
            compiled = inner(gm, example_inputs, **how)
        call = getattr(compiled, "current_callable", None)
        if callable(call):
            compiled.current_callable = explaining(call, launches, ledgers)
        return compiled

    return compile_one


def explaining(
    call: Callable[..., Any], launches: Sequence[Launched], ledgers: Callable[[], Sequence[Ledger]]
) -> Callable[..., Any]:
    """A compiled graph that raises LaunchError where a launch of ours fails."""

    def explained(inputs: Any) -> Any:
        try:
            return call(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            kernel = kernel_at_fault(error)
            if kernel is None:
                raise
            raise LaunchError(_message(kernel, error, launches, ledgers())) from error

    return explained


def kernel_at_fault(error: Exception) -> str | None:
    """The kernel of ours whose launch raised the error, or None where it is of other code."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        found = _LAUNCH.match(linecache.getline(frame.f_code.co_filename, line))
        if found is not None:
            return found["kernel"] if launched.is_ours(found["kernel"]) else None
    return None


def _message(
    kernel: str, error: Exception, launches: Iterable[Launched], ledgers: Sequence[Ledger]
) -> str:
    own = list(dict.fromkeys(each for each in launches if each.kernel == kernel))
    idioms = _idioms(own, ledgers)
    without = f"'idioms': {'-' + ',-'.join(idioms)!r}" if idioms else "'select': 'off'"
    return (
        f"the kernel {kernel} of rocm_passes could not be launched: {first_line(error)}. "
        f"{_places(own)}. options={{{without}}} leaves its sites to Inductor, and "
        "options={'launch': 'python'} goes on with plain torch where a kernel fails. The graph was "
        "not run again, as it may have written into its inputs"
    )


def _places(own: Sequence[Launched]) -> str:
    if not own:
        return "`rocm-passes explain` lists its sites: the graph came from a cache"
    operators = ", ".join(dict.fromkeys(each.operator for each in own))
    places = list(dict.fromkeys(_place(each) for each in own))
    rest = len(places) - MOST
    more = f" and {plural(rest, 'more place')}" if rest > 0 else ""
    return f"It computes {operators} at {', '.join(places[:MOST])}{more}"


def _place(found: Launched) -> str:
    module = f" ({found.module})" if found.module else ""
    return f"{found.location or 'an unknown place'}{module}"


def _idioms(own: Sequence[Launched], ledgers: Iterable[Ledger]) -> list[str]:
    """The idioms of these launches' sites, as the option `idioms` has them."""
    places = {(each.location, each.module) for each in own}
    entries = (entry for ledger in ledgers for entry in ledger.entries)
    return sorted(
        {
            entry.idiom
            for entry in entries
            if entry.outcome == "rewritten" and (entry.location, entry.module) in places
        }
    )

"""What a verification means for a site's entry in the ledger, and the loud word where it
was wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from rocm_passes.options import Options
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.rewrite import reproducer
from rocm_passes.rewrite.extraction import of_site
from rocm_passes.rewrite.program import Program, Unverifiable
from rocm_passes.rewrite.rewriter import Applied
from rocm_passes.rewrite.sources import Sources
from rocm_passes.rewrite.verify import SKIPPED, WRONG, Verdict, verify
from rocm_passes.rewrite.watch import Watch
from rocm_passes.tuning.store import default_path

log = logging.getLogger("rocm_passes")


@dataclass(frozen=True)
class Validation:
    """record: for the entry's field `verification`. wrong: why the rewrite must be put
    back, or "".
    """

    record: Mapping[str, Any]
    wrong: str = ""


def reproducers() -> Path:
    """The folder that reproducers are written to, beside the measured choices."""
    return default_path().parent / "reproducers"


class Validator:
    """Verifies the rewrites of one graph. It is made before the first of them.

    Does nothing without the options `verify` and `check_finite`. watch: what the graph's first
    calls are to show.
    """

    def __init__(self, graph: fx.Graph, options: Options, ledger: Ledger) -> None:
        self._options = options
        self._verifies = options.verify != "off"
        watches = options.verify == "live" or options.check_finite > 0
        self._sources = Sources(graph) if self._verifies or watches else None
        self.watch = Watch(_copied(graph), options, ledger) if watches else None

    def placed(self, applied: Applied) -> None:
        if self._sources is not None:
            self._sources.note(applied.results, applied.match.outputs)

    def validate(self, applied: Applied, entry: Entry, at: int) -> Validation:
        """Verify one rewrite that was placed, while what it replaced is still in the graph. at: its
        entry's place.
        """
        if self._sources is None:
            return Validation({})
        found = self._verified(applied, entry, self._sources)
        if self.watch is not None and not found.wrong:
            try:
                self.watch.sites[at] = of_site(applied, self._sources)
            except Unverifiable as error:
                return Validation({**found.record, "not_watched": str(error)})
        return found

    def _verified(self, applied: Applied, entry: Entry, sources: Sources) -> Validation:
        if not self._verifies:
            return Validation({})
        on_purpose = _less_exact_on_purpose(entry, self._options)
        if on_purpose:
            return Validation(Verdict(SKIPPED, reason=on_purpose).to_dict())
        return _said(*verify(applied, sources, self._options.rewrite_numerics == "strict"), entry)


def _copied(graph: fx.Graph) -> fx.GraphModule:
    """A copy of the graph that can be run, with the same names and the same constants."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    owner = graph.owning_module
    return fx.GraphModule(owner if owner is not None else torch.nn.Module(), made)


def _less_exact_on_purpose(entry: Entry, options: Options) -> str:
    """The option that asks for a larger error than the original's at this site, in words, or ""."""
    dtypes = {i["dtype"] for i in entry.inputs}
    if options.conv_dtype and entry.idiom == "conv3d" and torch.float32 in dtypes:
        return f"conv_dtype={options.conv_dtype!r} makes it less exact than the graph"
    if entry.lowering == "aiter_fp8":
        return "rewrite_numerics='fast' lets attention be computed in 8 bits"
    if options.rewrite_numerics == "fast" and dtypes & {torch.float64, torch.complex128}:
        return "rewrite_numerics='fast' may make it less exact than the graph"
    return ""


def _said(verdict: Verdict, program: Program | None, entry: Entry) -> Validation:
    """Where the rewrite is wrong, say so and write a program that shows it."""
    if verdict.status != WRONG:
        return Validation(verdict.to_dict())
    shown = _reproducer(entry, verdict, program) if program is not None else {}
    reason = f"put back by verify: {verdict.reason}"
    log.warning(
        "rocm_passes: %s at %s by %s is wrong and was put back: %s%s",
        entry.idiom,
        entry.location or entry.module or "an unknown place",
        entry.lowering,
        verdict.reason,
        f"; {shown['reproducer']} shows it" if "reproducer" in shown else "",
    )
    return Validation({**verdict.to_dict(), **shown}, reason)


def _reproducer(entry: Entry, verdict: Verdict, program: Program) -> dict[str, str]:
    title = f"{entry.idiom} at {entry.location} by {entry.lowering}: {verdict.reason}"
    try:
        path = reproducer.write(reproducers(), entry.idiom, reproducer.text(program, title))
    except reproducer.NotWritable as error:
        return {"no_reproducer": str(error)}
    return {"reproducer": path} if path else {"no_reproducer": "its file cannot be written"}

"""The graph before, between and after the steps of the pass, for people who follow a graph through
it.

`Dump.step` puts the graph's text into torch's structured trace (where tlparse shows it) while
tracing is on, and into a file where the environment variable ROCM_PASSES_DUMP names a folder.
Otherwise it does nothing.

    <folder>/graph0_<process id>/00_before.py           the graph as Inductor gave it
                                 02_fold_conv_bias.py   after that step, if it changed something
                                 03_after.py            as Inductor gets it back
                                 ledger.json            the graph's ledger, as in docs/ledger.md
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from torch import fx
from torch._logging import _internal as torch_logging

from rocm_passes.fx.provenance import short
from rocm_passes.report import ledger as ledgers
from rocm_passes.report.ledger import Ledger

log = logging.getLogger("rocm_passes")

VARIABLE = "ROCM_PASSES_DUMP"

#: What stands before an argument with its type, in a signature.
_ARGUMENT = re.compile(r", (?=\w+: \")")
_FILE = re.compile(r"^(?P<before>\s*# File: )(?P<file>[^\n]+?):(?=\d+ in )")


def folder() -> Path | None:
    """The folder that ROCM_PASSES_DUMP names, or None where it is not set."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


class Dump:
    """The texts of one graph. name: that of its ledger."""

    def __init__(self, name: str) -> None:
        self.name = name
        root = folder()
        # Processes number their graphs alike and may share a folder.
        self._folder = root / f"{name}_{os.getpid()}" if root else None
        self._steps = 0
        self._last = ""

    def step(self, name: str, graph: fx.Graph) -> None:
        """Write the graph down as it is after the step `name`; a graph that is as before is left
        out.

        The first step, "before", is always written, and so is "after".
        """
        number, self._steps = self._steps, self._steps + 1
        if self._folder is None and not _traced():
            return
        try:
            text = readable(graph)
        except Exception:
            log.exception("rocm_passes: the graph could not be written down after %s", name)
            return
        if text == self._last and name != "after":
            return
        self._last = text
        self._write(f"{number:02d}_{re.sub(r'[^A-Za-z0-9_]+', '_', name)}.py", text)
        torch_logging.trace_structured(
            "artifact",
            metadata_fn=lambda: {
                "name": f"rocm_passes_{self.name}_{number:02d}_{name}",
                "encoding": "string",
            },
            payload_fn=lambda: text,
        )

    def ledger(self, ledger: Ledger) -> None:
        """Write the graph's ledger beside its texts. (`ledger.publish` puts it into the structured
        trace.)
        """
        if self._folder is not None:
            document = ledgers.to_dict([ledger])
            self._guarded(lambda at: ledgers.write_json(str(at / "ledger.json"), document))

    def _write(self, file: str, text: str) -> None:
        if self._folder is not None:
            self._guarded(lambda at: (at / file).write_text(text, encoding="utf-8"))

    def _guarded(self, write: Any) -> None:
        """A folder that can't be written to costs the dump, never the compile."""
        assert self._folder is not None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write(self._folder)
        except OSError as error:
            log.warning("rocm_passes: %s=%s: %s", VARIABLE, self._folder.parent, error)
            self._folder = None


def readable(graph: fx.Graph) -> str:
    """The graph as Python code, each value with its dtype, shape, strides and device.

    An argument stands on a line of its own, and a file is named as in the ledger.
    """
    code = graph.python_code("self", verbose=True, include_stride=True, include_device=True)
    signature, *body = code.src.strip().split("\n")
    lines = [_ARGUMENT.sub(",\n    ", signature), *(_FILE.sub(_shortened, line) for line in body)]
    return "\n".join(lines) + "\n"


def _shortened(comment: re.Match[str]) -> str:
    return f"{comment['before']}{short(comment['file'])}:"


def _traced() -> bool:
    """Is torch's structured trace written? It is asked before a text is made, which takes
    milliseconds.
    """
    return bool(torch_logging.trace_log.handlers)

"""Ledgers of child processes: each writes its own into a folder that an environment variable names.

`rocm-passes explain` reads them when its script has ended. Children inherit the variable, however
they were
started: multiprocessing, torchrun, subprocess. One line of JSON a graph, appended, so that a child
that is killed loses nothing that it had finished.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("rocm_passes")

#: "<pid of the collecting process>:<folder>". Not ROCM_PASSES_*: it is no option.
VARIABLE = "_ROCM_PASSES_LEDGERS"
#: The key of a ledger that takes an earlier one's place.
AMENDS = "amends"


@contextlib.contextmanager
def collected_in(folder: str) -> Iterator[None]:
    """Within it, processes that this one starts write their ledgers into the folder."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{os.getpid()}:{folder}"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def hand_over(ledger: Callable[[], Mapping[str, Any]], amends: bool = False) -> None:
    """Write a finished graph's ledger for the process that collects. Does nothing where
    none does.

    amends: it takes the place of the last one of that graph.
    """
    collector, _, folder = os.environ.get(VARIABLE, "").partition(":")
    if not folder or collector == str(os.getpid()):
        return
    found, rank = {**ledger(), **({AMENDS: True} if amends else {})}, os.environ.get("RANK", "")
    if rank.isdigit():
        line = json.dumps({**found, "ranks": [int(rank)]})
    else:
        line = json.dumps({**found, "graph": f"{found['graph']} of process {os.getpid()}"})
    try:
        with open(Path(folder) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        log.warning(
            "rocm_passes: a ledger could not be handed to the process that collects them: %s", error
        )


def read(folder: str) -> list[dict[str, Any]]:
    """What children handed over, by process. A last line that was cut off is left out."""
    found = []
    for file in sorted(Path(folder).glob("*.jsonl"), key=lambda f: int(f.stem)):
        of_process: list[dict[str, Any]] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                _add(of_process, json.loads(line))
        found += of_process
    return found


def _add(found: list[dict[str, Any]], ledger: dict[str, Any]) -> None:
    if ledger.pop(AMENDS, False):
        before = [at for at, each in enumerate(found) if each["graph"] == ledger["graph"]]
        if before:
            found[before[-1]] = ledger
            return
    found.append(ledger)

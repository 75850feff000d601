"""The record of every candidate site: what it is, what became of it, and why.

One Ledger per compiled graph; `history()` holds those of this process. The JSON form
(`Entry.to_dict`, `to_dict`) is documented in docs/ledger.md and stable.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rocm_passes.report import child_ledgers
from rocm_passes.report.changes import Change

log = logging.getLogger("rocm_passes")

OUTCOMES = ("rewritten", "kept", "refused")
FORMAT_VERSION = 2

#: What became of one lowering at one site: "taken": it rewrites the site; "able": it could, but
#: another was taken, or none was asked for; "not_faster": it could, but is not known to be faster
#: here; "refused": it can't take this call; "unavailable": it can't run on this machine; "failed":
#: its check or its rewrite raised an exception, or its graph did not compile with it; "wrong": it
#: rewrote the site, and was put back when its values were verified.
VERDICTS = ("taken", "able", "not_faster", "refused", "unavailable", "failed", "wrong")


class LoweringVerdict(NamedTuple):
    """What became of one lowering at one site. verdict: one of VERDICTS. reason: in words, may be
    empty. measured: its figures and those of Inductor's own code, where it was measured.
    """

    lowering: str
    verdict: str
    reason: str
    measured: Mapping[str, float] | None = None


#: Begins the reason of a site that some lowerings could take and none is known to be faster at.
LEFT = "left to Inductor: "


def summary(verdicts: Iterable[LoweringVerdict]) -> str:
    """The reasons of several lowerings as one text."""
    return "; ".join(f"{v.lowering}: {v.reason}" for v in verdicts)


@dataclass(frozen=True)
class Entry:
    """One candidate site.

    outcome: "rewritten" (by `lowering`), "kept" (could be rewritten, does not pay or was not asked
    for), "refused" (cannot be rewritten: `reason`).
    covers: the elementary idioms inside and how many of each, by the names conv3d, rms_norm,
    layer_norm, group_norm, channel_norm, rotary.
    reason: in words, a summary. verdicts: what each lowering said, in the order in which they were
    asked; empty where the site was refused before any was.
    considered: larger fusions that were looked at here and not taken, each with its reason.
    error: the exception, where looking for the site, deciding on it or rewriting it raised one. It
    is a fault of this package, and has cost this site only.
    verification: what the options `verify` and `check_finite` found; empty where the site was not
    verified.
    number: of this rewrite in its process, from 1, where the option `fuel_total` counts them; else
    0.
    component: the name of the model's source file, `transformer_wan`; may be empty.
    bytes: of inputs and results, each counted once; None where a size is symbolic or not known.
    drawing: the nodes before and after the rewrite, by "before" and "after" (report/drawing.py).
    """

    idiom: str
    covers: Mapping[str, int]
    outcome: str
    lowering: str | None
    reason: str
    location: str
    module: str
    parameters: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    considered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verdicts: tuple[LoweringVerdict, ...] = ()
    error: str = ""
    verification: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    component: str = ""
    bytes: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "idiom": self.idiom,
            "covers": dict(self.covers),
            "outcome": self.outcome,
            "lowering": self.lowering,
            "reason": self.reason,
            "location": self.location,
            "module": self.module,
            "parameters": {k: _plain(v) for k, v in self.parameters.items()},
            "inputs": [{k: _plain(v) for k, v in i.items()} for i in self.inputs],
            "considered": list(self.considered),
            "notes": list(self.notes),
            "verdicts": [v._asdict() for v in self.verdicts],
            "error": self.error,
            "verification": {k: _plain(v) for k, v in self.verification.items()},
            "number": self.number,
            "component": self.component,
            "bytes": self.bytes,
            "drawing": dict(self.drawing),
        }

    def reasons(self) -> list[str]:
        """The reason, one line for each lowering where it is a summary of theirs."""
        said = [f"{v.lowering}: {v.reason}" for v in self.verdicts]
        if self.reason == summary(self.verdicts):
            return said
        if self.reason == LEFT + summary(self.verdicts):
            return [LEFT + said[0], *said[1:]]
        return [self.reason]

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Entry:
        """What `to_dict` made. Sizes and dtypes that became names stay names."""
        lists = {name: tuple(found[name]) for name in ("inputs", "considered", "notes")}
        verdicts = tuple(LoweringVerdict(**v) for v in found["verdicts"])
        return Entry(**{**found, **lists, "verdicts": verdicts})

    def __str__(self) -> str:
        did = f"{self.outcome} by {self.lowering}" if self.outcome == "rewritten" else self.outcome
        where = self.location or self.module or "unknown place"
        return f"{self.idiom} at {where}: {did}: {self.reason}"


@dataclass
class Ledger:
    """The entries of one compiled graph. looked_for: the idioms that were looked for in it.

    changes: what passes over the whole graph did outside of the sites. They count in no total.
    ranks: of a process group, those that compiled it alike; empty where it is one process's.
    """

    graph: str
    entries: list[Entry] = field(default_factory=list)
    seconds: float = 0.0
    looked_for: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    from_cache: bool = False
    ranks: tuple[int, ...] = ()
    changes: list[Change] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        assert entry.outcome in OUTCOMES, entry.outcome
        self.entries.append(entry)
        log.debug("%s", entry)

    def changed(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.changes.append(change)
            log.debug("%s", change)

    def take_back(self, reason: str, since: int = 0, whole: bool = False) -> None:
        """Say of the changes from that place on that they were taken back.

        whole: those too that stay where a graph is compiled again without rewrites.
        """
        for at, change in enumerate(self.changes):
            if at >= since and change.verdict == "taken" and (whole or not change.stays):
                self.changes[at] = change.taken_back(reason)

    def refuse_rewritten(self, reason: str, error: str, whole: bool = False) -> None:
        """Say of every rewritten site, and of every change, that it was taken back, and why."""
        self.take_back(reason, whole=whole)
        for at, entry in enumerate(self.entries):
            if entry.outcome == "rewritten":
                verdicts = tuple(
                    v._replace(verdict="failed", reason=reason) if v.verdict == "taken" else v
                    for v in entry.verdicts
                )
                self.entries[at] = replace(
                    entry, outcome="refused", lowering=None, reason=reason, error=error,
                    verdicts=verdicts,
                )  # fmt: skip

    def choices(self) -> str:
        """What was chosen at each site, as a text to compare with another process's."""
        chosen = [(e.idiom, e.module, e.outcome, e.lowering) for e in self.entries]
        return json.dumps(chosen)

    def to_dict(self) -> dict[str, Any]:
        return {
            "graph": self.graph,
            "pass_seconds": self.seconds,
            "looked_for": list(self.looked_for),
            "notes": list(self.notes),
            "ranks": list(self.ranks),
            "sites": [e.to_dict() for e in self.entries],
            "changes": [_plain_values(c.to_dict()) for c in self.changes],
        }

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Ledger:
        """What `to_dict` made, in another process say."""
        entries = [Entry.from_dict(site) for site in found["sites"]]
        return Ledger(
            graph=str(found["graph"]),
            entries=entries,
            seconds=float(found["pass_seconds"]),
            looked_for=tuple(found["looked_for"]),
            notes=list(found["notes"]),
            ranks=tuple(found.get("ranks", ())),
            changes=[Change.from_dict(change) for change in found.get("changes", ())],
        )


_LOCK = threading.Lock()
_HISTORY: collections.deque[Ledger] = collections.deque(maxlen=4096)


def publish(ledger: Ledger) -> None:
    """Add a finished graph's ledger to this process's history and to torch's structured trace."""
    with _LOCK:
        _HISTORY.append(ledger)
    child_ledgers.hand_over(ledger.to_dict)
    _trace(ledger)


def amend(ledger: Ledger) -> None:
    """Hand on what has become of a graph whose ledger was published."""
    child_ledgers.hand_over(ledger.to_dict, amends=True)
    _trace(ledger)


def history() -> list[Ledger]:
    """The ledgers of the graphs that this process compiled with the backend, oldest first."""
    with _LOCK:
        return list(_HISTORY)


def clear_history() -> None:
    with _LOCK:
        _HISTORY.clear()


def to_dict(
    ledgers: Iterable[Ledger], environment: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The documented JSON form: every site of all graphs in one flat list, each with its graph's
    name. Sites with the same nodes share one drawing.
    """
    ledgers = list(ledgers)
    drawings: dict[str, int] = {}
    sites = [
        {"graph": g.graph, **e.to_dict(), "drawing": _shared(e.drawing, drawings)}
        for g in ledgers
        for e in g.entries
    ]
    return {
        "format": FORMAT_VERSION,
        "environment": dict(environment or {}),
        "graphs": [
            {
                "graph": g.graph,
                "sites": len(g.entries),
                "changes": len(g.changes),
                "pass_seconds": round(g.seconds, 6),
                "from_cache": g.from_cache,
                "notes": list(g.notes),
                "ranks": list(g.ranks),
            }
            for g in ledgers
        ],
        "sites": sites,
        "changes": [
            {"graph": g.graph, **_plain_values(c.to_dict())} for g in ledgers for c in g.changes
        ],
        "drawings": [json.loads(text) for text in drawings],
    }


def from_document(found: Mapping[str, Any]) -> list[Ledger]:
    """The graphs of the documented JSON form, which does not say what was looked for in them."""
    drawings = found.get("drawings", ())
    sites: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for site in found["sites"]:
        position = site.get("drawing")
        own = {k: v for k, v in site.items() if k != "graph"}
        own["drawing"] = {} if position is None else drawings[position]
        sites[site["graph"]].append(own)
    changes: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for change in found.get("changes", ()):
        changes[change["graph"]].append({k: v for k, v in change.items() if k != "graph"})
    return [
        Ledger.from_dict(
            {**g, "looked_for": (), "sites": sites[g["graph"]], "changes": changes[g["graph"]]}
        )
        for g in found["graphs"]
    ]


def _shared(drawing: Mapping[str, Any], drawings: dict[str, int]) -> int | None:
    """The position of the drawing among those of the document; None where there is nothing to
    draw.
    """
    if not any(drawing.values()):
        return None
    return drawings.setdefault(json.dumps(drawing), len(drawings))


def totals(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Elementary idioms counted by outcome: {"rms_norm": {"rewritten": 2, "kept": 1, "refused":
    0}}.
    """
    counts: dict[str, dict[str, int]] = {}
    for entry in entries:
        for name, count in entry.covers.items():
            row = counts.setdefault(name, dict.fromkeys(OUTCOMES, 0))
            row[entry.outcome] += count
    return counts


def of_rank(path: str, rank: int) -> str:
    """Ranks of a process group are given one path: `ledger.json` is rank 0's, `ledger.rank1.json`
    the next one's.
    """
    name, suffix = os.path.splitext(path)
    return f"{name}.rank{rank}{suffix}" if rank else path


def write_report(path: str, document: Mapping[str, Any]) -> None:
    """Write the file of the option `report`. A file that cannot be written costs one warning, not a
    compile.
    """
    try:
        write_json(path, document)
    except OSError as error:
        if path not in _UNWRITABLE:
            _UNWRITABLE.add(path)
            log.warning("rocm_passes: the report %s cannot be written: %s", path, error)


_UNWRITABLE: set[str] = set()


def write_json(path: str, document: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """mkstemp's files are for their owner alone; a report is for whoever the user's other files are
    for.
    """
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    """JSON's own types; symbolic sizes, dtypes and devices become their names."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else repr(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value).removeprefix("torch.")


def _plain_values(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in found.items()}


def _trace(ledger: Ledger) -> None:
    from torch._logging._internal import trace_structured

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"rocm_passes_{ledger.graph}", "encoding": "json"},
        payload_fn=lambda: json.dumps(ledger.to_dict()),
    )

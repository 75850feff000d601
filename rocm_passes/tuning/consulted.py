"""What a graph's choices depend on: the measurements that were asked for while it was compiled.

Inductor's cache key must hold the choices of the graph at hand, but it is computed before the pass
runs. So what a graph asked for is kept beside the caches, with the token that its key had. While
every question has the same answer, the graph keeps the token: measuring something else recompiles
nothing, and code that was compiled while its calls were measured is found by the next process.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch._inductor.runtime.cache_dir_utils import cache_dir

from rocm_passes.report.ledger import write_json

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
#: Inductor's own code among a site's candidates.
INDUCTOR = "inductor"
CONVOLUTION, SITE = "convolution", "site"
#: Of a graph of which nothing is known yet.
FIRST = "first"


@dataclass(frozen=True)
class Asked:
    """One question to the measurements. chosen: the answer; "" where rules decided.

    unmeasured: it would have been measured, had there been time. mib_at_most: the memory bound of a
    convolution; given: the user gave it. hidden: the host's time did not count (`sites.pick`).
    """

    kind: str
    machine: str
    key: str
    able: tuple[str, ...]
    chosen: str
    unmeasured: bool = False
    hidden: bool = False
    mib_at_most: float | None = None
    given: bool = False


@dataclass
class Record:
    """The questions of one graph, in order, and the token of its cache key."""

    token: str = FIRST
    asked: dict[str, Asked] = field(default_factory=dict)

    def note(self, each: Asked) -> None:
        self.asked[f"{each.machine} {each.key}"] = each

    def to_dict(self) -> dict[str, Any]:
        asked = [asdict(each) for each in self.asked.values()]
        return {"format": FORMAT_VERSION, "token": self.token, "asked": asked}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Record:
        """Raises ValueError, KeyError or TypeError on anything else."""
        if document["format"] != FORMAT_VERSION:
            raise ValueError(f"format {document['format']!r}")
        record = Record(str(document["token"]))
        for each in document["asked"]:
            record.note(Asked(**{**each, "able": tuple(each["able"])}))
        return record


_RECORD: ContextVar[Record | None] = ContextVar("what a graph asks", default=None)


@contextmanager
def recording(record: Record) -> Iterator[None]:
    """What is asked meanwhile is noted there."""
    token = _RECORD.set(record)
    try:
        yield
    finally:
        _RECORD.reset(token)


def note(each: Asked) -> None:
    record = _RECORD.get()
    if record is not None:
        record.note(each)


def record_of(key: str, answer: Callable[[Asked], str], may_measure: bool) -> Record:
    """The record to compile a graph with. key: of the graph and of all that is no measurement.

    answer: what would be chosen now. may_measure: what was left unmeasured can be measured now.
    """
    kept = _read(key)
    if kept is None:
        return Record()
    questions = list(kept.asked.values())
    answers = [answer(each) for each in questions]
    unfinished = may_measure and any(each.unmeasured for each in questions)
    if not unfinished and answers == [each.chosen for each in questions]:
        return Record(kept.token)
    return Record(_token(kept, answers))


def keep(key: str, record: Record) -> None:
    """A folder that cannot be written costs the next process a compile at most."""
    if not record.asked:
        return
    try:
        write_json(str(_file(key)), record.to_dict())
    except OSError as error:
        log.debug("rocm_passes: what a graph asked was not kept: %s", error)


def _token(kept: Record, answers: Sequence[str]) -> str:
    """Another one than the kept record's: that one's code was compiled with other answers."""
    text = json.dumps([kept.token, sorted(kept.asked), answers])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(key: str) -> Record | None:
    try:
        return Record.from_dict(json.loads(_file(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(key: str) -> Path:
    return Path(cache_dir()) / "rocm_passes" / f"{key}.asked.json"

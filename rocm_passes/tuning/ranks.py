"""The ranks of a process group agree on each measured choice, through the group's key-value store.

    rank 0    known? no.  claims the key, measures, writes the decision
    rank 1    known? no.  the key is claimed: waits, reads the decision
    rank 2    compiles an hour later, or alone: reads the decision, or claims the key itself

No collective is called: ranks compile in any order, late, alone or never. A decision is written
once (compare_set): whoever is second reads what stands there. A rank that has waited long enough
writes "by rule", and a measurement that comes after that is not used. So all ranks decide alike,
whatever happens. Rank 0's file of choices is the group's: other ranks start from it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from rocm_passes.policy import bounds
from rocm_passes.target import Target
from rocm_passes.tuning.store import Choices, Measured, StoreError, dump, loads

T = TypeVar("T")
log = logging.getLogger(__name__)


class Register(Protocol):
    """What is used of torch.distributed.Store."""

    def check(self, keys: list[str], /) -> bool: ...
    def get(self, key: str, /) -> bytes: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


@dataclass(frozen=True)
class Decision:
    """What all ranks go by for one call. measured: None: the rules decide, because of `why`.

    rank, card: who wrote it, and the GPU there. waited: seconds that this rank waited for it.
    """

    rank: int
    card: str
    measured: Measured | None = None
    why: str = ""
    waited: float = 0.0

    def to_text(self) -> str:
        measured = None if self.measured is None else self.measured.to_dict()
        return json.dumps([self.rank, self.card, measured, self.why])

    @staticmethod
    def from_text(text: bytes, waited: float = 0.0) -> Decision:
        rank, card, measured, why = json.loads(text)
        found = None if measured is None else Measured.from_dict(measured)
        return Decision(int(rank), str(card), found, str(why), waited)


class Ranks:
    """One process group, as one of its ranks sees it."""

    def __init__(
        self,
        register: Register,
        rank: int,
        size: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rank = rank
        self.size = size
        self._register = register
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.RLock()
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._base: Choices | None = None
        self._cards: dict[int, str] = {}
        self._lost = ""

    def base(self, mine: Callable[[], Choices], card: str) -> Choices:
        """The choices that all ranks start from: rank 0's, unless it writes none in time."""
        with self._lock:
            if self._base is None:
                self._base = self._reaching(lambda: self._agreed_base(mine(), card)) or {}
            return self._base

    def decided(
        self,
        where: str,
        key: str,
        card: str,
        known: Measured | None,
        measure: Callable[[], Measured | None] | None,
        limit: float,
    ) -> Decision:
        """The group's decision on a call; made here where no other rank has made it or is at it.

        known: what this rank has measured before. measure: None where its time is spent. limit:
        seconds to wait for another rank's measurement.
        """
        with self._lock:
            found = self._reaching(
                lambda: self._decided(f"{where}|{key}", card, known, measure, limit)
            )
            if found is None:
                found = Decision(self.rank, card, None, self._lost)
            if found.measured is None:
                self.say(f"{key}: chosen by rule: {found.why}")
            self._see(found.rank, found.card, card)
            return found

    def same_graph(self, name: str, choices: str) -> None:
        """Hold this rank's choices in a graph against those of the first rank that compiled it.

        name: of the graph, the same on each rank. Waits for nobody.
        """

        def compare() -> bool:
            mine = json.dumps([self.rank, choices])
            rank, theirs = json.loads(self._set_once(f"graph/{name}", mine))
            if theirs != choices and rank != self.rank:
                self.say(
                    f"this rank ({self.rank}) rewrote this graph otherwise than rank {rank}: the "
                    "two come from different caches, options or installations"
                )
            return True

        self._reaching(compare)

    def look_for_other_cards(self, card: str) -> None:
        """Say which cards the ranks have that compiled something so far, where they differ."""

        def look() -> bool:
            self._set_once(f"card/{self.rank}", card)
            for rank in range(self.size):
                if rank not in self._cards and self._register.check([f"card/{rank}"]):
                    self._see(rank, self._register.get(f"card/{rank}").decode(), card)
            return True

        self._reaching(look)

    def say(self, note: str) -> None:
        """Note once, for the ledger of the graph that is being compiled, and in the log."""
        with self._lock:
            if note not in self._said:
                self._said.add(note)
                self._notes.append(note)
                log.warning("rocm_passes: rank %d: %s", self.rank, note)

    def taken_notes(self) -> list[str]:
        with self._lock:
            notes, self._notes = self._notes, []
            return notes

    def _agreed_base(self, mine: Choices, card: str) -> Choices:
        if self.rank != 0 and not self._waited("base", limit := bounds.RANK_ZERO_SECONDS.value):
            self.say(
                f"rank 0 has compiled nothing in {limit:g} s: the first rank that did gives the "
                "measured choices that all start from"
            )
        written = json.dumps([self.rank, card, dump(mine)])
        rank, theirs, text = json.loads(self._set_once("base", written))
        self._see(rank, theirs, card)
        try:
            return loads(text, f"the choices of rank {rank}")
        except StoreError as error:
            self.say(f"{error}; they are not used")
            return {}

    def _decided(
        self,
        name: str,
        card: str,
        known: Measured | None,
        measure: Callable[[], Measured | None] | None,
        limit: float,
    ) -> Decision:
        decision = f"decision/{name}"
        if self._register.check([decision]):
            return Decision.from_text(self._register.get(decision))
        if known is not None:
            return self._write(decision, Decision(self.rank, card, known))
        if measure is None:
            why = f"rank {self.rank} may measure no more (tune_seconds)"
            return self._write(decision, Decision(self.rank, card, None, why))
        claimant = self._set_once(f"claim/{name}", str(self.rank)).decode()
        if claimant == str(self.rank):
            return self._write(decision, self._measured(card, measure))
        began = self._clock()
        why = ""
        if not self._waited(decision, limit):
            why = f"rank {self.rank} waited {limit:.0f} s for rank {claimant}, which measures it"
        return self._write(decision, Decision(self.rank, card, None, why), self._clock() - began)

    def _measured(self, card: str, measure: Callable[[], Measured | None]) -> Decision:
        try:
            found = measure()
        except Exception as error:
            # The other ranks wait for a decision: on this one's fault they go by rule with it.
            log.exception("rocm_passes: measuring failed")
            return Decision(self.rank, card, None, f"rank {self.rank} failed to measure: {error}")
        why = "" if found is not None else f"rank {self.rank} had no time left to measure"
        return Decision(self.rank, card, found, why)

    def _write(self, name: str, decision: Decision, waited: float = 0.0) -> Decision:
        """The decision that stands: this one, unless another rank was first."""
        return Decision.from_text(self._set_once(name, decision.to_text()), waited)

    def _waited(self, name: str, limit: float) -> bool:
        """Whether another rank writes it within so many seconds."""
        until = self._clock() + limit
        while not self._register.check([name]):
            if self._clock() >= until:
                return False
            self._sleep(bounds.POLL_SECONDS.value)
        return True

    def _set_once(self, name: str, text: str) -> bytes:
        return self._register.compare_set(name, "", text)

    def _see(self, rank: int, card: str, mine: str) -> None:
        self._cards[rank] = card
        self._cards[self.rank] = mine
        if card != mine:
            self.say(
                f"the ranks have different cards: {_by_card(self._cards)}; what was measured on "
                "one holds for those of its architecture, and graphs may differ between them"
            )

    def _reaching(self, use: Callable[[], T]) -> T | None:
        """What `use` gives, or None where the store can't be reached: then, and from then on."""
        if self._lost:
            return None
        try:
            return use()
        except (RuntimeError, ValueError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._lost = f"the process group's store can't be reached: {said}"
            log.debug("rocm_passes: %s", self._lost)
            return None


def card(target: Target) -> str:
    """What tells the GPUs of a process group apart, for people."""
    return f"{target.label} {target.name}"


def _by_card(cards: Mapping[int, str]) -> str:
    kinds: dict[str, list[int]] = {}
    for rank, card in sorted(cards.items()):
        kinds.setdefault(card, []).append(rank)
    return ", ".join(f"{card} (ranks {', '.join(map(str, r))})" for card, r in kinds.items())


_LOCK = threading.Lock()
_CURRENT: tuple[Any, Ranks] | None = None


def current() -> Ranks | None:
    """The default process group's ranks; None where there is none, or one of a single rank."""
    global _CURRENT
    with _LOCK:
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
            _CURRENT = None
            return None
        group = dist.group.WORLD
        if _CURRENT is None or _CURRENT[0] is not group:
            _CURRENT = (group, Ranks(_register(), dist.get_rank(), dist.get_world_size()))
        return _CURRENT[1]


def _register() -> Register:
    """The store by which the group was made; torch has no public name for it (2.11 to 2.15)."""
    c10d = dist.distributed_c10d
    try:
        register: Register = c10d.PrefixStore("rocm_passes", c10d._get_default_store())
    except Exception as error:
        # A group may have been made without one (MPI).
        return _NoStore(str(error))
    return register


class _NoStore:
    """In place of a store that there is not: each use is answered by the reason."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def check(self, keys: list[str], /) -> bool:
        raise RuntimeError(self._reason)

    def get(self, key: str, /) -> bytes:
        raise RuntimeError(self._reason)

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        raise RuntimeError(self._reason)

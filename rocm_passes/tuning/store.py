"""What was measured, kept in a small JSON file that can be read, committed and merged.

    {
     "format": 1,
     "choices": {
      "gfx942 / torch 2.11.0 / miopen 3.5.2": {
       "conv3d bf16 x 1x96x6x480x832 w 96x96x3x3x3 pad 1x1 channels-last": {
        "ms": {"direct": 3.01, "taps": 1.93}, "mib": {"direct": 154, "taps": 462}
       }
      }
     }
    }

The file holds measurements; what to choose follows from them. Writers lock, read, merge and
replace, so that processes may share one file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocm_passes.errors import RocmPassesError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1

Choices = dict[str, dict[str, "Measured"]]


class StoreError(RocmPassesError, ValueError):
    """A file of measured choices cannot be read."""


@dataclass(frozen=True)
class Measured:
    """Each lowering's time in milliseconds, and its memory beside inputs and output in MiB.

    skipped: lowerings that were left out, each with its reason. host_ms: of sites, what the host
    takes to enqueue each.
    """

    ms: Mapping[str, float]
    mib: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)
    host_ms: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"ms": dict(self.ms), "mib": dict(self.mib)}
        if self.skipped:
            document["skipped"] = dict(self.skipped)
        if self.host_ms:
            document["host_ms"] = dict(self.host_ms)
        return document

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Measured:
        return Measured(
            {str(k): float(v) for k, v in document["ms"].items()},
            {str(k): int(v) for k, v in document["mib"].items()},
            {str(k): str(v) for k, v in document.get("skipped", {}).items()},
            {str(k): float(v) for k, v in document.get("host_ms", {}).items()},
        )

    def best(self, mib_at_most: float | None = None) -> str | None:
        """The fastest lowering within the memory bound; None where there is none."""
        able = [n for n in self.ms if mib_at_most is None or self.mib[n] <= mib_at_most]
        return min(able, key=lambda n: (self.ms[n], n), default=None)


def default_path() -> Path:
    """`$XDG_CACHE_HOME/rocm-passes/choices.json`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "rocm-passes" / "choices.json"


def load(path: Path) -> Choices:
    """The file's content, empty where there is no file. Raises StoreError on a file that is none of
    ours.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    return loads(text, str(path))


def loads(text: str, source: str) -> Choices:
    """What `dump` wrote. source: names the text in the error. Raises StoreError on other text."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise StoreError(
            f"{source}: not a file of measured choices: it is no JSON ({error})"
        ) from error
    if not isinstance(document, dict) or "format" not in document:
        raise StoreError(f"{source}: not a file of measured choices: it names no format")
    try:
        if document["format"] != FORMAT_VERSION:
            raise StoreError(
                f"{source}: format {document['format']!r}; this version reads {FORMAT_VERSION}"
            )
        return {
            str(machine): {str(key): Measured.from_dict(m) for key, m in entries.items()}
            for machine, entries in document["choices"].items()
        }
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{source}: not a file of measured choices: {type(error).__name__}: {error}"
        ) from error


def dump(choices: Choices) -> str:
    """Sorted, one measurement a line, so that two files merge line by line."""
    machines = []
    for machine in sorted(choices):
        entries = [
            f"   {json.dumps(key)}: {json.dumps(choices[machine][key].to_dict())}"
            for key in sorted(choices[machine])
        ]
        machines.append(f"  {json.dumps(machine)}: {{\n" + ",\n".join(entries) + "\n  }")
    body = ",\n".join(machines)
    return f'{{\n "format": {FORMAT_VERSION},\n "choices": {{\n{body}\n }}\n}}\n'


def merged(first: Choices, second: Choices) -> Choices:
    """Both; where both measured the same call, each lowering's smaller time (noise only
    ever adds).
    """
    result = {machine: dict(entries) for machine, entries in first.items()}
    for machine, entries in second.items():
        mine = result.setdefault(machine, {})
        for key, theirs in entries.items():
            mine[key] = _merged_entry(mine[key], theirs) if key in mine else theirs
    return result


def _merged_entry(a: Measured, b: Measured) -> Measured:
    names = sorted({*a.ms, *b.ms})
    ms = {n: min(m.ms[n] for m in (a, b) if n in m.ms) for n in names}
    mib = {n: max(m.mib[n] for m in (a, b) if n in m.mib) for n in names}
    skipped = {k: v for k, v in sorted({**a.skipped, **b.skipped}.items()) if k not in ms}
    hosts = sorted({*a.host_ms, *b.host_ms})
    host = {n: min(m.host_ms[n] for m in (a, b) if n in m.host_ms) for n in hosts}
    return Measured(ms, mib, skipped, host)


class Store:
    """One file of measured choices, read once and kept up to date in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._choices: Choices | None = None

    def find(self, machine: str, key: str) -> Measured | None:
        with self._lock:
            return self._content().get(machine, {}).get(key)

    def add(self, machine: str, key: str, measured: Measured, anew: bool = False) -> None:
        """Keep a measurement here and in the file; a file that can't be written costs a warning
        only. anew: in the place of what was known of the call.
        """
        with self._lock:
            new = {machine: {key: measured}}
            content = self._content()
            self._choices = merged(_without(content, new) if anew else content, new)
            try:
                update(self.path, new, anew)
            except OSError as error:
                log.warning(
                    "rocm_passes: %s can't be written (%s); choices last for this process",
                    self.path,
                    error,
                )

    def choices(self) -> Choices:
        """All that is known, as it stands now."""
        with self._lock:
            return {machine: dict(entries) for machine, entries in self._content().items()}

    def _content(self) -> Choices:
        if self._choices is None:
            try:
                self._choices = load(self.path)
            except StoreError as error:
                log.warning("rocm_passes: %s; it is left alone and its choices are not used", error)
                self._choices = {}
        return self._choices


_STORES: dict[Path, Store] = {}
_STORES_LOCK = threading.Lock()


def store(path: str = "") -> Store:
    """The process's store of that file, or of the default file."""
    where = Path(path).expanduser() if path else default_path()
    with _STORES_LOCK:
        return _STORES.setdefault(where, Store(where))


def update(path: Path, new: Choices, anew: bool = False) -> None:
    """Merge into the file. anew: what it has of these calls goes. Raises OSError where it can't be
    written or is none of ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        try:
            content = load(path)
        except StoreError as error:
            raise OSError(str(error)) from error
        _replace(path, dump(merged(_without(content, new) if anew else content, new)))


def _without(content: Choices, calls: Choices) -> Choices:
    """The content less these calls of these machines."""
    return {
        machine: {k: m for k, m in entries.items() if k not in calls.get(machine, {})}
        for machine, entries in content.items()
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, across processes where the system has file locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path.with_name(path.name + ".lock"), "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

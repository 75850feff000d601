"""Bytes, times, the machine's floor and errors of sites, as bars where they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rocm_passes.errors import plural

SiteRecord = Mapping[str, Any]

Row = tuple[str, float]
Shown = Callable[[float], str]
FLOOR = "machine's floor"
INDUCTOR = "Inductor's own code"
#: Different sizes that a group shows; a decode has dozens.
MOST_SIZES = 6
#: What the library does with the call as the model has it: the others are compared with it.
AS_IT_IS = "direct"


def saved_ms(site: SiteRecord) -> float | None:
    """Measured milliseconds that the taken lowering saves, against the call as it is."""
    times = _times(site)
    taken = times.get(str(site["lowering"]))
    return times[AS_IT_IS] - taken if taken is not None and AS_IT_IS in times else None


def bars(sites: Sequence[SiteRecord], environment: Mapping[str, Any]) -> str:
    """The bytes of all sites, each distinct set of times, and the site that is furthest off."""
    times = dict.fromkeys(_time(site, environment) for site in sites)
    return "".join([_bytes(sites), *times, _errors(sites)])


def _bytes(sites: Sequence[SiteRecord]) -> str:
    counts = Counter(site["bytes"] for site in sites if site.get("bytes"))
    found = counts.most_common(MOST_SIZES)
    rows = [(plural(count, "site"), moved) for moved, count in found]
    return _block("bytes that a call reads and writes at least", rows, size) if rows else ""


def _time(site: SiteRecord, environment: Mapping[str, Any]) -> str:
    times = _times(site)
    if not times:
        return ""
    taken = str(site["lowering"])
    rows = [(f"{name}{' (taken)' if name == taken else ''}", ms) for name, ms in times.items()]
    moved, rate = site.get("bytes"), environment.get("copy_bytes_per_second")
    if moved and rate:
        # What the bytes alone would take at the rate of a large copy on this machine.
        rows.append((FLOOR, 1000 * moved / rate))
    return _block("time of a call, ms", rows)


def _times(site: SiteRecord) -> dict[str, float]:
    """Milliseconds by candidate; of Inductor's own code too, where it was one."""
    figures = {v["lowering"]: v["measured"] for v in site["verdicts"] if v.get("measured")}
    times = {name: found["ms"] for name, found in figures.items()}
    inductor = [f["inductor_ms"] for f in figures.values() if "inductor_ms" in f]
    return {**({INDUCTOR: inductor[0]} if inductor else {}), **times}


def _errors(sites: Sequence[SiteRecord]) -> str:
    """Distances from float64 of the verified site that is furthest off, against its original."""
    verified = [site["verification"] for site in sites if site["verification"].get("status")]
    if not verified:
        return ""
    worst = max(verified, key=_excess)
    both = (("rewritten", "error"), ("original", "original_error"))
    rows = [(name, value) for name, key in both if (value := _number(worst.get(key))) is not None]
    said = " ".join(str(worst[k]) for k in ("status", "contract", "reason") if worst.get(k))
    title = f"largest distance from float64 ({said}; worst of {plural(len(verified), 'site')})"
    return _block(title, rows) if rows else f'<p class="verified">verified: {escape(said)}</p>'


def _excess(found: Mapping[str, Any]) -> float:
    error, original = _number(found.get("error")), _number(found.get("original_error"))
    return -1.0 if error is None or original is None else error / (original or 1e-300)


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _block(title: str, rows: Sequence[Row], shown: Shown = "{:.3g}".format) -> str:
    """Rows of a name, a bar and a figure; the longest bar is the largest figure."""
    largest = max(value for _, value in rows) or 1.0
    lines = "".join(
        f'<dt>{escape(name)}</dt><dd><i class="{"floor" if name == FLOOR else "measure"}" '
        f'style="width:{70 * max(value, 0.0) / largest:.1f}%"></i><span>{shown(value)}</span></dd>'
        for name, value in rows
    )
    return f'<div class="figures"><b>{escape(title)}</b><dl>{lines}</dl></div>'


def size(count: float) -> str:
    """`512 B`, `3.2 KiB`, `24 MiB`."""
    size, units = float(count), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    for larger in units:
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"

"""What the values of options may be: each function takes a source to name and a value, and returns
it checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from rocm_passes.errors import OptionError, nearest
from rocm_passes.target import Target

Names = Callable[[], Mapping[str, tuple[str, ...]]]
#: Gives the names of the lowerings of each idiom. The registry, which stands above this module,
#: declares it.
_NAMES: list[Names] = []


def declare(names: Names) -> None:
    """Say how to learn which idioms there are, and the lowerings of each."""
    _NAMES[:] = [names]


def _declared() -> Mapping[str, tuple[str, ...]]:
    return _NAMES[0]() if _NAMES else {}


def choice(*allowed: str) -> Callable[[str, object], str]:
    def check(source: str, value: object) -> str:
        if value not in allowed:
            raise OptionError.value(
                source,
                f"one of {', '.join(map(repr, allowed))}",
                value,
                nearest(str(value), allowed),
            )
        return str(value)

    return check


def idioms(source: str, value: object) -> tuple[str, ...]:
    """Idiom names: "all", "none", a comma list or a sequence; a leading '-' takes a name out of
    "all".
    """
    known = tuple(_declared())
    words = [w.strip() for w in value.split(",")] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple, set, frozenset)) or not all(
        isinstance(w, str) for w in words
    ):
        raise OptionError.value(source, "a comma-separated string or a list of idiom names", value)
    words = [w for w in words if w]
    chosen = set(known) if not words or all(w.startswith("-") for w in words) else set()
    for word in words:
        name = word.removeprefix("-")
        if word in ("all", "none"):
            chosen = set(known) if word == "all" else set()
        elif name not in known:
            raise OptionError.value(
                source,
                f"'all', 'none' or idioms among {', '.join(known)}",
                name,
                nearest(name, known),
            )
        elif word.startswith("-"):
            chosen.discard(name)
        else:
            chosen.add(name)
    return tuple(n for n in known if n in chosen)


def lowerings(source: str, value: object) -> tuple[tuple[str, str], ...]:
    """Forced lowerings: {"rms_norm": "triton"} or "rms_norm=triton,conv3d=unfold"."""
    if isinstance(value, str):
        words = [w.strip() for w in value.split(",") if w.strip()]
        if not all("=" in w for w in words):
            raise OptionError.value(source, "pairs such as 'rms_norm=triton'", value)
        value = dict(w.split("=", 1) for w in words)
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping):
        raise OptionError.value(source, "a dict of idiom to lowering", value)
    known = _declared()
    for idiom, lowering in value.items():
        if idiom not in known:
            raise OptionError.value(
                source, f"idioms among {', '.join(known)}", idiom, nearest(idiom, known)
            )
        if lowering not in known[idiom]:
            raise OptionError.value(
                f"{source} for {idiom}",
                f"one of {', '.join(map(repr, known[idiom]))}",
                lowering,
                nearest(str(lowering), known[idiom]),
            )
    return tuple(sorted((str(k), str(v)) for k, v in value.items()))


def verify(source: str, value: object) -> str:
    """ "off", "drawn" or "live"; True is "drawn"."""
    words = {
        False: "off",
        True: "drawn",
        "0": "off",
        "false": "off",
        "1": "drawn",
        "true": "drawn",
        "on": "drawn",
    }
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, (bool, str)) and key in words:
        return words[key]
    return choice("off", "drawn", "live")(source, value)


#: Calls that the option check_finite watches, where it is True.
FINITE_CALLS = 3


def finite_calls(source: str, value: object) -> int:
    """How many calls to watch: True is FINITE_CALLS, False none."""
    words = {"false": 0, "true": FINITE_CALLS}
    if isinstance(value, bool):
        return FINITE_CALLS if value else 0
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    return count(source, value)


def optional_count(source: str, value: object) -> int | None:
    return None if value is None or value == "" else count(source, value)


def count(source: str, value: object) -> int:
    try:
        count = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else -1
    except ValueError:
        count = -1
    if count < 0:
        raise OptionError.value(source, "a whole number, 0 or more", value)
    return count


def seconds(source: str, value: object) -> float:
    try:
        is_number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        seconds = float(value) if is_number else -1.0  # type: ignore[arg-type]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise OptionError.value(source, "a number of seconds, 0 or more", value)
    return seconds


def architecture(source: str, value: object) -> str:
    """The name of an architecture, or ""."""
    if value == "" or (isinstance(value, str) and Target.named(value) is not None):
        return str(value)
    raise OptionError.value(source, "an architecture such as 'gfx942'", value)


def path(source: str, value: object) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise OptionError.value(source, "a file path", value)
    path = os.fspath(value)
    if path and os.path.isdir(os.path.expanduser(path)):
        raise OptionError(f"{source}: expected a file path, found the folder {path!r}")
    return path

"""Every error that a user can meet, in one place. Each message names what was expected and what was
found.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RocmPassesError(Exception):
    """Base class of the errors that this package raises on purpose."""


class OptionError(RocmPassesError, ValueError):
    """An option of the backend, or its environment variable, has a wrong name or a wrong value."""

    @classmethod
    def unknown(cls, name: str, known: Iterable[str]) -> OptionError:
        return cls(f"unknown option {name!r} for backend 'rocm_diffusion'{nearest(name, known)}")

    @classmethod
    def value(cls, source: str, expected: str, found: object, hint: str = "") -> OptionError:
        return cls(f"{source}: expected {expected}, found {found!r}{hint}")


class TorchError(RocmPassesError, ImportError):
    """torch is missing, or older than this package needs."""


class LaunchError(RocmPassesError, RuntimeError):
    """A kernel of ours could not be launched when a compiled graph ran."""


class ContractError(RocmPassesError, ValueError):
    """An operator of ours was called with arguments that it does not take."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'select'?"`, or the empty string where nothing comes near."""
    others = [each for each in known if each != name]
    close = difflib.get_close_matches(name, others, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def plural(count: int, noun: str) -> str:
    """`1 site`, `2 sites`, `0 sites`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""Which models the fast suite traces: few, in which every spelling of every idiom occurs.

A model takes 3 to 20 s (Dynamo, AOTAutograd, the pass). spellings.txt names the models of each
spelling that the zoo knows; test_spellings.py holds it against the ledgers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rocm_passes.report.ledger import Entry

from . import DEMO

TABLE = Path(__file__).with_name("spellings.txt")

#: The demo's five; then, of the models that have a spelling, the cheapest ones.
FAST = (
    *DEMO,
    "auraflow",
    "cogvideox",
    "cosmos",
    "hunyuan_video",
    "ltx",
    "ltx2",
    "lumina2",
    "mochi",
    "omnigen",
    "sd35",
    "wan_i2v",
    "text_gemma2",
    "text_qwen3",
    "text_t5",
    "vae_cosmos",
    "vae_hunyuan_video",
    "vae_ltx",
    "vae_ltx2",
)
#: Of this one the fast suite compiles the decoder alone (tests/zoo/decoded.py).
DECODED = "vae_cogvideox"

#: Parameters of an entry that name a way of writing its idiom down, and those that are there or
#: not. Sizes, dtypes and eps vary within a spelling.
_NAMES = ("spelling", "norm", "pairs", "form", "mode", "approximate", "act")
_PARTS = ("front_frames", "source_pixels", "branch_norm", "across_heads", "mask", "tokens_from")


def chosen(names: Iterable[str]) -> list[Any]:
    """Values for `parametrize`: models that the fast suite does not trace are marked exhaustive."""
    return [pytest.param(n, marks=() if n in FAST else pytest.mark.exhaustive) for n in names]


def spelling(entry: Entry) -> str:
    """The idiom as the model writes it, in words."""
    given = entry.parameters
    words = [entry.idiom, *(str(given[name]) for name in _NAMES if given.get(name))]
    if "table_dtype" in given:
        words.append("complex tables" if "complex" in str(given["table_dtype"]) else "real tables")
    words += [name for name in _PARTS if given.get(name)]
    words += ["gated"] * (given.get("gate") is not None)
    words += ["modulated twice"] * (given.get("modulations", 1) != 1)
    words += ["weighted"] * (given.get("weight") is not None)
    return " ".join(words)


def table() -> Mapping[str, set[str]]:
    """By spelling, the models that have it. A spelling's models stand indented below it."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in TABLE.read_text().splitlines():
        if line.startswith(" "):
            found[name].update(line.split())
        else:
            name = line
            found[name] = set()
    return found

"""A graph is followed through the pass in few files: those that docs/architecture.md names."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import rocm_passes
from tests.rewriting import rewrite

PACKAGE = Path(rocm_passes.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
MOST = 6
#: What the files that decide and write call: the rooms below and beside, and helpers of one step.
CALLED = (
    *("idioms", "ops", "kernels", "fx", "policy", "report", "passes", "tuning"),
    *("errors.py", "target.py", "options.py", "option_values.py", "environment.py", "backend.py"),
)
#: Helpers: of the cache key, of measuring, of checks that options ask for; the data model.
HELPERS = ("cache_key", "measuring", "validation", "watch", "work", "match", "sources")


def named() -> set[str]:
    """The files of the row of docs/architecture.md."""
    (row,) = re.findall(r"^\| follow a graph through the pass \|([^|]*)\|", PAGE.read_text(), re.M)
    return set(re.findall(r"`(\w+)\.py`", row))


def entered() -> set[str]:
    """The files of the package whose functions run while one site is rewritten."""
    found: set[str] = set()
    root = f"{PACKAGE}/"

    def note(frame: FrameType, event: str, _: Any) -> None:
        # Asked at every call of any function: no more than a comparison of strings.
        if event == "call" and frame.f_code.co_filename.startswith(root):
            found.add(frame.f_code.co_filename.removeprefix(root))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        seen = rewrite(nn.RMSNorm(16), torch.randn(2, 16))
    finally:
        sys.setprofile(before)
    assert seen.only().outcome == "rewritten"
    return found


def test_the_files_in_which_a_graph_is_followed() -> None:
    files = named()
    assert len(files) <= MOST
    steps = {Path(f).stem for f in entered() if not f.startswith(CALLED)} - set(HELPERS)
    assert {"graph_pass", "plan", "choose", "rewriter"} <= steps
    assert steps <= files, steps - files

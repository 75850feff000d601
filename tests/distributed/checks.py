"""How a rank makes its checks: one after another, each with its own file of findings."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from rocm_passes.report.ledger import Entry
from tests.rewriting import Rewritten

Findings = dict[str, Any]
Check = Callable[[], Findings]

CHECKS: dict[str, Check] = {}
#: Made for the whole suite only.
EXHAUSTIVE: set[str] = set()


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def exhaustive(function: Check) -> Check:
    EXHAUSTIVE.add(function.__name__)
    return check(function)


def make(folder: Path, everything: bool) -> None:
    """The checks, in their order. What one raises is its finding, and the next is made."""
    rank = dist.get_rank()
    for name, function in CHECKS.items():
        if name in EXHAUSTIVE and not everything:
            continue
        torch.manual_seed(0)
        began = time.perf_counter()
        try:
            found = function()
        except Exception:
            found = {"raised": traceback.format_exc()}
        finally:
            torch._dynamo.reset()
        found["seconds"] = time.perf_counter() - began
        (folder / f"{name}.{rank}.json").write_text(json.dumps(found))
        dist.barrier()


def sites(found: Rewritten) -> list[list[str | None]]:
    return [said(e) for e in found.sites]


def said(entry: Entry) -> list[str | None]:
    return [entry.idiom, entry.outcome, entry.lowering, entry.reason]


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@contextlib.contextmanager
def two_devices() -> Iterator[None]:
    """diffusers places ranks on accelerators, of which this machine has none."""
    with mock.patch.object(torch.accelerator, "device_count", lambda: 2):
        yield

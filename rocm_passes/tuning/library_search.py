"""The convolution library's own search (cudnn.benchmark, MIOpen's find mode), on inside our regions
only.

torch.backends.cudnn.benchmark is one flag for the whole process. Here it is up while a region of
ours runs that asked for it, and afterwards as it was, exceptions and threads included; who sets it
meanwhile keeps what they set.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from rocm_passes.options import Options
from rocm_passes.policy.bounds import SEARCH_SHARE
from rocm_passes.target import Target
from rocm_passes.tuning import budget
from rocm_passes.tuning.known import machine
from rocm_passes.tuning.store import Measured, store

log = logging.getLogger(__name__)

Compiled = Callable[..., Any]
Shapes = list[tuple[str, tuple[int, ...], tuple[int, ...]]]


class _Flag:
    """cudnn.benchmark, up while anyone needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = False

    @contextmanager
    def up(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._before = torch.backends.cudnn.benchmark
                torch.backends.cudnn.benchmark = True
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                # Off by now: the user has set it, and that stands.
                if self._users == 0 and torch.backends.cudnn.benchmark:
                    torch.backends.cudnn.benchmark = self._before


FLAG = _Flag()


def searching(compiled: Compiled, shapes: Shapes, target: Target, options: Options) -> Compiled:
    """The compiled graph, with the library's search on while it runs, where asked for, within the
    budget.

    A graph whose search outlasted its share of the budget is recorded, and not searched again, in
    this process or in a later one.
    """
    if options.conv_search == "off" or not shapes or not target.is_gpu:
        return compiled
    key = (
        f"search of {len(shapes)} convolutions "
        f"{hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]}"
    )
    return Search(compiled, key, target, options)


class Search:
    """Calls a compiled graph; the first call searches."""

    def __init__(self, compiled: Compiled, key: str, target: Target, options: Options) -> None:
        self._compiled = compiled
        self._key = key
        self._where = machine(target)
        self._limit = options.tune_seconds
        self._store = store(options.choices)
        self._searched = False
        self._off = self._store.find(self._where, key) is not None

    def __call__(self, *args: Any) -> Any:
        if self._off or (not self._searched and self._limit - budget.BUDGET.spent <= 0):
            return self._compiled(*args)
        started = time.perf_counter()
        with FLAG.up():
            result = self._compiled(*args)
        if not self._searched:
            self._account(time.perf_counter() - started)
        return result

    def _account(self, took: float) -> None:
        self._searched = True
        budget.BUDGET.spend(took)
        if took <= SEARCH_SHARE.value * self._limit:
            return
        self._off = True
        self._store.add(
            self._where,
            self._key,
            Measured({}, {}, {"search": f"its first call took {took:.0f} s"}),
        )
        log.warning("rocm_passes: a %s took %.0f s; it won't be repeated", self._key, took)


def convolutions(gm: fx.GraphModule) -> Shapes:
    """Name, input and weight sizes of each convolution that Dynamo traced."""
    found = []
    for node in gm.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if node.op == "call_function" and name.startswith("conv") and len(node.args) > 1:
            found.append((name, _sizes(node.args[0]), _sizes(node.args[1])))
    return found


def _sizes(node: Any) -> tuple[int, ...]:
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return tuple(int(s) if isinstance(s, int) else 0 for s in getattr(value, "shape", ()))

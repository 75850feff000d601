"""Ledgers of graphs that Inductor's caches hold: kept beside the caches, and published again on a
hit.

The pass does not run where a graph comes from a cache, so a second process would have nothing to
report. Each ledger is kept under a hash of what the pass depends on: Dynamo's graph, the inputs'
shapes, and the pass's own cache key.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor.runtime.cache_dir_utils import cache_dir

from rocm_passes.report import ledger as ledgers
from rocm_passes.report.ledger import Ledger

log = logging.getLogger("rocm_passes")


def key_of(
    gm: fx.GraphModule, example_inputs: Sequence[Any], pass_key: str, of_device: bool = True
) -> str:
    """What the ledgers of a Dynamo graph depend on, as a hash.

    of_device: False: the same for devices of all indices, as the ranks of a process group have
    them.
    """
    digest = hashlib.sha256(pass_key.encode())
    digest.update(str(gm.code).encode())
    for value in (*example_inputs, *gm.parameters(), *gm.buffers()):
        digest.update(_description(value, of_device).encode())
    digest.update(str(torch.is_grad_enabled()).encode())
    return digest.hexdigest()


def remember(key: str, graphs: Sequence[Ledger]) -> None:
    """Keep the ledgers. A folder that can't be written to costs nothing but the memory."""
    try:
        ledgers.write_json(str(_file(key)), {"ledgers": [g.to_dict() for g in graphs]})
    except OSError as error:
        log.debug("rocm_passes: the ledgers were not kept: %s", error)


def recall(key: str) -> list[Ledger]:
    """The ledgers that were kept, each marked as one of a cached graph; empty where there
    are none.
    """
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))["ledgers"]
        graphs = [Ledger.from_dict(each) for each in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    for graph in graphs:
        graph.from_cache = True
    return graphs


def _file(key: str) -> Path:
    return Path(cache_dir()) / "rocm_passes" / f"{key}.json"


def _description(value: Any, of_device: bool) -> str:
    if isinstance(value, torch.Tensor):
        device = value.device if of_device else value.device.type
        return f"{value.dtype} {tuple(value.shape)} {value.stride()} {device} {value.requires_grad}"
    return f"{type(value).__name__} {value}"

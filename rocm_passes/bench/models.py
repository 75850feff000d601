"""Workloads of production size, by name."""

from __future__ import annotations

from typing import Any

from rocm_passes.bench.block_models import BLOCKS
from rocm_passes.bench.vae_models import DECODES
from rocm_passes.bench.workload import Workload

WORKLOADS: tuple[Workload, ...] = (*BLOCKS, *DECODES)


def production(name: str) -> dict[str, Any]:
    """The full-size config of that workload's model. Raises KeyError listing the names
    there are.
    """
    return dict(workload(name).config)


def workload(name: str) -> Workload:
    """The workload of that name. Raises KeyError listing the names there are."""
    by_name = {w.name: w for w in WORKLOADS}
    if name not in by_name:
        raise KeyError(f"no workload {name!r}; there are {', '.join(by_name)}")
    return by_name[name]

"""The machine that a ledger comes from, and the ledger's JSON form with it (docs/ledger.md)."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from typing import Any

import torch

from rocm_passes.kernels.aiter import installation
from rocm_passes.report import ledger as ledgers
from rocm_passes.report.ledger import Ledger
from rocm_passes.target import Target
from rocm_passes.tuning.measure import known_copy_rate


def document(graphs: Iterable[Ledger]) -> dict[str, Any]:
    """The documented JSON form of these graphs' ledgers."""
    return ledgers.to_dict(graphs, environment())


def environment() -> dict[str, Any]:
    """What a reader of a ledger must know about the machine that it comes from."""
    import rocm_passes

    target = Target.current()
    aiter = installation.find()
    return {
        "rocm_passes": rocm_passes.__version__,
        "python": platform.python_version(),
        "torch": target.torch_version,
        "hip": torch.version.hip,
        "cuda": torch.version.cuda,
        "triton": target.triton_version,
        "device": target.name,
        "architecture": target.label,
        "aiter": aiter.version if aiter.status == "usable" else aiter.status,
        **{name: _version(name) for name in ("diffusers", "transformers")},
        "copy_bytes_per_second": known_copy_rate(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

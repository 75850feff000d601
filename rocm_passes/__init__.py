"""rocm-passes: a torch.compile backend for diffusion models on AMD GPUs.

    torch.compile(model, backend="rocm_diffusion")

needs no import of this package. What is exported here is for looking at what it did. Importing the
package does not import torch; the first use of an exported name does, and checks its version.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rocm_passes.errors import OptionError, RocmPassesError, TorchError

if TYPE_CHECKING:
    from rocm_passes.backend import rocm_diffusion
    from rocm_passes.diffusers_pipeline import compile_pipeline
    from rocm_passes.explanation import Explanation, explain
    from rocm_passes.report.changes import Change
    from rocm_passes.report.ledger import Entry, Ledger, history

__all__ = [
    "Change",
    "Entry",
    "Explanation",
    "Ledger",
    "OptionError",
    "RocmPassesError",
    "TorchError",
    "compile_pipeline",
    "explain",
    "history",
    "rocm_diffusion",
]
__version__ = "0.1.0"

#: Names that need torch, and the module of each.
_NEEDS_TORCH = {
    "Change": "report.changes",
    "Entry": "report.ledger",
    "Explanation": "explanation",
    "Ledger": "report.ledger",
    "compile_pipeline": "diffusers_pipeline",
    "explain": "explanation",
    "history": "report.ledger",
    "rocm_diffusion": "backend",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rocm_passes.torch_version import check

    check()
    value = getattr(importlib.import_module(f".{_NEEDS_TORCH[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""How operators run. A lowering is one file here, named after its operator, that registers itself
when imported.

    kernels/aiter/<operator>.py             AMD's aiter, its whole contract checked first
    kernels/triton/<family>/<operator>.py   Triton: the file imports without it, its kernel does not
    kernels/aten/<operator>.py              plain ATen nodes

Nothing in `ops/` imports from here.
"""

from __future__ import annotations

import importlib
import pkgutil

from rocm_passes.ops.operator import COMPUTATIONS

#: The order of preference, unless a lowering is registered with `first=True`.
PROVIDERS = ("aiter", "triton", "aten")


def register_lowerings() -> None:
    """Import each file that is named after an operator. The operators must have been imported
    before.
    """
    for provider in PROVIDERS:
        folder = importlib.import_module(f"{__name__}.{provider}")
        for found in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            if found.name.rpartition(".")[2] in COMPUTATIONS:
                importlib.import_module(found.name)

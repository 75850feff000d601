"""rocm-passes: a torch.compile backend for diffusion models on AMD GPUs.

    torch.compile(model, backend="rocm_diffusion")

needs no import of this package. What is exported here is for looking at what it did.
"""

from rocm_passes.diffusers_pipeline import compile_pipeline
from rocm_passes.errors import OptionError, RocmPassesError
from rocm_passes.explain import Explanation, explain
from rocm_passes.report.ledger import Entry, Ledger, history

__all__ = [
    "Entry",
    "Explanation",
    "Ledger",
    "OptionError",
    "RocmPassesError",
    "compile_pipeline",
    "explain",
    "history",
]
__version__ = "0.1.0"

"""Which torch is installed, read without importing it, and whether it is new enough.

The package does not depend on torch in the sense of pip. A ROCm build of torch is often a version
that pip takes for older than its release (2.11.0a0+git..., 2.11.0.dev...+rocm7.1): pip would
replace it by PyPI's build for CUDA. So the version is checked here, at the first use.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys

from rocm_passes.errors import TorchError

OLDEST = (2, 11)
INSTALL = "https://pytorch.org/get-started/locally/ (choose ROCm for an AMD GPU)"


def installed() -> str | None:
    """The version of torch, or None where there is none."""
    loaded = sys.modules.get("torch")
    if loaded is not None and hasattr(loaded, "__version__"):
        return str(loaded.__version__)
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        pass
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return str(torch.__version__)


def problem(version: str | None) -> str | None:
    """Why this torch cannot be used and what to do about it, or None. Pre-releases of 2.11 are
    accepted.
    """
    oldest = ".".join(map(str, OLDEST))
    if version is None:
        return f"torch is not installed: install torch {oldest} or newer, see {INSTALL}"
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < OLDEST:
        return (
            f"torch {version} is too old: rocm-passes needs torch {oldest} or newer. Install a "
            "newer build of "
            f"the same kind, see {INSTALL}"
        )
    return None


def check() -> None:
    """Raise TorchError where torch is missing or too old."""
    found = problem(installed())
    if found is not None:
        raise TorchError(found)


def check_import() -> None:
    """Raise TorchError where torch is missing, too old, or fails to import."""
    check()
    try:
        import torch  # noqa: F401
    except Exception as error:
        raise TorchError(
            f"torch fails to import ({type(error).__name__}: {error}): `rocm-passes doctor` says "
            "more"
        ) from error

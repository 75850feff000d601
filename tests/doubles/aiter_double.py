"""Installs a double of AMD's aiter, or of what else may lie under that name, as a real package on
disk.

    with installed(version="0.1.12", arch="gfx942"):
        ...     # aiter can be found and imported, has that version's signatures, and computes on
        CPU tensors

A call that the real aiter would not survive raises ContractViolation (see aiter_kernels).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest import mock

from rocm_passes.kernels.aiter import contract, installation

from . import aiter_attention
from .aiter_kernels import ROUNDING_BF16, ContractViolation, Machine

__all__ = ["VERSIONS", "ContractViolation", "absent", "broken", "installed", "unrelated"]

VERSIONS = ("0.1.9", "0.1.12", "0.1.15", "0.1.17", "0.1.18", "0.1.20")

machine: Machine | None = None

HEADER = f"import torch\nimport {__name__} as double\n\n"

RMS_NORM = """
def rmsnorm2d_fwd(input, weight, epsilon, use_model_sensitive_rmsnorm=0):
    return double.machine.rmsnorm2d_fwd(input, weight, epsilon, use_model_sensitive_rmsnorm)
"""
ADD_RMS_NORM = """
def rmsnorm2d_fwd_with_add(
    out, input, residual_in, residual_out, weight, epsilon, use_model_sensitive_rmsnorm=0
):
    double.machine.rmsnorm2d_fwd_with_add(
        out, input, residual_in, residual_out, weight, epsilon, False, use_model_sensitive_rmsnorm
    )
"""
ADD_RMS_NORM_GEMMA = """
def rmsnorm2d_fwd_with_add(
    out, input, residual_in, residual_out, weight, epsilon, gemma_norm=False,
    use_model_sensitive_rmsnorm=0
):
    double.machine.rmsnorm2d_fwd_with_add(
        out, input, residual_in, residual_out, weight, epsilon, gemma_norm,
        use_model_sensitive_rmsnorm
    )
"""
HIP_RMS_NORM = """
def rmsnorm(out, input, weight, epsilon):
    raise NotImplementedError
"""
OPUS = """
def rms_norm_opus(out, input, weight, epsilon, model_sensitive=0, gemma_norm=False):
    raise NotImplementedError
"""
FUNCTIONAL_GROUP_NORM = """
def _groupnorm_run(input, num_groups, weight, bias, eps):
    return double.machine.groupnorm_run(input, num_groups, weight, bias, eps)
"""
GROUP_NORM = """
def _groupnorm_run(y, workspace, input, num_groups, weight, bias, eps):
    y.copy_(double.machine.groupnorm_run(input, num_groups, weight, bias, eps))


def groupnorm_run(input, num_groups, weight, bias, eps):
    return double.machine.groupnorm_run(input, num_groups, weight, bias, eps)
"""
LAYER_NORM = """
def layernorm2d_fwd(input, weight, bias, epsilon=1e-5, x_bias=None):
    return double.machine.layernorm2d_fwd(input, weight, bias, epsilon, x_bias)
"""
ROPE = """
def rope_cached_fwd(
    input, cos, sin, rotate_style, reuse_freqs_front_part, nope_first,
    transpose_output=False
):
    return _laid_out(
        double.machine.rope_cached_fwd(
            (input,), cos, sin, rotate_style, reuse_freqs_front_part, nope_first
        ),
        transpose_output,
    )[0]


def rope_cached_2c_fwd(
    input_x, input_y, cos, sin, rotate_style, reuse_freqs_front_part, nope_first,
    transpose_output=False
):
    return _laid_out(
        double.machine.rope_cached_fwd(
            (input_x, input_y), cos, sin, rotate_style, reuse_freqs_front_part, nope_first
        ),
        transpose_output,
    )


def _laid_out(outputs, transpose_output):
    if not transpose_output:
        return outputs
    return tuple(out.transpose(0, 1).contiguous().transpose(0, 1) for out in outputs)
"""
QK_NORM_ROPE = """
def fused_qk_norm_rope_1way(
    q, k, w_q, w_k, cos_sin, batch_size, num_tokens, num_heads_q, num_heads_k, head_size,
    is_interleaved,
    eps, out_q, out_k,
):
    double.machine.fused_qk_norm_rope_1way(
        q, k, w_q, w_k, cos_sin, (batch_size, num_tokens, num_heads_q, num_heads_k, head_size),
        is_interleaved, eps, out_q, out_k
    )
"""
STAR_IMPORTS = """
from .ops.rmsnorm import *
from .ops.groupnorm import *
from .ops.norm import *
from .ops.rope import *
from .ops.fused_qk_norm_rope_cache_quant import *
from .ops.mha import *
"""
UNRELATED = """
__version__ = "0.13.20191203"


def map_aiter(function, iterator):
    raise NotImplementedError
"""


@contextlib.contextmanager
def installed(
    version: str = "0.1.20", arch: str = "gfx942", truncating: bool | None = None
) -> Iterator[None]:
    """AMD's aiter in one version on one architecture, on a machine that passes for one with ROCm.

    `truncating` says whether RMSNorm's bfloat16 stores truncate: by default as on that
    architecture.
    """
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    truncates = arch not in ROUNDING_BF16 if truncating is None else truncating
    with (
        _package(_sources(numbers), {"amd-aiter": version}),
        mock.patch.object(sys.modules[__name__], "machine", Machine(numbers, arch, truncates)),
        mock.patch.object(contract, "DEVICE_TYPES", frozenset({"cpu", "cuda"})),
        mock.patch.object(contract, "architecture", lambda device: arch),
        mock.patch.object(installation, "ROCM_BUILD", True),
    ):
        yield


@contextlib.contextmanager
def unrelated() -> Iterator[None]:
    """The package that PyPI has under the name aiter: async iterators."""
    with _package({"__init__.py": UNRELATED}, {"aiter": "0.13.20191203"}):
        yield


@contextlib.contextmanager
def broken(error: Exception) -> Iterator[None]:
    """AMD's aiter, whose import fails with an error of this class and text."""
    failing = f"raise {type(error).__name__}({str(error)!r})\n"
    with _package({**_sources((0, 1, 20)), "__init__.py": failing}, {"amd-aiter": "0.1.20"}):
        yield


@contextlib.contextmanager
def absent() -> Iterator[None]:
    """No aiter at all, also on a machine that has one."""
    find_spec = importlib.util.find_spec

    def none_of_aiter(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if _is_aiter(name) else find_spec(name, package)

    with mock.patch("importlib.util.find_spec", none_of_aiter):
        installation.reset()
        yield
    installation.reset()


def _sources(version: tuple[int, ...]) -> dict[str, str]:
    """The source files of aiter in that version, as far as the adapters use them."""
    rms_norm = [RMS_NORM, ADD_RMS_NORM_GEMMA if version >= (0, 1, 17) else ADD_RMS_NORM]
    rms_norm += [HIP_RMS_NORM] if version >= (0, 1, 11) else []
    rms_norm += [OPUS] if version >= (0, 1, 18) else []
    group_norm = GROUP_NORM if version >= (0, 1, 19) else FUNCTIONAL_GROUP_NORM
    return {
        "__init__.py": STAR_IMPORTS,
        "ops/__init__.py": "",
        "ops/rmsnorm.py": HEADER + "".join(rms_norm),
        "ops/groupnorm.py": HEADER + group_norm if version >= (0, 1, 10) else "",
        "ops/norm.py": HEADER + LAYER_NORM,
        "ops/rope.py": HEADER + ROPE,
        "ops/mha.py": HEADER + aiter_attention.sources(version),
        "ops/fused_qk_norm_rope_cache_quant.py": HEADER + QK_NORM_ROPE
        if version >= (0, 1, 15)
        else "",
    }


@contextlib.contextmanager
def _package(sources: dict[str, str], distributions: dict[str, str]) -> Iterator[None]:
    hidden = {name: module for name, module in sys.modules.items() if _is_aiter(name)}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources.items():
            file = Path(folder, "aiter", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for name, version in distributions.items():
            info = Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
        for name in hidden:
            del sys.modules[name]
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        installation.reset()
        try:
            yield
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if _is_aiter(name)]:
                del sys.modules[name]
            sys.modules.update(hidden)
            installation.reset()


def _is_aiter(name: str) -> bool:
    return name == "aiter" or name.startswith("aiter.")

"""Installs a double of AMD's aiter, or of what else may lie under that name, as a real package on
disk.

    with installed(version="0.1.12", arch="gfx942"):
        ...     # aiter can be found and imported, has that version's signatures, and computes on
        CPU tensors

A call that the real aiter would not survive raises ContractViolation (see aiter_kernels).
"""

from __future__ import annotations

import atexit
import compileall
import contextlib
import functools
import importlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest import mock

from rocm_passes.kernels.aiter import contract, installation

from . import aiter_attention
from .aiter_convolutions import configs
from .aiter_harm import ROUNDING_BF16, ContractViolation, Logged
from .aiter_kernels import Machine

__all__ = ["VERSIONS", "ContractViolation", "absent", "broken", "installed", "log", "unrelated"]

#: 0.1.23 stands for the main branch, whose 3-D convolutions are in no tag yet.
VERSIONS = ("0.1.9", "0.1.12", "0.1.15", "0.1.17", "0.1.18", "0.1.20", "0.1.22", "0.1.23")
CONV2D_SINCE, CONV3D_SINCE = (0, 1, 18), (0, 1, 23)

#: Of the files that all installations share: another time says that a test has changed one.
WRITTEN_AT = 10**18

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
ADD_LAYER_NORM = """
def layernorm2d_fwd_with_add(
    out, input, residual_in, residual_out, weight, bias, epsilon, x_bias=None
):
    double.machine.layernorm2d_fwd_with_add(
        out, input, residual_in, residual_out, weight, bias, epsilon, x_bias
    )
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
PREPACK = """
from collections import OrderedDict


class _LRUPackCache:
    def __init__(self):
        self._d = OrderedDict()


_PACK_CACHE = _LRUPackCache()
_PACK_CACHE_3x3 = _LRUPackCache()
_PACK_CACHE_WINOGRAD_F4X3 = _LRUPackCache()
_PACK_CACHE_3D_GENERAL = _LRUPackCache()
"""
CONV2D = """
from aiter.ops.triton.conv import _prepack


def conv2d_1x1(
    x, w_oihw, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation="none",
    block_k=64, layout="nchw"
):
    packs, parameters = _prepack._PACK_CACHE._d, (stride, padding, dilation)
    return double.machine.triton_conv("1x1", packs, x, w_oihw, bias, parameters, layout)


def conv2d_general(
    x, w_oihw, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation="none",
    block_k=64, layout="nchw"
):
    packs, parameters = _prepack._PACK_CACHE._d, (stride, padding, dilation)
    return double.machine.triton_conv("general", packs, x, w_oihw, bias, parameters, layout)


def conv2d_nhwc_3x3(
    x, w_oihw, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation="none",
    block_k=64
):
    packs, parameters = _prepack._PACK_CACHE_3x3._d, (stride, padding, dilation)
    return double.machine.triton_conv("3x3", packs, x, w_oihw, bias, parameters, "nhwc")


def conv2d_winograd_f4x3(
    x, w_oihw, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation="none",
    block_k=64, layout="nchw"
):
    packs, parameters = _prepack._PACK_CACHE_WINOGRAD_F4X3._d, (stride, padding, dilation)
    return double.machine.triton_conv("winograd", packs, x, w_oihw, bias, parameters, layout)
"""
CONV3D = """
from aiter.ops.triton.conv import _prepack


def conv3d(
    x, w_oidhw, bias=None, stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1),
    activation="none", layout="ncdhw"
):
    packs, parameters = _prepack._PACK_CACHE_3D_GENERAL._d, (stride, padding, dilation)
    return double.machine.triton_conv("conv3d", packs, x, w_oidhw, bias, parameters, layout)
"""
FLYDSL = """
_WEIGHT_CACHE = {}


def flydsl_conv_implicit(x, weight, bias=None, stride=1, padding=0, dilation=1, **kwargs):
    assert set(kwargs) <= {"groups", "splitk", "input_layout", "output_layout"}
    layouts = (kwargs.get("input_layout", "NCDHW"), kwargs.get("output_layout", "NCDHW"))
    return double.machine.flydsl_conv(
        _WEIGHT_CACHE, x, weight, bias, (stride, padding, dilation), kwargs.get("groups", 1),
        kwargs.get("splitk"), layouts
    )
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
    version: str = "0.1.20",
    arch: str = "gfx942",
    truncating: bool | None = None,
    rocm: tuple[int, int] = (7, 2),
    own_files: bool = False,
) -> Iterator[None]:
    """AMD's aiter in one version on one architecture, on a machine that passes for one with ROCm.

    `truncating` says whether RMSNorm's bfloat16 stores truncate: by default as on that
    architecture. own_files: for a test that changes the files.
    """
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    rounds = arch in ROUNDING_BF16 and rocm >= (7, 0)
    truncates = not rounds if truncating is None else truncating
    with (
        _package(_sources(numbers), {"amd-aiter": version}, own_files),
        mock.patch.object(sys.modules[__name__], "machine", Machine(numbers, arch, truncates)),
        mock.patch.object(contract, "DEVICE_TYPES", frozenset({"cpu", "cuda"})),
        mock.patch.object(contract, "architecture", lambda device: arch),
        mock.patch.object(contract, "rocm_version", lambda: rocm),
        mock.patch.object(installation, "ROCM_BUILD", True),
    ):
        yield


def log() -> list[Logged]:
    """The calls so far of the aiter that is installed."""
    assert machine is not None, "no double is installed"
    return machine.log


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
    convolutions: dict[str, str] = {}
    if version >= CONV2D_SINCE:
        packages = ("ops/triton", "ops/triton/conv")
        convolutions |= {f"{package}/__init__.py": "" for package in packages}
        convolutions |= {
            "ops/triton/conv/_prepack.py": PREPACK,
            "ops/triton/conv/conv2d.py": HEADER + CONV2D,
            **configs(version),
        }
    if version >= CONV3D_SINCE:
        convolutions["ops/triton/conv/conv3d.py"] = HEADER + CONV3D
        convolutions["ops/flydsl/__init__.py"] = ""
        convolutions["ops/flydsl/conv_kernels.py"] = HEADER + FLYDSL
    group_norm = GROUP_NORM if version >= (0, 1, 19) else FUNCTIONAL_GROUP_NORM
    return {
        "__init__.py": STAR_IMPORTS,
        "ops/__init__.py": "",
        "ops/rmsnorm.py": HEADER + "".join(rms_norm),
        "ops/groupnorm.py": HEADER + group_norm if version >= (0, 1, 10) else "",
        "ops/norm.py": HEADER + LAYER_NORM + ADD_LAYER_NORM,
        "ops/rope.py": HEADER + ROPE,
        "ops/mha.py": HEADER + aiter_attention.sources(version),
        "ops/fused_qk_norm_rope_cache_quant.py": HEADER + QK_NORM_ROPE
        if version >= (0, 1, 15)
        else "",
        **convolutions,
    }


@contextlib.contextmanager
def _package(
    sources: dict[str, str], distributions: dict[str, str], own: bool = False
) -> Iterator[None]:
    hidden = {name: module for name, module in sys.modules.items() if _is_aiter(name)}
    write = _written.__wrapped__ if own else _written
    folder = write(tuple(sources.items()), tuple(distributions.items()))
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
        changed = [f for f in Path(folder).rglob("*.py") if f.stat().st_mtime_ns != WRITTEN_AT]
        assert own or not changed, (
            f"the test changes files of all: installed(own_files=True) {changed}"
        )


@functools.cache
def _written(
    sources: tuple[tuple[str, str], ...], distributions: tuple[tuple[str, str], ...]
) -> str:
    """The folder with these files, which nobody changes: one for all that install the same.

    Their bytecode lies there too: each installation imports them anew.
    """
    folder = tempfile.mkdtemp(prefix="aiter-double-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, text in sources:
        file = Path(folder, "aiter", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, ns=(WRITTEN_AT, WRITTEN_AT))
    for name, version in distributions:
        info = Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    compileall.compile_dir(folder, quiet=2)
    return folder


def _is_aiter(name: str) -> bool:
    return name == "aiter" or name.startswith("aiter.")

"""What lies under the name `aiter` on this machine: nothing, another project, AMD's library, or a
broken one.

PyPI's `aiter` is an unrelated package of async iterators, and AMD's can be installed and still fail
to import. What AMD's can do is read off the signatures in its source files, since its versions
differ in more than their numbers tell.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rocm_passes.target import Target

Status = Literal["usable", "absent", "unrelated", "broken"]

ROCM_BUILD: bool = torch.version.hip is not None

# The targets that aiter's own README lists. On the RDNA ones it calls itself experimental.
ARCHITECTURES = ("gfx942", "gfx950", "gfx1100", "gfx1151", "gfx1201")

INSTALL_HINT = (
    "install AMD's aiter from https://github.com/ROCm/aiter (its distribution is called amd-aiter)"
)


@dataclass(frozen=True)
class Signature:
    """A function that a feature stands on: where it is, how its parameters begin, and which others
    it has.
    """

    file: str
    function: str
    begins: tuple[str, ...]
    contains: tuple[str, ...] = ()


_ADD_RMS_NORM = ("out", "input", "residual_in", "residual_out", "weight", "epsilon")
_ROPE = ("cos", "sin", "rotate_style", "reuse_freqs_front_part", "nope_first", "transpose_output")
_QK_NORM_ROPE = (
    *("q", "k", "w_q", "w_k", "cos_sin", "batch_size", "num_tokens", "num_heads_q", "num_heads_k"),
    *("head_size", "is_interleaved", "eps", "out_q", "out_k"),
)
_CONV = ("bias", "stride", "padding", "dilation")
_RMS_NORM_MODE = ("use_model_sensitive_rmsnorm",)

FEATURES: dict[str, Signature] = {
    "rmsnorm2d_fwd": Signature(
        "ops/rmsnorm.py", "rmsnorm2d_fwd", ("input", "weight", "epsilon"), _RMS_NORM_MODE
    ),
    "rmsnorm2d_fwd_with_add": Signature(
        "ops/rmsnorm.py", "rmsnorm2d_fwd_with_add", _ADD_RMS_NORM, _RMS_NORM_MODE
    ),
    # The HIP kernel for 16-bit rows of up to 8192 elements; before it there was only CK's.
    "hip_rms_norm": Signature("ops/rmsnorm.py", "rmsnorm", ("out", "input", "weight", "epsilon")),
    # The kernel for float32, wider rows, and rounding before the weight.
    "opus": Signature("ops/rmsnorm.py", "rms_norm_opus", ("out", "input", "weight", "epsilon")),
    "gemma_norm_keyword": Signature(
        "ops/rmsnorm.py", "rmsnorm2d_fwd_with_add", _ADD_RMS_NORM, ("gemma_norm",)
    ),
    "groupnorm_run": Signature(
        "ops/groupnorm.py", "groupnorm_run", ("input", "num_groups", "weight", "bias", "eps")
    ),
    # Up to 0.1.18: the same function under a private name, which later came to mean another one.
    "functional_groupnorm": Signature(
        "ops/groupnorm.py", "_groupnorm_run", ("input", "num_groups", "weight", "bias", "eps")
    ),
    "layernorm2d_fwd": Signature(
        "ops/norm.py", "layernorm2d_fwd", ("input", "weight", "bias", "epsilon")
    ),
    "layernorm2d_fwd_with_add": Signature(
        "ops/norm.py",
        "layernorm2d_fwd_with_add",
        ("out", "input", "residual_in", "residual_out", "weight", "bias", "epsilon"),
    ),
    # The kernel that takes channels-last tensors, without a choice of Winograd's.
    "triton_conv2d": Signature(
        "ops/triton/conv/conv2d.py", "conv2d_general", ("x", "w_oihw", *_CONV), ("layout",)
    ),
    "triton_conv2d_1x1": Signature(
        "ops/triton/conv/conv2d.py", "conv2d_1x1", ("x", "w_oihw", *_CONV), ("layout",)
    ),
    "triton_conv2d_3x3": Signature(
        "ops/triton/conv/conv2d.py", "conv2d_nhwc_3x3", ("x", "w_oihw", *_CONV)
    ),
    "triton_conv2d_winograd": Signature(
        "ops/triton/conv/conv2d.py", "conv2d_winograd_f4x3", ("x", "w_oihw", *_CONV), ("layout",)
    ),
    "triton_conv3d": Signature(
        "ops/triton/conv/conv3d.py", "conv3d", ("x", "w_oidhw", *_CONV), ("layout",)
    ),
    "flydsl_conv": Signature(
        "ops/flydsl/conv_kernels.py", "flydsl_conv_implicit", ("x", "weight", *_CONV)
    ),
    "rope_cached_fwd": Signature("ops/rope.py", "rope_cached_fwd", ("input", *_ROPE)),
    "rope_cached_2c_fwd": Signature(
        "ops/rope.py", "rope_cached_2c_fwd", ("input_x", "input_y", *_ROPE)
    ),
    "fused_qk_norm_rope_1way": Signature(
        "ops/fused_qk_norm_rope_cache_quant.py", "fused_qk_norm_rope_1way", _QK_NORM_ROPE
    ),
    # Versions without sink_ptr have kernels that misread strides and wrap at 4 GiB.
    "flash_attn_func": Signature(
        "ops/mha.py",
        "flash_attn_func",
        ("q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size"),
        ("return_lse", "how_v3_bf16_cvt", "sink_ptr"),
    ),
    # Without sink_ptr, the result was in 8 bits too.
    "flash_attn_fp8_pertensor_func": Signature(
        "ops/mha.py",
        "flash_attn_fp8_pertensor_func",
        ("q", "k", "v", "q_descale", "k_descale", "v_descale", "causal"),
        ("softmax_scale", "sink_ptr"),
    ),
}


@dataclass(frozen=True)
class Installation:
    """What was found. `detail` is one sentence for the user; `features` are names of FEATURES."""

    status: Status
    version: str | None
    detail: str
    features: frozenset[str] = frozenset()

    def at_least(self, *version: int) -> bool:
        """Whether the version is known and not older than `version`."""
        numbers = re.match(r"v?(\d+(?:\.\d+)*)", self.version or "")
        return numbers is not None and tuple(map(int, numbers[1].split("."))) >= version


@functools.cache
def find() -> Installation:
    """What is installed. Imports aiter if it is AMD's, remembers the answer, never raises."""
    located = _locate()
    if isinstance(located, Installation):
        return located
    version = _version()
    try:
        module = importlib.import_module("aiter")
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Installation("broken", version, f"aiter is installed but fails to import ({text})")
    if not hasattr(module, "rmsnorm2d_fwd"):
        detail = (
            "aiter came without its HIP operators: is AITER_TRITON_ONLY or AITER_AOT_IMPORT set?"
        )
        return Installation("broken", version, detail)
    detail = f"aiter {version or 'of unknown version'} at {located}"
    return Installation("usable", version, detail, _features(located))


def reset() -> None:
    """Forget what `find` found: for tests, and after an installation in a running process."""
    find.cache_clear()
    import_error.cache_clear()
    has_conv_tables.cache_clear()
    importlib.invalidate_caches()


@functools.cache
def import_error(module: str) -> str | None:
    """Why a module of aiter's does not import, or None. Remembered, since a failure takes long."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return f"{module} does not import: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


@functools.cache
def has_conv_tables(arch: str) -> bool:
    """Whether aiter has launch configurations of convolutions for the architecture.

    Where they lie has changed with versions, so any JSON file counts whose path names both.
    """
    located = _locate()
    if isinstance(located, Installation):
        return False
    for file in (located / "ops" / "triton" / "configs").rglob("*.json"):
        words = re.split(r"[^a-z0-9]+", str(file.relative_to(located)).lower())
        if arch in words and any(word.startswith("conv") for word in words):
            return True
    return False


def unmet(arch: str | None) -> str | None:
    """Why aiter can not be used here, and what to do about it; None if it can.

    `arch` is the architecture that code is made for ("gfx942"), without feature flags, or None
    without a GPU.
    """
    located = _locate()
    if isinstance(located, Installation):
        return located.detail
    if not ROCM_BUILD:
        return (
            "this torch is not a ROCm build, and aiter runs on AMD GPUs only: install torch for "
            "ROCm"
        )
    if arch is None:
        return "no AMD GPU was found for aiter to run on"
    if arch not in ARCHITECTURES:
        return f"aiter does not list {arch} among its GPUs ({', '.join(ARCHITECTURES)})"
    found = find()
    return None if found.status == "usable" else found.detail


def needs_aiter(target: Target) -> str | None:
    """AMD's aiter, usable, on an architecture that it serves."""
    if target.vendor != "amd":
        return f"aiter runs on AMD GPUs, and this graph runs on {target.name}"
    return unmet(target.arch)


def _locate() -> Path | Installation:
    """The folder of AMD's aiter, or what was found in its place; imports nothing."""
    try:
        spec = importlib.util.find_spec("aiter")
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return Installation("absent", None, f"aiter is not installed: {INSTALL_HINT}")
    for folder in map(Path, spec.submodule_search_locations or ()):
        if (folder / "__init__.py").is_file() and (folder / "ops" / "rmsnorm.py").is_file():
            return folder
    origin = spec.origin or ", ".join(spec.submodule_search_locations or ())
    detail = f"the aiter at {origin} is another project than AMD's: remove it, and {INSTALL_HINT}"
    return Installation("unrelated", None, detail)


def _version() -> str | None:
    try:
        return importlib.metadata.version("amd-aiter")
    except importlib.metadata.PackageNotFoundError:
        return None


def _features(folder: Path) -> frozenset[str]:
    files = {signature.file for signature in FEATURES.values()}
    functions = {file: _functions(folder / file) for file in files}
    return frozenset(
        name
        for name, wanted in FEATURES.items()
        if (parameters := functions[wanted.file].get(wanted.function)) is not None
        and parameters[: len(wanted.begins)] == wanted.begins
        and set(wanted.contains) <= set(parameters)
    )


def _functions(file: Path) -> dict[str, tuple[str, ...]]:
    """The module-level functions of a source file, each with the names of its parameters."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return {}
    return {
        node.name: tuple(arg.arg for arg in (*node.args.posonlyargs, *node.args.args))
        for node in body
        if isinstance(node, ast.FunctionDef)
    }

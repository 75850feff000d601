"""What every call of an aiter function must fulfil, checked in Python on shapes, strides, dtypes
and devices.

A check is a generator of sentences: it yields one for each violation that it finds, in an order in
which a later check may rely on the earlier ones, and an adapter takes the first. Fake tensors are
as good as real ones.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rocm_passes.errors import ContractError
from rocm_passes.fx.nodes import dtype_name
from rocm_passes.kernels.aiter import installation

# A host pointer handed to a HIP kernel is a memory fault, so only GPU tensors may pass.
# The test double, which computes on the CPU, widens this while it is installed.
DEVICE_TYPES: Collection[str] = frozenset({"cuda"})

# aiter's kernels compute byte offsets in int32.
INT32_BYTES = 2**31

# The targets that round bfloat16 in hardware; on all others aiter's RMSNorm truncates. The
# instruction is used from clang 20 on, which came with this ROCm; an older compiler truncates.
ROUNDING_BF16_ARCHS = frozenset({"gfx950", "gfx1200", "gfx1201", "gfx1250"})
ROUNDING_BF16_SINCE = (7, 0)

HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
FLOAT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32})


class AiterContractError(ContractError):
    """An adapter was called with arguments that aiter does not take; aiter itself was not
    called.
    """

    @classmethod
    def refused(cls, function: str, reason: str) -> AiterContractError:
        return cls(f"aiter's {function} was not called: {reason}")


def enforce(function: str, reason: str | None) -> None:
    """Raise AiterContractError if there is a reason to, or if a FakeTensorMode is active.

    Under a FakeTensorMode aiter would put fake tensors into the caches that its real calls use.
    """
    if reason is None and isinstance(torch.empty(0), FakeTensor):
        reason = "a FakeTensorMode is active, and the call needs real memory"
    if reason is not None:
        raise AiterContractError.refused(function, reason)


def device_guard(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context to call aiter in: it takes the stream of the current device, not of its
    tensors.
    """
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def architecture(device: torch.device) -> str | None:
    """The target of a ROCm device, without feature flags ("gfx942"); None where there is none to
    ask.
    """
    if device.type != "cuda" or torch.version.hip is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]


def rocm_version() -> tuple[int, ...]:
    """Of the ROCm that torch was built for, which aiter is compiled with; () where it is none."""
    return tuple(int(n) for n in (torch.version.hip or "").split(".")[:2] if n.isdigit())


def without_ck() -> bool:
    """Whether aiter is compiled without Composable Kernel: aiter reads this variable as well."""
    return os.environ.get("ENABLE_CK", "1").strip() == "0"


def kept_stores(arch: str | None) -> Iterator[str]:
    """aiter tells RDNA 3 by a macro of Composable Kernel's headers. Without them its kernels write
    nothing there: no error, no result.
    """
    if without_ck() and arch is not None and arch.startswith("gfx11"):
        yield f"ENABLE_CK=0: compiled so, aiter's kernel drops its stores on {arch}"


def first_architecture() -> str | None:
    """The target of the first GPU, which parts of aiter compile for whatever device they run on."""
    return architecture(torch.device("cuda", 0))


def shape_name(t: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in t.shape) + "]"


def span_bytes(t: Tensor) -> int:
    """Bytes from the first element of `t` to the end of the one that lies furthest from it."""
    if t.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def available(*functions: str) -> Iterator[str]:
    """aiter must be usable, and have at least one of `functions` (features of that name)."""
    found = installation.find()
    if found.status != "usable":
        yield found.detail
    elif not any(function in found.features for function in functions):
        version = found.version or "of unknown version"
        yield f"aiter {version} has no {functions[0]} of the signature that is known here"


def has(feature: str) -> bool:
    return feature in installation.find().features


def placement(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """All tensors strided, of static shape, and together on one device that aiter's kernels can
    reach.
    """
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        if t.layout != torch.strided:
            yield f"{name} has layout {t.layout}: aiter takes strided tensors"
        if any(
            isinstance(size, torch.SymInt) for size in (*t.shape, *t.stride(), t.storage_offset())
        ):
            yield f"{name} has a symbolic size: aiter's limits can not be checked"
        if t.device.type not in DEVICE_TYPES:
            yield f"{name} is on {t.device.type}: aiter's kernels read GPU memory"
        if t.device != first.device:
            yield f"{name} is on {t.device} and {first_name} on {first.device}"


def dtype(name: str, t: Tensor, allowed: Collection[torch.dtype]) -> Iterator[str]:
    if t.dtype not in allowed:
        names = ", ".join(sorted(dtype_name(d) for d in allowed))
        yield f"{name} is {dtype_name(t.dtype)}: aiter takes {names} here"


def same_dtype(name: str, t: Tensor, like_name: str, like: Tensor) -> Iterator[str]:
    """aiter does not check this: it would read the bits of `t` as if they had the dtype of
    `like`.
    """
    if t.dtype != like.dtype:
        found, expected = dtype_name(t.dtype), dtype_name(like.dtype)
        yield f"{name} is {found} and {like_name} is {expected}: aiter would misread its bits"


def vector(name: str, t: Tensor, length: int, like_name: str, like: Tensor) -> Iterator[str]:
    """A dense 1-D parameter of exactly `length` elements, in the dtype of `like`."""
    if t.dim() != 1 or t.shape[0] != length:
        yield f"{name} has shape {shape_name(t)}: aiter reads exactly {length} elements"
    yield from same_dtype(name, t, like_name, like)
    if not t.is_contiguous():
        yield f"{name} has stride {t.stride(0)}: aiter reads it as contiguous"
    if not aligned(t, t.storage_offset()):
        yield f"{name} begins at element {t.storage_offset()}: aiter loads whole words of 4 bytes"


def norm_inputs(
    x: Tensor,
    residual: Tensor | None,
    vectors: Mapping[str, Tensor],
    dtypes: Collection[torch.dtype],
) -> Iterator[str]:
    """Rows x [..., C] to normalise, a residual like x or None, and parameters of C elements."""
    yield from dtype("x", x, dtypes)
    if x.dim() == 0:
        yield "x has no dimension to normalise"
    if x.shape[-1] == 0:
        yield "hidden size 0: aiter divides by it"
    for name, t in vectors.items():
        yield from vector(name, t, x.shape[-1], "x", x)
    yield from within_int32("x", x)
    if residual is not None:
        if residual.shape != x.shape:
            found, expected = shape_name(residual), shape_name(x)
            yield f"residual has shape {found} and x {expected}: aiter does not broadcast"
        yield from same_dtype("residual", residual, "x", x)
        yield from within_int32("residual", residual)


def within_int32(name: str, t: Tensor) -> Iterator[str]:
    """Both `t` as it lies and a contiguous result of its shape must stay within int32 byte
    offsets.
    """
    reach = max(span_bytes(t), t.numel() * t.element_size())
    if reach >= INT32_BYTES:
        yield f"{name} reaches over {reach / 2**30:.2f} GiB: aiter's 32-bit offsets end at 2 GiB"


def aligned(t: Tensor, *elements: int | torch.SymInt) -> bool:
    """Whether these distances, in elements of `t`, are whole words of 4 bytes, the least that aiter
    loads.
    """
    return not any(distance * t.element_size() % 4 for distance in elements)


def rows(x: Tensor) -> Tensor:
    """`x` as [rows, hidden] with unit last stride and rows at whole words: a view, or else a copy.

    aiter's norms want exactly two dimensions: of more, they take the wrong one for the hidden size,
    or their result fails their own check.
    """
    flat = x.reshape(-1, x.shape[-1])
    # With one column any stride counts as contiguous for torch, but not for aiter. An odd width can
    # not be helped by a copy: those kernels that take one load element by element.
    strides = flat.stride(0) if flat.shape[0] > 1 and flat.shape[1] % 2 == 0 else 0
    if flat.stride(1) == 1 and aligned(flat, flat.storage_offset(), strides):
        return flat
    return flat.clone(memory_format=torch.contiguous_format)


def truncates(dtype: torch.dtype, arch: str | None) -> bool:
    """Whether aiter's RMSNorm stores results of `dtype` by truncation; of an unknown architecture,
    yes.
    """
    rounds = arch in ROUNDING_BF16_ARCHS and rocm_version() >= ROUNDING_BF16_SINCE
    return dtype == torch.bfloat16 and not rounds


def truncation_note(dtype: torch.dtype, arch: str | None) -> Iterator[str]:
    if truncates(dtype, arch):
        where = arch or "an unknown architecture"
        yield f"aiter truncates bfloat16 on {where} instead of rounding to nearest"


def denormal_note(dtype: torch.dtype) -> Iterator[str]:
    # The denormals of float16 are normal numbers of float32, in which aiter computes.
    if dtype != torch.float16:
        yield "aiter flushes denormals to zero"


def joined(notes: Iterable[str]) -> str | None:
    """The notes in one line, or None where there are none."""
    return "; ".join(notes) or None

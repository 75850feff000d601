"""What aiter's attention functions must be given, checked before any of them is called.

Only their hand-written kernels for gfx942 and gfx950 are used. All other calls take CK kernels:
hipcc builds those at their first use, which takes minutes, and on gfx942 they round bfloat16
towards zero, whatever they are asked for. aiter's layout is [B, S, H, D]; its causal mask is
aligned to the last query and key, torch's to the first. Source: aiter/ops/mha.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from rocm_passes.kernels.aiter import contract

ARCHITECTURES = ("gfx942", "gfx950")
HEAD_SIZE = 128
#: With as many queries or fewer aiter takes a CK kernel.
FEW_QUERIES = 128
#: The kernels' vector loads, in elements of 16 bits.
VECTOR = 8

#: Devices and kinds of call that aiter has loaded its kernel for.
_LOADED: set[tuple[object, ...]] = set()


@contextlib.contextmanager
def calling(function: str, q: Tensor, k: Tensor, causal: bool) -> Iterator[None]:
    """The context to call the function in: on q's device, and without gradients.

    The first call of a kind builds or loads the kernel, which fails while a graph is captured. It
    raises AiterContractError there.
    """
    kind = (function, str(q.device), causal, q.shape[1] == k.shape[1])
    if kind not in _LOADED and capturing():
        reason = "its kernel is not loaded yet, and a graph is being captured"
        raise contract.AiterContractError.refused(function, reason)
    with contract.device_guard(q), torch.no_grad():
        yield
    _LOADED.add(kind)


def capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def as_rows(t: Tensor) -> Tensor:
    """[B, H, S, D] as [B, S, H, D]: a view, or a copy where aiter cannot read it as it lies."""
    rows = t.transpose(1, 2)
    return rows if _readable(rows) else rows.contiguous()


def _readable(rows: Tensor) -> bool:
    """Rows of unit stride that begin at whole vectors, and no two elements in one place."""
    strides = [s for size, s in zip(rows.shape[:3], rows.stride()[:3], strict=True) if size > 1]
    places = (rows.storage_offset(), *strides)
    return rows.stride(3) == 1 and 0 not in strides and not any(p % VECTOR for p in places)


def violations(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, arch: str | None
) -> Iterator[str]:
    """What all of aiter's attention functions have in common."""
    yield from _environment(q.device, arch)
    yield from contract.placement({"q": q, "k": k, "v": v})
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != 4:
            yield f"{name} has {t.dim()} dimensions: aiter wants [B, S, H, D]"
        yield from contract.dtype(name, t, {torch.bfloat16})
        if t.shape[3] != HEAD_SIZE:
            yield (
                f"{name} has heads of {t.shape[3]}: aiter's hand-written kernels are for "
                f"{HEAD_SIZE}, and hipcc builds its others at their first use"
            )
    yield from _shapes(q, k, v)
    if causal and q.shape[2] != k.shape[2]:
        yield (
            f"causal with {q.shape[2]} queries and {k.shape[2]} keys: aiter aligns the mask to the "
            "last ones, torch to the first"
        )
    if q.shape[2] <= FEW_QUERIES:
        yield (
            f"{q.shape[2]} queries: for {FEW_QUERIES} or fewer aiter takes a CK kernel, which "
            "hipcc builds at its first use"
        )
    if not scale > 0:
        yield f"the scale is {scale}: aiter's kernels are for positive ones"
    for name, t in (("q", q), ("k", k), ("v", v)):
        yield from contract.within_int32(name, t)


def _environment(device: torch.device, arch: str | None) -> Iterator[str]:
    arch = arch or contract.architecture(device)
    if arch not in ARCHITECTURES:
        yield (
            f"aiter's hand-written attention is for {' and '.join(ARCHITECTURES)}, "
            f"and this is {arch or 'an unknown architecture'}"
        )
    if os.environ.get("ENABLE_CK") == "0":
        yield "ENABLE_CK=0: aiter takes Triton kernels, whose rounding cannot be chosen"
    first = contract.architecture(torch.device("cuda", 0))
    if first not in (None, arch):
        yield f"the first GPU is {first} and this one {arch}: aiter goes by the first"


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> Iterator[str]:
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        batches = f"{q.shape[0]}, {k.shape[0]} and {v.shape[0]}"
        yield f"q, k and v have {batches} batches: aiter goes by q's"
    if k.shape[1:3] != v.shape[1:3]:
        shapes = f"{contract.shape_name(k)} and v {contract.shape_name(v)}"
        yield f"k has shape {shapes}: aiter goes by v's"
    if k.shape[1] == 0 or k.shape[2] == 0:
        yield "there are no keys: a grid of 0 blocks leaves a launch error behind"
    elif q.shape[1] % k.shape[1]:
        yield f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads"

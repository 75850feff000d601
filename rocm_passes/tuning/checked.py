"""Is what a measured lowering computes right? Verified in the same breath as its time is taken.

Some places of the result are computed again, from the elements that they depend on: by a matrix
product in the call's dtype, and in float64. A lowering whose error at these places exceeds the
bound is left out of the measurement. The file of choices keeps the reason, and it is never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rocm_passes.ops.conv2d import Conv2d
from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.policy.bounds import CHECKED_FACTOR, CHECKED_LIBRARY, CHECKED_PLACES

#: The graph's own call of the library, in one layout or another. Its algorithm may be less exact
#: than the matrix product of single places (Winograd), within CHECKED_LIBRARY.
LIBRARY = ("direct", "channels_last")
#: How the reason begins, in the file of choices too.
WRONG = "wrong: "

#: Reasons by the call's key, of all that was measured or read in this process.
_KNOWN: dict[str, dict[str, str]] = {}


def remember(key: str, skipped: Mapping[str, str]) -> None:
    """Keep which lowerings were found wrong, for `known`."""
    found = {name: reason for name, reason in skipped.items() if reason.startswith(WRONG)}
    if found:
        _KNOWN[key] = found


def known(call: object, lowering: str) -> str | None:
    """Why the lowering's result was found wrong on this call, or None."""
    if not _KNOWN or not isinstance(call, (Conv2d, Conv3d)):
        return None
    return _KNOWN.get(call.key(), {}).get(lowering)


class Places:
    """Some places of a call's result, and what each lowering has there. The tensors are real."""

    def __init__(self, call: object) -> None:
        # Of other calls no places are taken.
        self._call = call if isinstance(call, Conv3d) else None
        if isinstance(call, Conv2d):
            self._call = None if call.transposed else call.as_video()
        self._at: Tensor | None = None
        self._found: dict[str, Tensor] = {}

    def take(self, name: str, result: Tensor) -> None:
        """Keep what the lowering computed at the places."""
        if self._call is None:
            return
        result = result if result.dim() == 5 else result.unsqueeze(2)
        if self._at is None:
            self._at = _drawn(result)
        self._found[name] = _taken(result, self._at)

    def wrong(self) -> dict[str, str]:
        """The lowerings whose error exceeds the bound, each with the reason."""
        if self._call is None or self._at is None or not self._at.shape[1]:
            return {}
        patches = _patches(self._call, self._at)
        exact = _convolved(self._call, patches, torch.float64)
        compute = self._call.compute or self._call.x[0].dtype
        usual = _error(_convolved(self._call, patches, compute), exact)
        library = [_error(self._found[name], exact) for name in LIBRARY if name in self._found]
        usual = max(usual, min(max(library, default=0.0), CHECKED_LIBRARY.value * usual))
        # One rounding of the result, and of a sum in float32 as many as another order moves.
        products = patches[0].numel() // self._call.groups
        moved = torch.finfo(compute).eps + products**0.5 * torch.finfo(torch.float32).eps
        allowed = CHECKED_FACTOR.value * usual + moved * float(exact.abs().max())
        errors = {name: _error(values, exact) for name, values in self._found.items()}
        return {
            name: f"{WRONG}its error against float64 is {error:.3g}, allowed is {allowed:.3g}"
            for name, error in errors.items()
            if not error <= allowed
        }


def _drawn(result: Tensor) -> Tensor:
    """[4, places]: sample, frame, row and column of each; the corners are among them."""
    sizes = [result.shape[0], *result.shape[2:]]
    if 0 in sizes:
        return torch.empty(4, 0, dtype=torch.long)
    draw = torch.Generator().manual_seed(0)
    count = int(CHECKED_PLACES.value)
    drawn = torch.stack([torch.randint(0, size, (count,), generator=draw) for size in sizes])
    ends = torch.tensor([[0] * 4, [size - 1 for size in sizes]]).T
    return torch.cat([ends, drawn], 1).to(result.device)


def _taken(result: Tensor, at: Tensor) -> Tensor:
    sample, frame, row, column = at
    return result.movedim(1, -1)[sample, frame, row, column]


def _patches(call: Conv3d, at: Tensor) -> Tensor:
    """[places, C, kT, kH, kW]: what each place depends on, zeros beyond the edges."""
    sample, *places = at
    starts = (call.zeros[0], *call.padding)
    kernel = [int(size) for size in call.weight.shape[2:]]
    index = [
        place[:, None] * stride - start + dilation * torch.arange(size, device=at.device)
        for place, stride, start, dilation, size in zip(
            places, call.stride, starts, call.dilation, kernel, strict=True
        )
    ]
    found: Tensor | None = None
    begin = 0
    for piece in call.x:
        frames = int(piece.shape[2])
        part = _gathered(piece, sample, [index[0] - begin, *index[1:]])
        found = part if found is None else found + part
        begin += frames
    assert found is not None
    return found.movedim(-1, 1)


def _gathered(piece: Tensor, sample: Tensor, index: Sequence[Tensor]) -> Tensor:
    """[places, kT, kH, kW, C], zero where an index is outside the piece."""
    sizes = piece.shape[2:]
    inside = [(i >= 0) & (i < size) for i, size in zip(index, sizes, strict=True)]
    t, h, w = (i.clamp(0, size - 1) for i, size in zip(index, sizes, strict=True))
    values = piece.movedim(1, -1)[
        sample[:, None, None, None], t[:, :, None, None], h[:, None, :, None], w[:, None, None, :]
    ]
    in_t, in_h, in_w = inside
    mask = in_t[:, :, None, None] & in_h[:, None, :, None] & in_w[:, None, None, :]
    return values * mask[..., None]


def _convolved(call: Conv3d, patches: Tensor, dtype: torch.dtype) -> Tensor:
    """[places, O]"""
    x, weight = patches.to(dtype), call.weight.to(dtype)
    if dtype is torch.float32 and x.is_cuda and torch.backends.cudnn.allow_tf32:
        x, weight = _tf32(x), _tf32(weight)
    # A matrix product: a convolution of this size would be one more for MIOpen to search.
    groups, places = call.groups, len(x)
    x, weight = x.reshape(places, groups, -1), weight.reshape(groups, len(weight) // groups, -1)
    return torch.bmm(x.transpose(0, 1), weight.mT).transpose(0, 1).flatten(1)


def _tf32(x: Tensor) -> Tensor:
    """With the 10 bits of mantissa that a library may read of float32."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def _error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).abs().max())

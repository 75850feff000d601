"""The time axis of a causal convolution: pieces of video end to end, zero frames before and after
them.

Video VAEs pad time by hand: `F.pad` with zero frames, `cat` with cached or repeated frames. Read as
an axis instead of copied together, each temporal tap knows which frames it sees, and a tap that
sees zeros alone is no work at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def out_size(size: Any, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """Size of a convolution's output along one dim; not positive where there is none."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class Tap:
    """Tap `index` of the temporal kernel: it feeds the outputs [first, first + count) from real
    frames.

    start: the frame that it reads for output `first`, counted from the first real frame.
    """

    index: int
    first: int
    count: Any
    start: int

    def within(self, first: int, count: int, stride: int) -> list[Tap]:
        """The tap for the outputs [first, first + count) alone, counted from `first`; none that it
        feeds, no tap.
        """
        begin = max(self.first, first)
        end = min(self.first + self.count, first + count)
        start = self.start + (begin - self.first) * stride
        return [Tap(self.index, begin - first, end - begin, start)] if begin < end else []


@dataclass(frozen=True)
class TimeAxis:
    """frames: how many real frames, an int or a symbolic size. front, back: zero frames around
    them.
    """

    frames: Any
    front: int
    back: int
    kernel: int
    stride: int
    dilation: int

    @property
    def out(self) -> Any:
        return out_size(
            self.frames + self.front + self.back, self.kernel, self.stride, 0, self.dilation
        )

    def taps(self) -> list[Tap]:
        """The taps that see any real frame, with the outputs that they feed. Needs a number for
        `frames`.
        """
        found = []
        for k in range(self.kernel):
            offset = k * self.dilation - self.front
            first = max(0, -(offset // self.stride)) if offset < 0 else 0
            last = min(self.out - 1, (self.frames - 1 - offset) // self.stride)
            if last >= first:
                found.append(Tap(k, first, last - first + 1, offset + first * self.stride))
        return found


def frames_of(pieces: Sequence[Any]) -> Any:
    """How many frames tensors [N, C, T, H, W] have together."""
    return sum(p.shape[2] for p in pieces)

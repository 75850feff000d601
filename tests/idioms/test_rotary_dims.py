"""Dims of equal size: which element of the result comes from which element of x is read off, not
guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.idioms.rotary_graphs import Passed, passed
from tests.idioms.rotary_spellings import p1
from tests.suites import examples

N = 4


def rms(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def stacked(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Interleaved pairs, tables [..., D/2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)


def halves(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Half-split, tables [..., D/2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def complexes(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous()) * torch.complex(c, s)
    return torch.view_as_real(z).flatten(-2)


def assigned(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)
    out[..., 0::2] = a * c - b * s
    out[..., 1::2] = a * s + b * c
    return out


ROTATIONS = (stacked, halves, complexes, assigned)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_right(fn: Callable[..., Any], args: Sequence[Tensor], seen: Passed) -> None:
    """Equal to eager torch in float64, in values that no two dims share."""
    wide = fn(*(a.double() for a in args))
    wanted = list(wide) if isinstance(wide, (tuple, list)) else [wide]
    for got, exact in zip(seen.result, wanted, strict=True):
        assert torch.allclose(got.double(), exact, rtol=1e-4, atol=1e-4), seen.outcomes()


def test_channels_and_tokens_change_places_behind_the_norm() -> None:
    def fn(q: Tensor, c: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return stacked(rms(q, w).transpose(-1, -2), c, s)

    args = (draw(2, 3, 8, 8), draw(1, 1, 8, 4, seed=1), draw(1, 1, 8, 4, seed=2), draw(8, seed=3))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert_right(fn, args, seen)


def test_heads_and_channels_change_places_behind_the_norm() -> None:
    def fn(q: Tensor, c: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return stacked(rms(q, w).unflatten(-1, (4, 4)).transpose(-1, -2), c, s)

    args = (draw(2, 5, 16), draw(1, 5, 1, 2, seed=1), draw(1, 5, 1, 2, seed=2), draw(16, seed=3))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert_right(fn, args, seen)


def test_moves_that_keep_a_head_whole_are_no_obstacle() -> None:
    """Heads split off in two steps, joined again and moved in front: the norm is still over all of
    them.
    """

    def fn(q: Tensor, c: Tensor, s: Tensor, w: Tensor) -> Tensor:
        y = rms(q, w).unflatten(-1, (2, 2, 4)).flatten(2, 3).permute(0, 2, 1, 3)
        return stacked(y, c, s)

    args = (draw(2, 4, 16), draw(4, 2, seed=1), draw(4, 2, seed=2), draw(16, seed=3))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("qk_norm_rotary", "rewritten")]
    assert seen.sites[0].parameters["across_heads"] is True
    assert_right(fn, args, seen)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bshd": lambda t: t.contiguous(),
    "bhsd": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("normed", [False, True], ids=["alone", "behind a norm"])
@pytest.mark.parametrize("k_layout", LAYOUTS)
@pytest.mark.parametrize("q_layout", LAYOUTS)
def test_q_and_k_in_two_layouts(q_layout: str, k_layout: str, normed: bool) -> None:
    """The tables vary along tokens and heads: their axes are the same ones for q and for k."""

    def fn(q: Tensor, k: Tensor, c: Tensor, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        if normed:
            q, k = rms(q, w), rms(k, w)
        return halves(q, c, s), halves(k, c, s)

    q, k = LAYOUTS[q_layout](draw(2, 4, 4, 8)), LAYOUTS[k_layout](draw(2, 4, 4, 8, seed=1))
    args = (q, k, draw(2, 4, 4, 4, seed=2), draw(2, 4, 4, 4, seed=3), draw(8, seed=4))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("qk_norm_rotary" if normed else "rotary_pair", "rewritten")]
    assert_right(fn, args, seen)


def test_tables_that_line_up_with_other_axes_are_not_shared() -> None:
    """k has a dim in front: the tables' first axis is q's batch and k's tokens."""

    def fn(q: Tensor, k: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return halves(q, c, s), halves(k, c, s)

    args = (draw(4, 4, 8), draw(4, 4, 4, 8, seed=1), draw(4, 4, 4, seed=2), draw(4, 4, 4, seed=3))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")] * 2
    assert_right(fn, args, seen)


@pytest.mark.parametrize("rotate", ROTATIONS)
@pytest.mark.parametrize("where", ["first", "last", "middle"])
def test_some_tokens_by_a_table_of_one_row(rotate: Callable[..., Tensor], where: str) -> None:
    rows = {"first": slice(0, 3), "last": slice(2, 5), "middle": slice(1, 4)}[where]

    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return torch.cat([q[:, : rows.start], rotate(q[:, rows], c, s), q[:, rows.stop :]], 1)

    args = (draw(2, 5, 3, 8), draw(1, 1, 1, 4, seed=1), draw(1, 1, 1, 4, seed=2))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")]
    assert seen.sites[0].parameters["tokens_from"] == rows.start
    assert_right(fn, args, seen)


def test_parts_of_other_lengths_are_not_one_pair() -> None:
    """With tables of one row nothing but the slices says how many tokens are rotated."""

    def part(q: Tensor, end: int, c: Tensor, s: Tensor) -> Tensor:
        return torch.cat([q[:, :1], halves(q[:, 1:end], c, s), q[:, end:]], 1)

    def fn(q: Tensor, k: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return part(q, 3, c, s), part(k, 5, c, s)

    args = (draw(2, 6, 3, 8), draw(2, 6, 3, 8, seed=1), draw(4, seed=2), draw(4, seed=3))
    seen = passed(fn, *args)
    assert seen.outcomes() == [("rotary", "rewritten")] * 2
    assert_right(fn, args, seen)


def test_a_part_that_comes_back_transposed() -> None:
    """Tokens and heads change places between the rotation of a part and the cat that takes
    it back.
    """

    def fn(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return torch.cat([q[:, :2], halves(q[:, 2:], c, s).transpose(1, 2)], 1)

    args = (draw(2, 6, 4, 8), draw(4, 1, 4, seed=1), draw(4, 1, 4, seed=2))
    seen = passed(fn, *args)
    assert seen.sites[0].parameters["tokens_from"] is None
    assert_right(fn, args, seen)


def test_streams_joined_along_heads_behind_the_rotation() -> None:
    """A transpose in front of the cat: it joins the heads, of which there are as many as tokens."""

    def fn(q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, c: Tensor, s: Tensor, w: Tensor) -> Any:
        turned = [halves(rms(t, w), c, s).transpose(1, 2).half() for t in (q, k, q2, k2)]
        return torch.cat([turned[0], turned[2]], 1), torch.cat([turned[1], turned[3]], 1)

    x = [draw(2, 4, 4, 8, seed=i) for i in range(4)]
    args = (*x, draw(4, 1, 4, seed=5), draw(4, 1, 4, seed=6), draw(8, seed=7))
    seen = passed(fn, *args)
    for got, wanted in zip(seen.result, fn(*args), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-2)


Move = Callable[[Tensor], Tensor]


@st.composite
def moves(data: st.DrawFn) -> list[Move]:
    """Up to four moves of a tensor of four dims of size N, or three, and back to four dims of size
    N.
    """
    made: list[Move] = []
    for kind in data(
        st.lists(st.sampled_from(["transpose", "flip", "roll", "fold", "again"]), max_size=4)
    ):
        a, b = data(st.permutations(range(4)))[:2]
        if kind == "transpose":
            made.append(lambda t, a=a, b=b: t.transpose(a, b))  # type: ignore[misc]
        elif kind == "flip":
            made.append(lambda t, a=a: t.flip(a))  # type: ignore[misc]
        elif kind == "roll":
            made.append(lambda t: t.permute(3, 0, 1, 2))
        elif kind == "fold":
            at = data(st.integers(0, 2))
            made.append(lambda t, at=at: t.flatten(at, at + 1).unflatten(at, (N, N)))  # type: ignore[misc]
        else:
            made.append(lambda t, a=a: t.narrow(a, 0, 1).expand(N, N, N, N))  # type: ignore[misc]
    return made


def through(t: Tensor, steps: Sequence[Move]) -> Tensor:
    for step in steps:
        t = step(t)
    return t


SETTINGS = settings(
    max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(
    rotate=st.sampled_from(ROTATIONS),
    before=moves(),
    behind=moves(),
    k_before=st.none() | moves(),
    norm=st.sampled_from(["none", "channels", "heads"]),
    lead=st.tuples(*[st.sampled_from([1, N])] * 3),
    part=st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()),
    laid=st.permutations(range(4)),
)
def test_any_moves_round_a_rotation(
    rotate: Callable[..., Tensor],
    before: list[Move],
    behind: list[Move],
    k_before: list[Move] | None,
    norm: str,
    lead: tuple[int, int, int],
    part: tuple[int, int, bool] | None,
    laid: list[int],
) -> None:
    def one(x: Tensor, steps: list[Move], c: Tensor, s: Tensor, w: Tensor) -> Tensor:
        if norm == "channels":
            x = rms(x, w[:N])
        elif norm == "heads":
            x = rms(x.flatten(2), w).unflatten(-1, (N, N))
        y = through(x, steps)
        if part is None:
            y = through(rotate(y, c, s), behind)
        else:
            axis, start, moved = part
            rows = y.narrow(axis, start, 2)
            turned = rotate(rows, *(t.narrow(axis, 0, min(2, t.shape[axis])) for t in (c, s)))
            if moved and axis < 2:
                turned = turned.transpose(axis + 1, 3 - axis if axis == 1 else 2)
            sides = (y.narrow(axis, 0, start), turned, y.narrow(axis, start + 2, N - start - 2))
            y = torch.cat(sides, axis)
        return y

    def fn(q: Tensor, k: Tensor, c: Tensor, s: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        out = [one(q, before, c, s, w)]
        if k_before is not None:
            out.append(one(k, k_before, c, s, w))
        return tuple(out)

    back = [laid.index(i) for i in range(4)]
    q, k = draw(N, N, N, N), draw(N, N, N, N, seed=1).permute(laid).contiguous().permute(back)
    args = (q, k, *(draw(*lead, N // 2, seed=i) for i in (2, 3)), draw(N * N, seed=4))
    assert_right(fn, args, passed(fn, *args))


def test_symbolic_sizes_find_the_same_sites() -> None:
    """Tokens of unknown number, and heads split off behind the norm."""

    def fn(q: Tensor, c: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return p1(rms(q, w).unflatten(-1, (4, 4)), c, s)

    args = (draw(3, 7, 16), draw(7, 4, seed=1), draw(7, 4, seed=2), draw(16, seed=3))
    seen = passed(fn, *args, dynamic=(3, 7))
    assert seen.outcomes() == [("qk_norm_rotary", "rewritten")]
    assert_right(fn, args, seen)

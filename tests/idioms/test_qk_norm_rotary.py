"""q,k norm and rotation as one operator: spellings, streams side by side, and what is left
alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.accuracy import assert_no_worse
from tests.idioms.rotary_spellings import (
    Spelling,
    doubled,
    halves,
    matrices,
    p1,
    p2,
    p3,
    p4,
    p5,
    p7,
    p8,
    per_head,
    split,
    unit,
)
from tests.rewriting import ON_CPU, Rewritten, rewrite
from tests.without_codegen import without_codegen

pytestmark = pytest.mark.pairwise

# float16 and not bfloat16: Triton's interpreter truncates to bfloat16, where the compiled kernels
# round.
F16, F32 = torch.float16, torch.float32
HEADS, SIZE = 3, 16
Norm = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def no_kernel_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A kernel that fails falls back to plain torch and logs it: no test of a kernel may pass that
    way.
    """
    yield
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]


def r1(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def r2(x: Tensor, weight: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-6)).to(x.dtype) * weight


def run(fn: Callable[..., object], *args: object, **options: object) -> Rewritten:
    idioms = {"idioms": "qk_norm_rotary,rotary_pair,rotary"}
    with without_codegen():
        return rewrite(fn, *args, options={**idioms, **options})


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weight_of(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return (1 + 0.1 * draw(size, dtype=F32, seed=seed)).to(dtype)


def angles(tokens: int, seed: int = 9) -> Tensor:
    return torch.rand(tokens, SIZE // 2, generator=torch.Generator().manual_seed(seed)) * 6.28


def exact(
    x: Tensor, weight: Tensor, theta: Tensor, interleaved: bool = True, across: bool = False
) -> Tensor:
    """Norm and rotation of x [B, S, H, D] in float64."""
    wide = (x.flatten(2) if across else x).double()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    y = y.reshape(x.shape)
    cos, sin = theta.cos().double()[:, None], theta.sin().double()[:, None]
    a, b = (y[..., 0::2], y[..., 1::2]) if interleaved else y.chunk(2, dim=-1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


PER_HEAD = (
    Spelling(p1, doubled),
    Spelling(p2, doubled),
    Spelling(p3, unit),
    Spelling(p4, halves, interleaved=False),
    Spelling(p5, per_head),
    Spelling(p7, matrices),
)


OVER_ALL = (Spelling(p2, doubled), Spelling(p8, split, interleaved=False, flat=True))


@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
@pytest.mark.parametrize("norm", [r1, r2], ids=["R1", "R2"])
@pytest.mark.parametrize("spelling", PER_HEAD, ids=lambda s: s.name)
def test_per_head(spelling: Spelling, norm: Norm, dtype: torch.dtype) -> None:
    q, k = draw(2, 7, HEADS, SIZE, dtype=dtype), draw(2, 7, HEADS, SIZE, dtype=dtype, seed=1)
    wq, wk = weight_of(SIZE, dtype, 2), weight_of(SIZE, dtype, 3)
    theta = angles(7)
    tables = spelling.tables(theta, tuple(q.shape), dtype)

    def attention(
        q: Tensor, k: Tensor, wq: Tensor, wk: Tensor, *tables: Tensor
    ) -> tuple[Tensor, Tensor]:
        return spelling.rotate(norm(q, wq), *tables), spelling.rotate(norm(k, wk), *tables)

    seen = run(attention, q, k, wq, wk, *tables)
    entry = seen.only()
    assert (entry.idiom, entry.outcome, entry.lowering) == ("qk_norm_rotary", "rewritten", ON_CPU)
    assert dict(entry.covers) == {"rotary": 2, "rms_norm": 2}
    original = attention(q, k, wq, wk, *tables)
    for ours, before, x, weight in zip(seen.result, original, (q, k), (wq, wk), strict=True):
        assert_no_worse(ours, before, exact(x, weight, theta, spelling.interleaved))


@pytest.mark.parametrize("norm", [r1, r2], ids=["R1", "R2"])
@pytest.mark.parametrize("spelling", OVER_ALL, ids=lambda s: s.name)
def test_over_all_heads(spelling: Spelling, norm: Norm) -> None:
    """Wan's norm runs over all heads before they are split; LTX-2's rotation splits them itself."""
    x, weight, theta = (
        draw(2, 7, HEADS * SIZE, dtype=F16),
        weight_of(HEADS * SIZE, F16, 2),
        angles(7),
    )
    tables = spelling.tables(theta, (2, 7, HEADS, SIZE), F16)

    def attention(x: Tensor, weight: Tensor, *tables: Tensor) -> Tensor:
        y = norm(x, weight)
        return spelling.rotate(y if spelling.flat else y.unflatten(2, (HEADS, -1)), *tables)

    seen = run(attention, x, weight, *tables)
    entry = seen.only()
    assert (entry.idiom, entry.parameters["across_heads"]) == ("qk_norm_rotary", True)
    truth = exact(x.unflatten(2, (HEADS, -1)), weight, theta, spelling.interleaved, across=True)
    assert_no_worse(seen.result, attention(x, weight, *tables), truth.reshape(seen.result.shape))


def streams(dtype: torch.dtype) -> list[Tensor]:
    """Text and image q, then k, of 3 and 5 tokens; their weights."""
    made = [draw(2, s, HEADS, SIZE, dtype=dtype, seed=i) for i, s in enumerate((3, 5, 3, 5))]
    return made + [weight_of(SIZE, dtype, 10 + i) for i in range(4)]


def check_streams(
    seen: Rewritten, original: tuple[Tensor, Tensor], theta: Tensor, given: list[Tensor]
) -> None:
    entry = seen.only()
    assert (entry.idiom, entry.outcome) == ("qk_norm_rotary", "rewritten")
    assert entry.parameters["streams"] == 2
    assert torch.ops.aten.cat.default not in seen.targets()
    for i, (ours, before) in enumerate(zip(seen.result, original, strict=True)):
        parts = [
            exact(given[2 * i + j], given[4 + 2 * i + j], t)
            for j, t in enumerate((theta[:3], theta[3:]))
        ]
        assert_no_worse(ours, before, torch.cat(parts, dim=1))


@pytest.mark.parametrize("norm", [r1, r2], ids=["R1", "R2"])
def test_joined_before_the_rotation(norm: Norm) -> None:
    """FLUX: norm, then text and image side by side, then one rotation."""
    given, theta = streams(F16), angles(8)

    def attention(*given: Tensor) -> tuple[Tensor, Tensor]:
        tq, q, tk, k, wtq, wq, wtk, wk, cos, sin = given
        joint_q = torch.cat([norm(tq, wtq), norm(q, wq)], dim=1)
        return p1(joint_q, cos, sin), p1(torch.cat([norm(tk, wtk), norm(k, wk)], dim=1), cos, sin)

    args = (*given, *doubled(theta))
    check_streams(run(attention, *args), attention(*args), theta, given)


def test_joined_behind_the_rotation() -> None:
    """Qwen-Image: text and image have tables of their own."""
    given, theta = streams(F16), angles(8)

    def attention(*given: Tensor) -> tuple[Tensor, Tensor]:
        tq, q, tk, k, wtq, wq, wtk, wk, text, image = given
        rotated = (
            p3(r2(tq, wtq), text),
            p3(r2(q, wq), image),
            p3(r2(tk, wtk), text),
            p3(r2(k, wk), image),
        )
        return torch.cat(rotated[:2], dim=1), torch.cat(rotated[2:], dim=1)

    args = (*given, *unit(theta[:3]), *unit(theta[3:]))
    check_streams(run(attention, *args), attention(*args), theta, given)


def test_joined_with_a_stream_that_is_not_rotated() -> None:
    """HunyuanVideo: the text behind the image is normalised only."""
    given, theta = streams(F16), angles(8)
    theta[3:] = 0

    def attention(*given: Tensor) -> tuple[Tensor, Tensor]:
        q, tq, k, tk, wq, wtq, wk, wtk, cos, sin = given
        joint_q = torch.cat([p1(r2(q, wq), cos, sin), r2(tq, wtq)], dim=1)
        return joint_q, torch.cat([p1(r2(k, wk), cos, sin), r2(tk, wtk)], dim=1)

    args = (*given, *doubled(theta[:3]))
    check_streams(run(attention, *args), attention(*args), theta, given)


def test_grouped_queries() -> None:
    q, k = draw(1, 5, 6, SIZE, dtype=F16), draw(1, 5, 2, SIZE, dtype=F16, seed=1)
    wq, wk, theta = weight_of(SIZE, F16, 2), weight_of(SIZE, F16, 3), angles(5)

    def attention(q: Tensor, k: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> object:
        return p1(r1(q, wq), cos, sin), p1(r1(k, wk), cos, sin)

    seen = run(attention, q, k, wq, wk, *doubled(theta))
    assert dict(seen.only().covers) == {"rotary": 2, "rms_norm": 2}
    for ours, x, weight in zip(seen.result, (q, k), (wq, wk), strict=True):
        assert_no_worse(ours, p1(r1(x, weight), *doubled(theta)), exact(x, weight, theta))


def test_a_norm_used_elsewhere_too_is_left_alone() -> None:
    q, weight, theta = draw(1, 5, HEADS, SIZE, dtype=F16), weight_of(SIZE, F16, 2), angles(5)

    def attention(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        y = r1(q, weight)
        return p1(y, cos, sin), y

    seen = run(attention, q, weight, *doubled(theta))
    assert [(e.idiom, e.outcome) for e in seen.sites] == [("rotary", "rewritten")]
    assert_no_worse(
        seen.result[0], attention(q, weight, *doubled(theta))[0], exact(q, weight, theta)
    )


def test_weights_as_one_plus_w_are_left_to_the_rotation_alone() -> None:
    """Gemma's norm multiplies by (1 + w)."""
    q, weight, theta = draw(1, 5, HEADS, SIZE, dtype=F16), 0.1 * draw(SIZE, dtype=F16), angles(5)

    def attention(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        f = q.float()
        y = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + weight.float())
        return p1(y.to(q.dtype), cos, sin)

    seen = run(attention, q, weight, *doubled(theta))
    assert [e.idiom for e in seen.sites] == ["rotary"]
    assert_no_worse(
        seen.result, attention(q, weight, *doubled(theta)), exact(q, 1 + weight.double(), theta)
    )

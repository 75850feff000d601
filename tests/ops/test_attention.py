"""Attention in tiles: as exact as torch's, in bounded memory, whatever the shape."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rocm_passes.ops import attention as op
from rocm_passes.ops.attention_tiles import LEAST, Tile, chosen
from rocm_passes.policy.bounds import ATTENTION_MIB
from tests.accuracy import assert_no_worse, ulp

#: Of diffusers' models and VAEs: 8 to 24 in the zoo's tiny ones; 40 and 80 (SD 1.5), 64 (SDXL, SD3,
#: LTX), 72 (PixArt), 88 (Allegro), 96, 128 (Wan, FLUX, Qwen-Image, Z-Image), 160 and 256; of VAEs
#: 384 (Wan), 512 (SD, FLUX), 640 and 1024.
HEAD_SIZES = (2, 4, 8, 12, 16, 24, 40, 64, 72, 80, 88, 96, 128, 160, 256, 384, 512, 640, 1024)


def operands(
    q: tuple[int, ...], k: tuple[int, ...], dtype: torch.dtype, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    v = (*k[:3], width or k[3])
    return torch.randn(q).to(dtype), torch.randn(k).to(dtype), torch.randn(v).to(dtype)


def call(q: Tensor, k: Tensor, v: Tensor, mib: float = ATTENTION_MIB.value, **more: Any) -> Any:
    given = {"bias": None, "scale": q.shape[3] ** -0.5, "causal": False, "kernel": "math"}
    return op.Attention(q, k, v, **{**given, **more, "memory_mib": mib})


def check(made: op.Attention, original: Tensor, exact: Tensor) -> Tensor:
    out = op.reference(made)
    if out.dtype is torch.float32:
        # Both round the scores. Half a unit of a score changes its weight by as much, relatively,
        # however small the result is: the unit is one of the largest score.
        scores = made.q.double() @ made.k.double().transpose(2, 3) * made.scale
        unit = ulp(scores.abs().max(), out.dtype) * exact.abs().max()
        allowed = (original.double() - exact).abs().max() + unit
        assert (out.double() - exact).abs().max() <= allowed
    else:
        assert_no_worse(out, original, exact)
    return out


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_no_worse_than_torch_on_the_head_sizes_of_models(size: int, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 2, 34, size), (1, 2, 45, size), dtype)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    for mib in (ATTENTION_MIB.value, 0.01):
        out = check(call(q, k, v, mib), F.scaled_dot_product_attention(q, k, v), exact)
        assert out.transpose(1, 2).is_contiguous()
        assert out.stride() == op.fake(call(q, k, v)).stride()


@pytest.mark.parametrize("mib", [256.0, 0.02, 0.0])
@pytest.mark.parametrize(("queries", "keys"), [(40, 40), (40, 70), (70, 40), (1, 9), (70, 1)])
def test_causal_is_aligned_to_the_first_query_and_key(queries: int, keys: int, mib: float) -> None:
    q, k, v = operands((1, 2, queries, 16), (1, 2, keys, 16), torch.bfloat16)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    original = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    check(call(q, k, v, mib, causal=True), original, exact)


@pytest.mark.parametrize("mib", [256.0, 0.02, 0.0])
@pytest.mark.parametrize("shape", [(40, 70), (1, 1, 1, 70), (2, 1, 40, 70), (2, 6, 40, 70)])
def test_a_bias_of_any_shape_beside_grouped_heads(shape: tuple[int, ...], mib: float) -> None:
    q, k, v = operands((2, 6, 40, 16), (2, 3, 70, 16), torch.bfloat16, width=24)
    bias = torch.randn(shape)
    bias[..., ::3] = -math.inf
    wide = (t.double() for t in (q, k, v))
    exact = F.scaled_dot_product_attention(*wide, attn_mask=bias.double(), enable_gqa=True)
    original = F.scaled_dot_product_attention(
        *(t.float() for t in (q, k, v)), attn_mask=bias, enable_gqa=True
    ).bfloat16()
    check(call(q, k, v, mib, bias=bias), original, exact)


def test_a_row_without_a_key_is_0_also_where_only_its_first_tiles_have_none() -> None:
    q, k, v = operands((1, 1, 40, 16), (1, 1, 64, 16), torch.float32)
    bias = torch.zeros(40, 64)
    bias[3] = -math.inf
    bias[5, :60] = -math.inf
    for mib in (256.0, 0.0):
        out = op.reference(call(q, k, v, mib, bias=bias))
        exact = F.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), attn_mask=bias.double()
        )
        assert torch.equal(out[0, 0, 3], torch.zeros(16))
        torch.testing.assert_close(out.double(), exact, atol=1e-6, rtol=0)


def test_nan_and_infinity_reach_the_rows_that_read_them() -> None:
    q, k, v = operands((1, 1, 40, 16), (1, 1, 40, 16), torch.float32)
    q[0, 0, 1, 2] = math.nan
    v[0, 0, 5, 7] = math.inf
    out = op.reference(call(q, k, v, 0.0))
    expected = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.isinf(), expected.isinf())


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_empty_operands(empty: int) -> None:
    shape = [2, 2, 8, 16]
    shape[empty] = 0
    q, k, v = operands(tuple(shape), tuple(shape), torch.bfloat16)
    assert op.reference(call(q, k, v)).shape == q.shape


def test_no_keys_give_0() -> None:
    q, k, v = operands((1, 1, 8, 16), (1, 1, 0, 16), torch.bfloat16)
    assert torch.equal(op.reference(call(q, k, v)), torch.zeros_like(q))


def test_strided_and_expanded_operands() -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 40, 3 * 4 * 16)
    q, k, v = (t.view(2, 40, 4, 16).transpose(1, 2) for t in packed.chunk(3, dim=2))
    out = op.reference(call(q, k[:, :1].expand(k.shape), v[:, :1].expand(v.shape), 0.0))
    one = op.reference(call(q, k[:, :1], v[:, :1], 0.0))
    assert torch.equal(out, one)


class Held(TorchDispatchMode):
    """The most bytes that new tensors hold at once; `given` are not new, nor their views."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._note(result.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.now -= size


def test_the_meter_sees_what_plain_attention_holds() -> None:
    q, k, v = operands((1, 1, 512, 16), (1, 1, 512, 16), torch.float32)
    with Held(q, k, v) as held:
        torch.softmax(q @ k.transpose(2, 3), 3) @ v
    assert held.peak >= 2 * 512 * 512 * 4


@pytest.mark.parametrize(
    ("heads", "length", "size", "mib"), [(1, 2048, 64, 4.0), (4, 512, 32, 1.0), (1, 3000, 16, 1.0)]
)
def test_memory_keeps_to_the_bound(heads: int, length: int, size: int, mib: float) -> None:
    q, k, v = operands((2, heads, length, size), (2, heads, length, size), torch.bfloat16)
    made = call(q, k, v, mib, causal=True)
    with Held(q, k, v) as held:
        out = op.reference(made)
    beside = held.peak - out.untyped_storage().nbytes()
    assert 0.3 * mib * 2**20 < beside <= mib * 2**20, beside / 2**20
    assert made.scores_mib() > 4 * mib


@pytest.mark.parametrize("size", [384, 512, 1024])
def test_the_tile_of_a_vae_at_2048_pixels_keeps_to_the_bound(size: int) -> None:
    """256 x 256 latents: all scores would take 16 GiB."""
    q = torch.empty(1, 1, 256 * 256, size, device="meta", dtype=torch.bfloat16)
    made = call(q, q, q)
    tile = chosen(q, q, q, made.memory_mib)
    assert made.scores_mib() == 16 * 1024
    assert tile.mib(1, size, size) <= ATTENTION_MIB.value == 256
    assert tile.queries >= 2048 and tile.keys >= 2048
    if size == 512:
        assert (tile.queries, tile.keys, round(tile.mib(1, size, size))) == (4096, 8192, 216)


def test_a_tile_is_cut_no_further_than_a_kernel_needs() -> None:
    q = torch.empty(3, 4, 100, 8, device="meta")
    assert chosen(q, q, q, 0.0) == Tile(1, 1, 13, 13) and LEAST // 2 < 13

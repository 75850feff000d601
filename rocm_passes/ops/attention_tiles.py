"""Attention in float32, tile by tile, in bounded memory. Plain torch, for any device.

A tile is some batches, key heads, queries and keys. Over several tiles of keys the softmax is
carried along as a maximum and a sum for each query (Milakov and Gimelshein, 2018,
arXiv:1805.02867). Where one tile has all keys, that is the plain softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: A tile has at least as many queries and keys, or as many as there are.
LEAST = 16
#: float32 numbers a query beside its channels and scores: maxima, sums, and what replaces them.
PER_QUERY = 8


@dataclass(frozen=True)
class Tile:
    """How many batches, key heads, queries and keys are computed at once."""

    batches: int
    heads: int
    queries: int
    keys: int

    def mib(self, group: int, channels: int, value_channels: int) -> float:
        """MiB held in float32: scores, q, two results of the second product, k and v."""
        query = self.keys + channels + 2 * value_channels + PER_QUERY
        key = channels + value_channels
        rows = group * self.queries * query + self.keys * key
        mask = self.queries * self.keys / 4
        return (self.batches * self.heads * rows + mask) * 4 / 2**20


def chosen(q: Tensor, k: Tensor, v: Tensor, mib: float) -> Tile:
    """The largest tile within the bound. What is halved first: batches, heads, then the longer of
    queries and keys. Below LEAST of both it is not cut, whatever the bound.
    """
    group = q.shape[1] // k.shape[1]
    tile = Tile(q.shape[0], k.shape[1], q.shape[2], k.shape[2])
    while tile.mib(group, q.shape[3], v.shape[3]) > mib:
        if tile.batches > 1:
            tile = replace(tile, batches=-(-tile.batches // 2))
        elif tile.heads > 1:
            tile = replace(tile, heads=-(-tile.heads // 2))
        elif tile.queries >= tile.keys and tile.queries > LEAST:
            tile = replace(tile, queries=-(-tile.queries // 2))
        elif tile.keys > LEAST:
            tile = replace(tile, keys=-(-tile.keys // 2))
        elif tile.queries > LEAST:
            tile = replace(tile, queries=-(-tile.queries // 2))
        else:
            return tile
    return tile


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, causal: bool, mib: float
) -> Tensor:
    """q [B, H, Sq, D], k [B, Hk, Sk, D], v [B, Hk, Sk, Dv]; see ops/attention.py."""
    batch, heads, queries, _ = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_()
    group = heads // k.shape[1]
    wide = bias.expand(batch, heads, queries, k.shape[2]) if bias is not None else None
    tile = chosen(q, k, v, mib)
    for b in spans(batch, tile.batches):
        for h in spans(k.shape[1], tile.heads):
            grouped = slice(h.start * group, h.stop * group)
            for rows in spans(queries, tile.queries):
                out[b, grouped, rows] = _rows(
                    q[b, grouped, rows],
                    k[b, h],
                    v[b, h],
                    None if wide is None else wide[b, grouped, rows],
                    scale,
                    rows.start if causal else None,
                    tile.keys,
                )
    return out


def spans(size: int, step: int) -> Iterator[slice]:
    return (slice(at, min(at + step, size)) for at in range(0, size, step))


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    first: int | None,
    step: int,
) -> Tensor:
    """The result of some queries [b, h, s, Dv] in float32. first: the place of the first query,
    where it sees no key behind its own; None where all keys are seen.
    """
    batch, heads, count, channels = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    wide = _packed(q).view(batch * k.shape[1], group * count, channels)
    largest = wide.new_full((*wide.shape[:2], 1), -math.inf)
    total = torch.zeros_like(largest)
    result = wide.new_zeros(*wide.shape[:2], v.shape[3])
    # Behind the last query's own place no key is seen.
    seen = keys if first is None else min(keys, first + count)
    for at in spans(seen, step):
        # Of scaled queries the products would carry a rounding more.
        scores = torch.bmm(wide, _flat(k[:, :, at]).transpose(1, 2)).mul_(scale)
        by_row = scores.view(batch, heads, count, at.stop - at.start)
        if bias is not None:
            by_row += bias[..., at]
        if first is not None and at.stop > first + 1:
            by_row.masked_fill_(_hidden(first, count, at, q.device), -math.inf)
        now = torch.maximum(largest, scores.amax(2, keepdim=True))
        # Of a row without a key so far every score is -inf, and -inf less itself is no number.
        base = now.masked_fill(now == -math.inf, 0.0)
        weights = scores.sub_(base).exp_()
        kept = largest.sub_(base).exp_()
        total = total.mul_(kept).add_(weights.sum(2, keepdim=True))
        result.mul_(kept).add_(torch.bmm(weights, _flat(v[:, :, at])))
        largest = now
        # The next tile's scores are made before the names are bound anew: two tiles would be held.
        del scores, by_row, weights
    result /= total.masked_fill_(total == 0, 1.0)
    return result.view(batch, heads, count, v.shape[3])


def _packed(t: Tensor) -> Tensor:
    """A contiguous copy in float32, made in one step."""
    return torch.empty(t.shape, dtype=torch.float32, device=t.device).copy_(t)


def _flat(t: Tensor) -> Tensor:
    """[b, h, s, d] as [b * h, s, d] in float32; a view where it can be one."""
    return (t if t.dtype is torch.float32 else _packed(t)).reshape(-1, *t.shape[2:])


def _hidden(first: int, count: int, at: slice, device: torch.device) -> Tensor:
    """Where a key stands behind its query: [count, keys of the tile]."""
    rows = torch.arange(first, first + count, device=device)
    return torch.arange(at.start, at.stop, device=device) > rows[:, None]

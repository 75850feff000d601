"""The shapes that a rank has of a model: shards of tables, heads, channels, tokens and frames."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from tests.distributed.checks import Findings, check, distance, sites
from tests.idioms.rotary_spellings import p1, p2
from tests.rewriting import Rewritten, rewrite

TOKENS, HEADS, WIDTH = 8, 4, 16
CHANNELS = HEADS * WIDTH


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (2,))


def mine(x: Tensor, dim: int) -> Tensor:
    return x.tensor_split(2, dim)[dist.get_rank()]


def rms(x: Tensor, weight: Tensor) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def found(done: Rewritten, expected: Tensor) -> Findings:
    result = done.result if isinstance(done.result, Tensor) else done.result[0]
    return {"sites": sites(done), "distance": distance(result, expected)}


def tables(tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    angles = torch.randn(tokens, WIDTH // 2).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


@check
def tables_sliced_per_rank() -> Findings:
    """The graph has the whole tables, and slices its rank's rows of them."""
    q, k = torch.randn(2, 1, TOKENS, HEADS, WIDTH, dtype=torch.bfloat16)
    cos, sin = tables()

    def sliced(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        cos, sin = mine(cos, 0), mine(sin, 0)
        return torch.cat([p2(q, cos, sin), p2(k, cos, sin)], 1)

    done = rewrite(sliced, mine(q, 1), mine(k, 1), cos, sin)
    return found(done, torch.cat([mine(p2(x, cos, sin), 1) for x in (q, k)], 1))


class Attention(nn.Module):
    """q and k with norms per head, or over all heads, and rotations."""

    def __init__(self, across_heads: bool) -> None:
        super().__init__()
        self.across_heads, self.sharded = across_heads, False
        for name in ("to_q", "to_k", "to_v", "out"):
            setattr(self, name, nn.Linear(CHANNELS, CHANNELS, bias=False))
        size = CHANNELS if across_heads else WIDTH
        self.norm_q, self.norm_k = (nn.Parameter(torch.rand(size)) for _ in "qk")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if self.across_heads:
            q, k = rms(q, self.norm_q), rms(k, self.norm_k)
        if self.sharded:
            q, k, v = (each.to_local() for each in (q, k, v))
        q, k, v = (each.unflatten(-1, (-1, WIDTH)) for each in (q, k, v))
        if not self.across_heads:
            q, k = rms(q, self.norm_q), rms(k, self.norm_k)
        q, k = p1(q, cos, sin), p1(k, cos, sin)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def _attention(across_heads: bool) -> Findings:
    model = Attention(across_heads).to(torch.bfloat16)
    x = torch.randn(1, TOKENS, CHANNELS, dtype=torch.bfloat16)
    cos, sin = tables()
    with torch.no_grad():
        expected = model(x, cos, sin)
    columns = {
        n: ColwiseParallel(use_local_output=not across_heads) for n in ("to_q", "to_k", "to_v")
    }
    parallelize_module(model, mesh(), {**columns, "out": RowwiseParallel()})
    if across_heads:
        for name in ("norm_q", "norm_k"):
            sharded = distribute_tensor(getattr(model, name).data, mesh(), [Shard(0)])
            setattr(model, name, nn.Parameter(sharded))
        model.sharded = True
    return found(rewrite(model, x, cos, sin), expected)


@check
def norms_of_sharded_heads() -> Findings:
    return _attention(across_heads=False)


@check
def norms_across_sharded_channels() -> Findings:
    return _attention(across_heads=True)


@check
def residuals_of_sharded_tokens() -> Findings:
    """Sequence parallel: the residual chain runs on a rank's tokens, products on all of them."""
    x, part = torch.randn(2, TOKENS, CHANNELS, dtype=torch.bfloat16)
    gate, scale, shift = torch.randn(3, 1, CHANNELS, dtype=torch.bfloat16)
    group = dist.group.WORLD

    def normed(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.float(), (CHANNELS,)).to(x.dtype) * (1 + scale) + shift

    def block(x: Tensor, part: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Any:
        summed = funcol.reduce_scatter_tensor(part, "sum", 0, group)
        x = x + summed * gate
        y = nn.functional.layer_norm(x.float(), (CHANNELS,)).to(x.dtype) * (1 + scale) + shift
        return funcol.all_gather_tensor(y, 0, group), x

    done = rewrite(block, mine(x, 0), part, gate, scale, shift)
    return found(done, normed(x + (part + part) * gate))


@check
def a_padded_last_shard() -> Findings:
    """Seven tokens on two ranks: the last one's are padded before they are gathered."""
    x, weight = torch.randn(7, CHANNELS, dtype=torch.bfloat16), torch.rand(CHANNELS).bfloat16()
    group = dist.group.WORLD
    lacks = 4 - mine(x, 0).shape[0]

    def block(x: Tensor, weight: Tensor) -> Tensor:
        y = nn.functional.pad(rms(x, weight), (0, 0, 0, lacks))
        return rms(funcol.all_gather_tensor(y, 0, group)[:7], weight)

    return found(rewrite(block, mine(x, 0), weight), rms(rms(x, weight), weight))


def exchanged(x: Tensor, dim: int, front: int, behind: int) -> tuple[Tensor, Tensor]:
    """The neighbours' last and first slices, zeros at the ends, as a halo exchange gives them."""
    rank, size = dist.get_rank(), x.shape[dim]
    edges = torch.cat([x.narrow(dim, 0, behind), x.narrow(dim, size - front, front)], dim)
    both = funcol.all_gather_tensor(edges.contiguous(), 0, dist.group.WORLD).chunk(2)
    other = both[1 - rank]
    zeros = torch.zeros_like(other)
    before = (other if rank == 1 else zeros).narrow(dim, behind, front)
    after = (other if rank == 0 else zeros).narrow(dim, 0, behind)
    return before, after


def _halo(dim: int, front: int, behind: int, padding: tuple[int, int, int]) -> Findings:
    x, weight = torch.randn(1, 4, 8, 6, 6), torch.randn(4, 4, 3, 3, 3)

    def split(x: Tensor, weight: Tensor) -> Tensor:
        before, after = exchanged(x, dim, front, behind)
        pieces = [before, x, after] if behind else [before, x]
        return nn.functional.conv3d(torch.cat(pieces, dim), weight, padding=padding)

    done = rewrite(split, mine(x, dim), weight)
    around = [0, 0, 0, 0, 0, 0]
    around[2 * (4 - dim)], around[2 * (4 - dim) + 1] = front, behind
    whole = nn.functional.conv3d(nn.functional.pad(x, around), weight, padding=padding)
    result = found(done, mine(whole, dim))
    (entry,) = done.sites
    return {**result, "pieces": entry.parameters["pieces"], "halo": entry.parameters.get("halo")}


@check
def a_halo_of_frames_in_front() -> Findings:
    return _halo(2, 2, 0, (0, 1, 1))


@check
def a_halo_of_frames_on_both_sides() -> Findings:
    return _halo(2, 1, 1, (0, 1, 1))


@check
def a_halo_of_rows() -> Findings:
    return _halo(3, 1, 1, (1, 0, 1))

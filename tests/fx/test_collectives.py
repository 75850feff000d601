"""Sites beside functional collectives, in graphs traced with a fake process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, fx
from torch._inductor import config as inductor_config
from torch.testing._internal.distributed.fake_pg import FakeStore

from rocm_passes.fx.collectives import is_collective, is_wait
from tests.idioms.rotary_spellings import p1 as rotated
from tests.rewriting import Rewritten, rewrite

TOKENS, HEADS, WIDTH = 8, 4, 16
CHANNELS = HEADS * WIDTH


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """One rank of two. Collectives give their shapes and no values."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def rms(x: Tensor, weight: Tensor) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def started(x: Tensor) -> Tensor:
    half = [x.numel() // 2] * 2
    return torch.ops._c10d_functional.all_to_all_single(x.flatten(), half, half, "0")


def wait(x: Tensor) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(x)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.bfloat16) for s in shapes]


def norm_and_rotate(x: Tensor, w: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(rms(x @ w, weight).unflatten(-1, (HEADS, WIDTH)), cos, sin)


def attention_inputs() -> list[Tensor]:
    square, row = (CHANNELS, CHANNELS), (CHANNELS,)
    x, wq, wk, nq, nk = tensors((1, TOKENS, CHANNELS), square, square, row, row)
    return [x, wq, wk, nq, nk, torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)]


def order(graph: fx.Graph) -> list[str]:
    """Collectives, waits and our operators, as they stand in the graph."""
    ours = [n for n in graph.nodes if getattr(n.target, "namespace", "") == "rocm_passes"]
    named = [n for n in graph.nodes if is_collective(n) or is_wait(n) or n in ours]
    return [n.target._opname for n in named]


def compiled(fn: Callable[..., Any], *args: Tensor, **how: Any) -> Rewritten:
    found = rewrite(fn, *args, **how)
    graph = found.after[0]
    before = [n for n in found.before[0].nodes if is_collective(n) or is_wait(n)]
    after = [n for n in graph.nodes if is_collective(n) or is_wait(n)]
    assert [n.target for n in before] == [n.target for n in after]
    return found


def ulysses(x: Tensor, wq: Tensor, wk: Tensor, nq: Tensor, nk: Tensor, *tables: Tensor) -> Any:
    """As diffusers exchanges heads for tokens: q is sent while k is computed."""
    q = norm_and_rotate(x, wq, nq, *tables)
    sent = started(q)
    k = norm_and_rotate(x, wk, nk, *tables)
    return wait(sent), wait(started(k))


def test_q_and_k_are_two_sites_where_q_is_sent_while_k_is_computed() -> None:
    found = compiled(ulysses, *attention_inputs())
    assert order(found.after[0]) == [
        "qk_norm_rotary", "all_to_all_single", "qk_norm_rotary", "all_to_all_single",
        "wait_tensor", "wait_tensor",
    ]  # fmt: skip
    assert [s.idiom for s in found.sites] == ["qk_norm_rotary", "qk_norm_rotary"]
    assert all("runs beside the rest" in s.considered[0] for s in found.sites)


def test_q_and_k_are_one_site_where_both_are_sent_together() -> None:
    def together(x: Tensor, wq: Tensor, wk: Tensor, nq: Tensor, nk: Tensor, *t: Tensor) -> Any:
        both = torch.cat([norm_and_rotate(x, wq, nq, *t), norm_and_rotate(x, wk, nk, *t)], 1)
        return wait(started(both))

    found = compiled(together, *attention_inputs())
    assert order(found.after[0]) == ["qk_norm_rotary", "all_to_all_single", "wait_tensor"]


def test_inductor_s_reordering_parts_q_and_k_wherever_the_collective_stands() -> None:
    def both_first(x: Tensor, wq: Tensor, wk: Tensor, nq: Tensor, nk: Tensor, *t: Tensor) -> Any:
        q, k = norm_and_rotate(x, wq, nq, *t), norm_and_rotate(x, wk, nk, *t)
        # The sum holds back the collective in the graph's order, and is none of its inputs.
        return wait(started(q + 0 * k)), wait(started(k)), wait(started(q))

    with inductor_config.patch(reorder_for_compute_comm_overlap=True):
        found = compiled(both_first, *attention_inputs())
    assert order(found.after[0]).count("qk_norm_rotary") == 2


def test_rotations_without_norms_are_parted_too() -> None:
    def sent(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        first = started(rotated(q, cos, sin))
        return wait(first), wait(started(rotated(k, cos, sin)))

    tables = [torch.randn(TOKENS, WIDTH) for _ in range(2)]
    found = compiled(sent, *tensors(*[(1, TOKENS, HEADS, WIDTH)] * 2), *tables)
    assert order(found.after[0])[:3] == ["rotary", "all_to_all_single", "rotary"]


def norm_beside_a_wait(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """The norm runs while the modulation is gathered."""
    gathering = torch.ops._c10d_functional.all_gather_into_tensor(scale, 2, "0")
    y = rms(x, weight)
    return y * (1 + wait(gathering))


def test_a_norm_stays_beside_the_collective_that_its_modulation_waits_for() -> None:
    found = compiled(norm_beside_a_wait, *tensors((8, 64), (4, 64), (64,)))
    assert order(found.after[0]) == ["all_gather_into_tensor", "rms_norm", "wait_tensor"]
    assert "would move behind the wait" in found.only().considered[0]


def test_a_cast_beside_a_collective_does_not_part_what_waits_for_it() -> None:
    """Inductor computes pointwise code where it is read: behind the wait in any case."""

    def block(x: Tensor, part: Tensor, weight: Tensor) -> Tensor:
        start = torch.ops._c10d_functional.all_reduce(part, "sum", "0")
        wide = x.float() * 2
        y = wide + wait(start).float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight

    found = compiled(block, *tensors((8, 64), (8, 64), (64,)))
    assert order(found.after[0])[:2] == ["all_reduce", "wait_tensor"]
    assert [s.outcome for s in found.sites] == ["rewritten"]


def test_a_norm_behind_the_wait_takes_its_modulation() -> None:
    def behind(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        gathered = wait(torch.ops._c10d_functional.all_gather_into_tensor(scale, 2, "0"))
        return rms(x + gathered, weight) * (1 + gathered)

    found = compiled(behind, *tensors((8, 64), (4, 64), (64,)))
    assert order(found.after[0]) == ["all_gather_into_tensor", "wait_tensor", "fused_norm"]


def test_a_residual_chain_of_tensor_parallel_blocks_is_one_site() -> None:
    """all_reduce, gate, residual, norm, modulation: all of it waits for the sum anyway."""

    def block(x: Tensor, part: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Any:
        summed = funcol.all_reduce(part, "sum", dist.group.WORLD)
        x = x + summed * gate
        y = torch.nn.functional.layer_norm(x.float(), (64,)).to(x.dtype) * (1 + scale) + shift
        return x, y

    found = compiled(block, *tensors((8, 64), (8, 64), (64,), (64,), (64,)))
    assert order(found.after[0]) == ["all_reduce", "wait_tensor", "fused_norm"]


def test_the_input_of_a_collective_keeps_its_strides() -> None:
    def sent(x: Tensor, weight: Tensor) -> Tensor:
        return wait(started(rms(x.t(), weight)))

    found = compiled(sent, *tensors((64, 8), (64,)))
    (start,) = [n for n in found.after[0].nodes if is_collective(n)]
    (was,) = [n for n in found.before[0].nodes if is_collective(n)]
    assert start.args[0].meta["val"].stride() == was.args[0].meta["val"].stride()

"""Activation checkpointing: kept operators are decomposed before the partitioner, with all that it
reads of a node.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from rocm_passes.backend import rocm_diffusion
from tests.without_codegen import without_codegen


class Rms(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, None], (1, 1, 1, 1), mode="replicate")[:, 0, 1:-1, 1:-1]


class Channels(nn.Module):
    """Wan's norm, whose silu is kept."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.normalize(x, dim=1) * 8**0.5)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(32),
    "GroupNorm": lambda: nn.GroupNorm(4, 8),
    "RMSNorm": lambda: nn.RMSNorm(32),
    "RMSNorm by hand": Rms,
    "channel norm": Channels,
    "pad": Padded,
}


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.into, self.out = norm, nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.norm(self.into(x).sin())))  # type: ignore[no-any-return]


def saving_matmuls() -> Any:
    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def uncompiled(gm: fx.GraphModule, example_inputs: Any, **_: Any) -> Any:
    return make_boxed_func(gm.forward)


PLAIN = functools.partial(compile_fx, inner_compile=uncompiled)


def training_step(
    block: Block, backend: Any, selective: bool = False
) -> tuple[list[tuple[int, ...]], Counter[Any]]:
    """Shapes that are saved for the backward pass, and the joint graph's nodes with their marks."""
    nodes: Counter[Any] = Counter()

    def note(graph: fx.Graph) -> None:
        calls = [n for n in graph.nodes if n.op == "call_function"]
        # Regions are numbered through the process.
        first = min(n.meta["ac_graph_id"] for n in calls if "ac_graph_id" in n.meta)
        for n in calls:
            region = n.meta["ac_graph_id"] - first if "ac_graph_id" in n.meta else None
            nodes[n.target, n.meta.get("recompute"), region, n.meta.get("partitioner_tag")] += 1

    how = {"context_fn": saving_matmuls} if selective else {}

    def step(x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False, **how)  # type: ignore[no-any-return]

    x = torch.randn(2, 8, 32, requires_grad=True)
    own = {t.untyped_storage().data_ptr() for t in (x, *block.parameters())}
    kept: list[tuple[int, ...]] = []

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept.append(tuple(t.shape))
        return t

    torch._dynamo.reset()
    with (
        without_codegen(),
        inductor_config.patch(joint_custom_post_pass=note, force_disable_caches=True),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        torch.compile(step, backend=backend, fullgraph=True)(x).sum().backward()
    return sorted(kept), nodes


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_as_much_is_saved_as_by_plain_inductor(norm: str, selective: bool) -> None:
    block = Block(NORMS[norm]())
    ours = training_step(
        block, functools.partial(rocm_diffusion, options={"select": "always"}), selective
    )
    plain = training_step(block, PLAIN, selective)
    assert ours[0] == plain[0]
    assert ours[1] == plain[1]


def test_two_checkpointed_blocks_keep_their_border() -> None:
    """Between two regions Inductor saves one activation: it knows the regions by `ac_graph_id`."""

    class Two(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = checkpoint(super().forward, x, use_reentrant=False)
            return checkpoint(super().forward, y, use_reentrant=False)  # type: ignore[no-any-return]

    block = Two(nn.LayerNorm(32))
    ours, plain = (training_step(block, b) for b in (rocm_diffusion, PLAIN))
    assert ours == plain

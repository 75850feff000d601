"""diffusers' compile_repeated_blocks: every idiom of every block has an entry, against an eager
count of the blocks.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx, nn

from rocm_passes.backend import rocm_diffusion
from rocm_passes.report.ledger import Ledger
from tests.without_codegen import codegen_if_asked
from tests.zoo import case, count_idioms, tensors_in

MODELS = ("wan", "z_image", "qwen_image", "flux")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__ in model._repeated_blocks]  # type: ignore[operator]


def eager_count(model: nn.Module, args: Any, kwargs: Any) -> Counter[str]:
    """The elementary idioms inside the repeated blocks, each block run by itself on what the model
    gives it.
    """
    calls: list[tuple[nn.Module, Any, Any]] = []
    hooks = [
        b.register_forward_pre_hook(lambda m, a, k: calls.append((m, a, k)), with_kwargs=True)
        for b in blocks_of(model)
    ]
    with torch.no_grad():
        model(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    total: Counter[str] = Counter()
    for block, block_args, block_kwargs in calls:
        total.update(count_idioms(block, block_args, block_kwargs))
    return total


#: The blocks of every model are looked for in its whole graph too (test_recall_norms.py,
#: test_recall_rotary.py): the fast suite compiles those of two models alone.
FAST = {("wan", torch.bfloat16), ("z_image", torch.float32)}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            id=f"{name}-{'bf16' if dtype is torch.bfloat16 else 'fp32'}",
            marks=() if (name, dtype) in FAST else pytest.mark.exhaustive,
        )
        for name in MODELS
        for dtype in (torch.bfloat16, torch.float32)
    ],
)
def test_every_idiom_of_the_blocks_has_an_entry(name: str, dtype: torch.dtype) -> None:
    zoo = case(name)
    model = zoo.build(dtype)
    args, kwargs = zoo.inputs(model)
    expected, before = eager_count(model, args, kwargs), zoo.run(model)
    executed: Counter[str] = Counter()

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        found: list[Ledger] = []
        compiled = rocm_diffusion(
            gm, inputs, options={"select": "off"}, listener=found.append, caches=False
        )

        def run(*values: Any) -> Any:
            executed.update(_covers(found))
            return compiled(*values)

        return run

    model.compile_repeated_blocks(backend=backend, fullgraph=True)  # type: ignore[operator]
    with torch.no_grad(), codegen_if_asked():
        after = tensors_in(model(*args, **kwargs))
    assert executed == expected
    tolerance = 5e-2 if dtype is torch.bfloat16 else 1e-4
    for mine, theirs in zip(after, before, strict=True):
        assert (mine.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()


def _covers(ledgers: list[Ledger]) -> Counter[str]:
    total: Counter[str] = Counter()
    for ledger in ledgers:
        for entry in ledger.entries:
            total.update(entry.covers)
    return total

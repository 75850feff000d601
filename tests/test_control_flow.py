"""Branches and bodies of control flow: what they give keeps the strides that the control flow was
traced with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.utils import detect_fake_mode
from torch._functorch.aot_autograd import make_boxed_func
from torch._higher_order_ops.while_loop import while_loop
from torch._inductor import compile_fx
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import _disable_current_modes

import rocm_passes.backend as backend
from rocm_passes.report.ledger import Ledger

TRUE = torch.tensor(True)


def norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def with_subgraphs(gm: fx.GraphModule, inputs: Any, **_: Any) -> Any:
    """Inductor's post-grad passes on the graph and on those inside it, as Inductor runs them."""
    with _disable_current_modes(), V.set_fake_mode(detect_fake_mode(inputs)):
        compile_fx.view_to_reshape(gm)
        compile_fx._recursive_post_grad_passes(gm, is_inference=True)
    gm.recompile()
    return make_boxed_func(gm.forward)


def turned(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1)


def branch_is_a_norm(x: Tensor) -> Tensor:
    return torch.cond(TRUE, lambda x: norm(turned(x)), lambda x: turned(x) * 2, (x,))  # type: ignore[no-any-return]


def branch_ends_behind_a_norm(x: Tensor) -> Tensor:
    return torch.cond(  # type: ignore[no-any-return]
        TRUE, lambda x: norm(turned(x)) * 2 + 1, lambda x: turned(x) * 2, (x,)
    )


def body_is_a_norm(x: Tensor) -> Tensor:
    return while_loop(  # type: ignore[no-any-return]
        lambda i, x: i < 3, lambda i, x: (i + 1, norm(x)), (torch.tensor(0), turned(x))
    )[1]


def body_ends_behind_a_norm(x: Tensor) -> Tensor:
    return while_loop(  # type: ignore[no-any-return]
        lambda i, x: i < 3, lambda i, x: (i + 1, norm(x).sin()), (torch.tensor(0), turned(x))
    )[1]


PROGRAMS = (
    branch_is_a_norm,
    branch_ends_behind_a_norm,
    body_is_a_norm,
    body_ends_behind_a_norm,
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_results_are_eagers(
    program: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        backend,
        "compile_fx",
        functools.partial(compile_fx.compile_fx, inner_compile=with_subgraphs),
    )
    found: list[Ledger] = []
    ours = functools.partial(
        backend.rocm_diffusion, options={"select": "always"}, listener=found.append, caches=False
    )
    x = torch.randn(2, 16, 5)
    with torch.no_grad():
        result = torch.compile(program, backend=ours, fullgraph=True)(x)
        expected = program(x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == expected.stride()
    assert any(e.outcome == "rewritten" for ledger in found for e in ledger.entries)

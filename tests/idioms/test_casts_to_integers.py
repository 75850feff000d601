"""A norm's result that is cast to int8: the values that int8 does not have.

C++ leaves it open what such a cast gives. ATen wraps, and the vectorised code that Inductor writes
for a CPU saturates, with our pass or without it. Others are equal to eager's.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def norm(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * w * 20


def quantised(x: Tensor, w: Tensor) -> Tensor:
    return norm(x, w).to(torch.int8)


def compiled(x: Tensor, w: Tensor, backend: str, **options: str) -> Tensor:
    torch._dynamo.reset()
    call = torch.compile(quantised, backend=backend, options=options or None)
    result: Tensor = call(x, w)
    return result


@pytest.mark.exhaustive
def test_what_int8_does_not_have_is_left_to_inductor() -> None:
    """Plain Inductor differs from eager in the same elements, and gives them our values."""
    torch.manual_seed(0)
    x, w = 2 * torch.randn(4, 32, 64).bfloat16(), 3 * torch.randn(64).bfloat16()
    with torch.no_grad():
        plain = compiled(x, w, "inductor")
        ours = compiled(x, w, "rocm_diffusion", select="always")
        eager, wide = quantised(x, w), norm(x, w).trunc()
    outside = (wide < -128) | (wide > 127)
    assert outside.any() and not outside.all()
    assert not ((plain != eager) & ~outside).any()
    assert torch.equal(ours != eager, plain != eager)
    assert torch.equal(ours, plain)

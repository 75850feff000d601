"""A norm's result that is cast to int8: the values that int8 does not have.

C++ leaves it open what such a cast gives. ATen wraps, and the vectorised code that Inductor writes
for a CPU saturates, with our pass or without it. So a comparison with eager fails or not by the
values that were drawn. Strict numerics promise the bits of the unfused graph, which is Inductor's.
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
@pytest.mark.parametrize(
    "options",
    [{"select": "off"}, {"select": "always"}, {"select": "always", "rewrite_numerics": "strict"}],
    ids=["off", "always", "strict"],
)
@pytest.mark.parametrize("scale", [0.1, 2.0], ids=["all that int8 has", "beyond int8"])
def test_what_int8_does_not_have_is_left_to_inductor(options: dict[str, str], scale: float) -> None:
    """Plain Inductor differs from eager in the same elements, and gives them our values."""
    torch.manual_seed(0)
    x, w = torch.randn(4, 32, 64).bfloat16(), 3 * scale * torch.randn(64).bfloat16()
    with torch.no_grad():
        plain = compiled(x, w, "inductor")
        ours = compiled(x, w, "rocm_diffusion", **options)
        eager, wide = quantised(x, w), norm(x, w).trunc()
    outside = (wide < -128) | (wide > 127)
    assert not outside.all() and outside.any() == (scale > 1)
    assert not ((plain != eager) & ~outside).any()
    assert torch.equal(ours, plain)

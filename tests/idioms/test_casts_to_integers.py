"""A norm's result that is cast to int8: the values that int8 does not have.

C++ leaves it open what such a cast gives. ATen wraps, and the vectorised code that Inductor writes
for a CPU saturates. The pass gives eager's values; strict numerics promise the bits of the unfused
graph, which is Inductor's, and a pass that is off changes nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.rewriting import rewrite


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
    [{"select": "off"}, {"select": "always", "rewrite_numerics": "strict"}],
    ids=["off", "strict"],
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


@pytest.mark.parametrize(
    ("select", "scale"),
    [
        ("always", 2.0),
        pytest.param("auto", 2.0, marks=pytest.mark.exhaustive),
        pytest.param("always", 0.1, marks=pytest.mark.exhaustive),
    ],
)
def test_values_beyond_int8_are_eager_s(select: str, scale: float) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 32, 64).bfloat16(), 3 * scale * torch.randn(64).bfloat16()
    with torch.no_grad():
        ours, eager = compiled(x, w, "rocm_diffusion", select=select), quantised(x, w)
        wide = norm(x, w)
    # An element that lies by a rounding on the other side of an integer differs by one.
    away = (ours.int() - eager.int()).abs() % 256
    assert away.minimum(256 - away).max() <= 1
    assert (away != 0).float().mean() < 0.01
    assert (wide.abs() > 128).any() == (scale > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("options", "by_int32"),
    [
        ({"select": "auto"}, True),
        ({"select": "off"}, False),
        ({"select": "auto", "rewrite_numerics": "strict"}, False),
    ],
    ids=["auto", "off", "strict"],
)
def test_which_casts_go_by_int32(
    options: dict[str, str], by_int32: bool, dtype: torch.dtype
) -> None:
    def cast(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.to(torch.int8), x.to(torch.int16), x.double().to(torch.int8)

    x = torch.tensor([-300.0, -129.0, -1.5, 0.0, 127.9, 128.0, 200.0, 300.0]).to(dtype)
    r = rewrite(cast, x, options=options)
    wide = [
        node
        for graph in r.after
        for node in graph.nodes
        if node.op == "call_function" and node.meta["val"].dtype is torch.int32
    ]
    assert len(wide) == by_int32
    for found, expected in zip(r.result, cast(x), strict=True):
        assert torch.equal(found, expected)

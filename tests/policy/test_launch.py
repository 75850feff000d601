"""The option launch="auto": Inductor's static launcher where it was measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from rocm_passes.policy import launch
from rocm_passes.policy.launch import has_user_kernels, launched_by
from rocm_passes.target import Target

H100, MI300X, CPU = (Target.named(name, triton="3.6.0") for name in ("sm_90", "gfx942", "cpu"))


def traced(function: Callable[..., Tensor]) -> fx.GraphModule:
    return fx.symbolic_trace(function)


def triton_kernel_wrapper_mutation(x: Tensor) -> Tensor:
    return x


fx.wrap("triton_kernel_wrapper_mutation")


def plain(x: Tensor) -> Tensor:
    return x + 1


def with_a_kernel(x: Tensor) -> Tensor:
    return triton_kernel_wrapper_mutation(x) + 1


@pytest.mark.parametrize(
    ("asked", "target", "function", "expected"),
    [
        ("auto", H100, plain, "static"),
        ("auto", H100, with_a_kernel, "inductor"),
        ("auto", MI300X, plain, "inductor"),
        ("auto", CPU, plain, "inductor"),
        ("inductor", H100, plain, "inductor"),
        ("python", H100, plain, "python"),
        ("static", MI300X, with_a_kernel, "static"),
    ],
)
def test_who_launches(
    asked: str, target: Target, function: Callable[..., Tensor], expected: str
) -> None:
    assert launched_by(asked, target, traced(function)) == expected


def test_a_torch_without_the_option_launches_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "STATIC_LAUNCH", "no_such_option")
    assert launched_by("auto", H100, traced(plain)) == "inductor"


def test_a_users_kernel_within_a_branch_is_seen() -> None:
    branch = traced(with_a_kernel)
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    whole = fx.GraphModule({"branch": branch}, graph)
    assert not has_user_kernels(fx.GraphModule(torch.nn.Module(), graph))
    assert not has_user_kernels(whole)
    called = fx.Graph()
    called.output((called.get_attr("branch"), called.placeholder("x")))
    assert has_user_kernels(fx.GraphModule({"branch": branch}, called))


def test_dynamo_names_a_users_kernel_so() -> None:
    """The name that is looked for is the one that torch gives."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    for each in (wrap.triton_kernel_wrapper_mutation, wrap.triton_kernel_wrapper_functional):
        assert launch.USER_KERNEL in each.__name__

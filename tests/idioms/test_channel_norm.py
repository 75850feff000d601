"""Channel norms of the VAEs: both forms, 4-D and 5-D, with and without gamma and SiLU; near misses
left alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rocm_passes.backend import rocm_diffusion
from tests.idioms.norm_cases import BF16, F16, F32, check, draw, outcomes, use_reference, wide
from tests.rewriting import rewrite

pytestmark = pytest.mark.pairwise

C = 12


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def wan(x: Tensor, gamma: Tensor) -> Tensor:
    n = F.normalize(wide(x), dim=1).to(x.dtype)
    return F.silu(n * C**0.5 * gamma + 0.0)


def ltx(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8))


def gamma_of(x: Tensor) -> Tensor:
    return draw(C, *[1] * (x.dim() - 2), dtype=x.dtype, seed=1)


@pytest.mark.parametrize("form", [wan, ltx], ids=["l2", "mean"])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("shape", [(2, C, 3, 5), (1, C, 2, 3, 4)], ids=str)
def test_with_silu(form: object, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = draw(*shape, dtype=dtype)
    seen = check(form, x, gamma_of(x))  # type: ignore[arg-type]
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    site = seen.only()
    assert site.parameters["form"] == ("l2" if form is wan else "mean")
    assert site.parameters["silu"] is True
    assert site.parameters["channels"] == C
    assert torch.ops.aten.div.Tensor not in seen.targets()


def test_parameters_of_wan() -> None:
    x = draw(1, C, 2, 3, 4, dtype=BF16)
    found = rewrite(wan, x, gamma_of(x)).only().parameters
    assert found["eps"] == pytest.approx(1e-12)
    assert found["scale"] == pytest.approx(C**0.5)
    assert (found["gamma"], found["bias"], found["x_dtype"]) == (BF16, None, BF16)


@pytest.mark.parametrize(
    ("rank", "layout"), [(4, torch.channels_last), (5, torch.channels_last_3d)]
)
def test_channels_last_stays(rank: int, layout: torch.memory_format) -> None:
    x = draw(2, C, *[3] * (rank - 2)).to(memory_format=layout)
    seen = check(wan, x, gamma_of(x))
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    assert seen.result.is_contiguous(memory_format=layout)


def test_without_silu_and_with_a_bias() -> None:
    def norm(x: Tensor, gamma: Tensor, bias: Tensor) -> Tensor:
        return F.normalize(wide(x), dim=1).to(x.dtype) * C**0.5 * gamma + bias

    x = draw(1, C, 3, 4, dtype=BF16)
    seen = check(norm, x, gamma_of(x), gamma_of(x) + 1)
    assert seen.only().parameters["bias"] == BF16
    assert seen.only().parameters["silu"] is False


def test_a_tensor_of_full_size_is_no_gamma() -> None:
    def product(x: Tensor, y: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * y + y

    seen = check(product, draw(1, C, 3, 4), draw(1, C, 3, 4, seed=1))
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    assert seen.only().parameters["gamma"] is None


def test_under_dynamic_shapes() -> None:
    x = draw(1, C, 2, 3, 4)
    seen = rewrite(wan, x, gamma_of(x), dynamic=True)
    assert ("channel_norm", "rewritten") in outcomes(seen)
    torch.testing.assert_close(seen.result, wan(x, gamma_of(x)))


class Wan(nn.Module):
    """As diffusers has it: scale and bias are the module's own numbers, tensors under
    dynamic=True.
    """

    def __init__(self, scale: float, bias: float) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias

    def forward(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        y = F.normalize(wide(x), dim=1).to(x.dtype) * self.scale
        return F.silu((y if gamma is None else y * gamma) + self.bias)


@pytest.mark.parametrize("with_gamma", [True, False])
@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shape", [(2, C, 3, 5), (1, C, 2, 3, 4)], ids=str)
def test_numbers_that_are_tensors(
    shape: tuple[int, ...], dtype: torch.dtype, bias: float, with_gamma: bool
) -> None:
    x = draw(*shape, dtype=dtype)
    seen = check(Wan(C**0.5, bias), x, *[gamma_of(x)] * with_gamma, dynamic=True)
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    found = seen.only().parameters
    assert found["silu"] is True
    assert found["gamma"] is (dtype if with_gamma else None)
    assert found["scale"].startswith("tensor ")
    assert found["bias"].startswith("tensor ")
    assert {torch.ops.aten.div.Tensor, torch.ops.aten.silu.default}.isdisjoint(seen.targets())


def test_another_number_needs_no_other_code() -> None:
    """The graph is compiled once: what it multiplies by is what the module holds when it runs."""
    module, x = Wan(2.0, 0.0), draw(1, C, 3, 4)
    compiled = []

    def backend(gm: fx.GraphModule, inputs: list[Tensor]) -> object:
        compiled.append(gm)
        return rocm_diffusion(gm, inputs, options={"select": "always"}, caches=False)

    torch._dynamo.reset()
    run = torch.compile(module, backend=backend, dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(run(x), module(x))
        module.scale, module.bias = 3.0, 0.25
        torch.testing.assert_close(run(x), module(x))
    assert len(compiled) == 1


def test_a_second_tensor_to_multiply_by_stays_outside() -> None:
    class Twice(Wan):
        def forward(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
            return F.normalize(x, dim=1) * self.scale * gamma * self.bias

    x = draw(1, C, 3, 4)
    seen = check(Twice(2.0, 0.5), x, gamma_of(x), dynamic=True)
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    assert seen.only().parameters["gamma"] == F32


@pytest.mark.parametrize("form", [wan, ltx], ids=["l2", "mean"])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_symbolic_channel_count_has_its_entry(form: object, dtype: torch.dtype) -> None:
    x = draw(3, C, 4, 5, dtype=dtype)
    seen = check(form, x, gamma_of(x), dynamic=True)  # type: ignore[arg-type]
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    assert isinstance(seen.only().parameters["channels"], torch.SymInt)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_length_that_is_rounded(dynamic: bool, dtype: torch.dtype) -> None:
    """F.normalize of 16-bit numbers: torch computes the length in fp32, and rounds it."""
    seen = check(
        lambda x: F.silu(F.normalize(x, dim=1)), draw(2, C, 3, 5, dtype=dtype), dynamic=dynamic
    )
    assert outcomes(seen) == [("channel_norm", "rewritten")]
    assert seen.only().parameters["silu"] is True


def test_strict_numerics_refuse_a_length_that_is_rounded() -> None:
    def divided(x: Tensor) -> Tensor:
        return wide(x) / x.norm(dim=1, keepdim=True).clamp_min(1e-12).expand_as(x)

    x = draw(2, C, 3, 5, dtype=BF16)
    assert outcomes(rewrite(divided, x)) == [("channel_norm", "rewritten")]
    kernel = {"lowering": {"channel_norm": "triton"}, "rewrite_numerics": "strict"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rocm_passes.target.triton_is_interpreted", lambda: True)
        (site,) = rewrite(divided, x, options=kernel).sites
    assert site.outcome == "refused"
    assert "rewrite_numerics='strict'" in site.reason


def refused(fn: object, *args: Tensor, dynamic: bool | None = None) -> str:
    seen = rewrite(fn, *args, dynamic=dynamic)  # type: ignore[arg-type]
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (
        "channel_norm",
        "refused",
        {"channel_norm": 1},
    )
    return site.reason


def test_refuses_float64() -> None:
    assert "float64" in refused(lambda x: F.normalize(x, dim=1), draw(1, C, 3, 4).double())


def test_refuses_an_inner_value_used_outside() -> None:
    def with_length(x: Tensor) -> tuple[Tensor, Tensor]:
        length = torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-8)
        return x / length, length

    assert "is used outside the norm" in refused(with_length, draw(1, C, 3, 4))


def test_refuses_an_eps_that_is_a_tensor() -> None:
    """LTX-2's norm holds its eps: under dynamic=True nobody knows it when compiling."""

    class PerChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps = 1e-8

        def forward(self, x: Tensor) -> Tensor:
            return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.eps)

    reason = refused(PerChannel(), draw(2, C, 3, 4), dynamic=True)
    assert "eps is a tensor" in reason


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: F.normalize(x, dim=2),
        lambda x: F.normalize(x, p=1.0, dim=1),
        lambda x: x / torch.sqrt(x.mean(1, keepdim=True).abs() + 1e-8),
        lambda x: x.square() / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-8),
        lambda x: F.normalize(x[:, :, 0], dim=1),
    ],
    ids=["over another dim", "L1", "mean of x", "divides something else", "3-D"],
)
def test_what_is_no_channel_norm_has_no_site(fn: object) -> None:
    x = draw(1, C, 3, 4)
    seen = rewrite(fn, x)  # type: ignore[arg-type]
    assert not seen.sites
    torch.testing.assert_close(seen.result, fn(x))  # type: ignore[operator]

"""RMSNorm: every spelling found and computed within the accuracy bar; every near miss left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rocm_passes.graph import norms
from rocm_passes.idioms import rms_norm
from rocm_passes.idioms.idiom import Context, NearMiss, Site
from rocm_passes.ops import rms_norm as op
from rocm_passes.options import Options
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.on_the_gpu import where_kernels_run
from tests.rewriting import Rewritten, rewrite

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
D = 48
CPU = Target("cpu", "", "CPU", torch.__version__, None)


def torch_norm(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), w, 1e-6)


def diffusers(x: Tensor, w: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-6)).to(w.dtype) * w


def no_weight(x: Tensor, w: Tensor) -> Tensor:
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


def mochi(x: Tensor, w: Tensor) -> Tensor:
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + 1e-5) * w.float()).to(x.dtype)


def llama(x: Tensor, w: Tensor) -> Tensor:
    f = x.to(torch.float32)
    return w * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def t5(x: Tensor, w: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return w * (x * torch.rsqrt(variance + 1e-6)).to(w.dtype)


def gemma(x: Tensor, w: Tensor) -> Tensor:
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + w.float())).to(x.dtype)


def krea(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.rms_norm(x.float(), (x.shape[-1],), w.float() + 1.0, 1e-6).to(x.dtype)


def weight_first_inside(x: Tensor, w: Tensor) -> Tensor:
    f = x.float()
    return (w.float() * f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def squared_by_mul(x: Tensor, w: Tensor) -> Tensor:
    f = x.float()
    return (f * torch.rsqrt(1e-6 + (f * f).mean(-1, keepdim=True)) * w.float()).to(x.dtype)


SPELLINGS = [
    torch_norm,
    diffusers,
    no_weight,
    mochi,
    llama,
    t5,
    gemma,
    krea,
    weight_first_inside,
    squared_by_mul,
]


def exact(spelling: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """The norm in float64: no rounding anywhere."""
    wide, eps = x.double(), 1e-5 if spelling is mochi else 1e-6
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if spelling is no_weight:
        return y
    return y * (w.double() + (1.0 if spelling in (gemma, krea) else 0.0))


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching is tested here, with the operator's reference; the kernels have tests of their own."""
    monkeypatch.setattr("rocm_passes.target.triton_is_interpreted", lambda: False)
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norms_of(seen: Rewritten) -> list[str]:
    return [e.outcome for e in seen.sites if e.idiom == "rms_norm"]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_every_spelling(spelling: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    x, w = draw(2, 7, D, dtype=dtype), draw(D, dtype=dtype, seed=1)
    seen = rewrite(spelling, x, w)
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == ("rms_norm", "rewritten", {"rms_norm": 1})
    assert torch.ops.aten.rsqrt.default not in seen.targets()
    assert site.parameters["eps"] == pytest.approx(1e-5 if spelling is mochi else 1e-6)
    assert_no_worse(seen.result, spelling(x, w), exact(spelling, x, w))


@pytest.mark.parametrize(
    ("spelling", "rounds", "offset"),
    [
        (torch_norm, None, 0.0),
        (diffusers, BF16, 0.0),
        (llama, BF16, 0.0),
        (t5, BF16, 0.0),
        (gemma, None, 1.0),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_parameters_read_off_the_graph(
    spelling: Callable[[Tensor, Tensor], Tensor], rounds: torch.dtype | None, offset: float
) -> None:
    site = rewrite(spelling, draw(4, D, dtype=BF16), draw(D, dtype=BF16)).only()
    assert site.parameters["rounds_before_weight"] == rounds
    assert site.parameters["weight_offset"] == offset
    assert site.parameters["size"] == D


def test_rounding_before_the_weight_is_reproduced() -> None:
    """Bit for bit: one rounding of the normalised value, one of the product."""
    x, w = draw(64, D, dtype=BF16), draw(D, dtype=BF16, seed=1)
    assert torch.equal(rewrite(diffusers, x, w).result, diffusers(x, w))
    assert not torch.equal(diffusers(x, w), torch_norm(x, w))


def test_fp32_weight_gives_fp32() -> None:
    x, w = draw(4, D, dtype=BF16), draw(D, dtype=F32)
    seen = rewrite(diffusers, x, w)
    assert norms_of(seen) == ["rewritten"]
    assert seen.result.dtype is F32
    assert_no_worse(seen.result, diffusers(x, w), exact(diffusers, x, w))


def test_broadcast_weight_and_strided_input() -> None:
    x, w = draw(2, 3, 2 * D, dtype=BF16)[..., ::2], draw(1, 1, D, dtype=BF16)
    seen = rewrite(diffusers, x, w)
    assert norms_of(seen) == ["rewritten"]
    assert_no_worse(seen.result, diffusers(x, w), exact(diffusers, x, w[0, 0]))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_any_rank(rank: int) -> None:
    x = draw(*([2] * (rank - 1)), D, dtype=F32)
    w = draw(D, dtype=F32)
    seen = rewrite(torch_norm, x, w)
    assert norms_of(seen) == ["rewritten"]
    torch.testing.assert_close(seen.result, torch_norm(x, w))


class DiffusersNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-3
        self.weight = nn.Parameter(draw(D, dtype=BF16))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + self.eps)).to(self.weight.dtype) * self.weight


def test_eps_is_a_tensor_under_dynamic_shapes() -> None:
    norm, x = DiffusersNorm(), draw(3, D, dtype=BF16)
    seen = rewrite(norm, x, dynamic=True)
    assert norms_of(seen) == ["rewritten"]
    assert str(seen.only().parameters["eps"]).startswith("tensor")
    assert torch.equal(seen.result, norm(x))


def test_location_and_module_are_the_users() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([DiffusersNorm()])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[0](x)

    site = rewrite(Model(), draw(3, D, dtype=BF16)).only()
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    path, _, line = site.location.rpartition(":")
    assert path == __file__
    assert "torch.rsqrt(variance + self.eps)" in lines[int(line) - 1]
    assert site.module == "blocks.0"


def biased(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """diffusers' RMSNorm with bias=True: in bf16, it rounds before the weight, before the bias and behind it."""
    return diffusers(x, w) + b


def biased_in_float32(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    f = x.float()
    y = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float() + b.float()
    return y.to(x.dtype)


def bias_first(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return b + torch_norm(x, w)


def bias_without_weight(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return no_weight(x, w) + b


def biased_gemma(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return gemma(x, w) + b


#: And what of each is the norm without its bias.
BIASED = {
    biased: diffusers,
    biased_in_float32: torch_norm,
    bias_first: torch_norm,
    bias_without_weight: no_weight,
    biased_gemma: gemma,
}
Biased = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_tables(dtype: torch.dtype, table_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias"""
    x, tables = draw(2, 7, D, dtype=dtype), (draw(D, dtype=table_dtype or dtype, seed=i) for i in (1, 2))
    return x, *tables  # type: ignore[return-value]


@pytest.mark.parametrize("spelling", BIASED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_every_spelling_with_a_bias(spelling: Biased, dtype: torch.dtype) -> None:
    x, w, b = with_tables(dtype)
    seen = rewrite(spelling, x, w, b)
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == ("rms_norm", "rewritten", {"rms_norm": 1})
    assert torch.ops.aten.add.Tensor not in seen.targets()
    assert site.parameters["bias"] is dtype
    assert site.parameters["weight"] is (None if spelling is bias_without_weight else dtype)
    rounds = dtype is not F32 and spelling is not biased_in_float32
    assert site.parameters["rounds_before_bias"] is (dtype if rounds else None)
    assert_no_worse(seen.result, spelling(x, w, b), exact(BIASED[spelling], x, w) + b.double())


def test_rounding_before_the_bias_is_reproduced() -> None:
    """Bit for bit: three roundings."""
    x, w, b = with_tables(BF16)
    assert torch.equal(rewrite(biased, x, w, b).result, biased(x, w, b))
    assert not torch.equal(biased(x, w, b), biased_in_float32(x, w, b))


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("rounds", [True, False])
def test_the_kernel_adds_the_bias(dtype: torch.dtype, weighted: bool, offset: float, rounds: bool) -> None:
    kernel = op.OPERATOR.lowering("triton")
    assert kernel is not None and kernel.run is not None
    x, w, b = with_tables(dtype)
    round_to = dtype if rounds else None
    call = (x, w if weighted else None, b.view(1, 1, D), None, 1e-6, offset, round_to, round_to, dtype)
    wide = [v.double() if isinstance(v, Tensor) else v for v in call[:6]]
    ours = where_kernels_run(kernel.run)(*call)
    assert ours.is_contiguous()
    assert_no_worse(ours, op.reference(*call), op.reference(*wide, None, None, torch.float64), units=2.0)


def test_the_kernel_s_one_rounding_is_noted() -> None:
    kernel = op.OPERATOR.lowering("triton")
    assert kernel is not None
    assert "rounded once" in (kernel.note(CPU, round_product=BF16) or "")
    assert kernel.note(CPU, round_product=None) is None


def test_aiter_refuses_a_bias() -> None:
    aiter = op.OPERATOR.lowering("aiter")
    assert aiter is not None
    x, w, b = with_tables(BF16)
    call = dict(zip(op.OPERATOR.parameters, (x, w, b, None, 1e-6, 0.0, None, BF16, BF16), strict=True))
    assert aiter.refuses(**call) == "aiter's rms_norm has no bias"
    assert "bias" not in (aiter.refuses(**{**call, "bias": None}) or "")


def test_broadcast_bias() -> None:
    x, w, b = with_tables(BF16)
    seen = rewrite(biased, x, w, b.view(1, 1, D))
    assert seen.only().parameters["bias"] is BF16
    assert torch.equal(seen.result, biased(x, w, b))


def test_a_float32_bias_gives_float32() -> None:
    x, w, b = with_tables(BF16)
    seen = rewrite(biased, x, w, b.float())
    site = seen.only()
    assert (site.parameters["bias"], site.parameters["out_dtype"]) == (F32, F32)
    assert torch.equal(seen.result, biased(x, w, b.float()))


NO_BIAS: dict[str, tuple[Biased, tuple[int, ...], torch.dtype]] = {
    "a residual of one row": (biased, (1, 1, D), BF16),
    "a tensor of every row": (biased, (2, 7, D), BF16),
    "one value of each row": (biased, (7, 1), BF16),
    "more dimensions": (biased, (1, 1, 1, D), BF16),
    "a widening before it": (lambda x, w, b: diffusers(x, w).float() + b, (D,), F32),
    "a factor": (lambda x, w, b: torch.add(diffusers(x, w), b, alpha=2), (D,), BF16),
    "integers": (lambda x, w, b: diffusers(x, w) + b.to(torch.int32), (D,), BF16),
    "subtracted": (lambda x, w, b: diffusers(x, w) - b, (D,), BF16),
    "another use": (lambda x, w, b: (lambda y: y + b + y.cos())(diffusers(x, w)), (D,), BF16),
}


@pytest.mark.parametrize("what", NO_BIAS)
def test_what_is_no_bias_stays_outside(what: str) -> None:
    fn, shape, dtype = NO_BIAS[what]
    x = draw(*(shape if what == "a residual of one row" else (2, 7, D)), dtype=BF16)
    w, b = draw(D, dtype=BF16, seed=1), draw(*shape, dtype=dtype, seed=2)
    seen = rewrite(fn, x, w, b, options={"idioms": "rms_norm"})
    site = seen.only()
    assert (site.outcome, site.parameters["bias"], site.parameters["rounds_before_bias"]) == (
        "rewritten",
        None,
        None,
    )
    torch.testing.assert_close(seen.result, fn(x, w, b), rtol=2e-2, atol=2e-2)


def test_a_widening_after_the_bias_is_no_part_of_it() -> None:
    def widened(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return biased(x, w, b).float() * 1.001

    x, w, b = with_tables(BF16)
    seen = rewrite(widened, x, w, b)
    assert (seen.only().parameters["bias"], seen.only().parameters["out_dtype"]) == (BF16, BF16)
    torch.testing.assert_close(seen.result, widened(x, w, b))


def test_a_fusion_leaves_the_bias_outside_and_the_norm_counts_once() -> None:
    def residual(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        return biased(total, w, b), total

    x, w, b = with_tables(BF16)
    seen = rewrite(residual, x, x * 0.5, w, b)
    by_idiom = {e.idiom: e for e in seen.sites}
    fusion, norm = by_idiom["residual_norm"], by_idiom["rms_norm"]
    assert (fusion.outcome, dict(fusion.covers)) == ("rewritten", {"rms_norm": 1})
    assert (norm.outcome, dict(norm.covers)) == ("refused", {})
    assert norm.reason == "residual_norm's site has taken a part of it"
    for ours, theirs in zip(seen.result, residual(x, x * 0.5, w, b), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def near_miss(fn: Callable[..., object], *args: Tensor, grad: bool = False) -> str:
    """The reason of the only site, refused; and the result is the eager one."""
    seen = rewrite(fn, *args, grad=grad)
    site = seen.only()
    assert (site.idiom, site.outcome, site.lowering) == ("rms_norm", "refused", None)
    with torch.no_grad():
        torch.testing.assert_close(seen.result, fn(*args), rtol=2e-2, atol=2e-2)
    return site.reason


def test_refuses_another_dim() -> None:
    def over_tokens(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)

    assert "not over the last one" in near_miss(over_tokens, draw(2, 5, D, dtype=F32))


def test_refuses_two_dims() -> None:
    def over_both(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean((-2, -1), keepdim=True) + 1e-6)

    assert "not over the last one" in near_miss(over_both, draw(2, 5, D, dtype=F32))


def test_refuses_an_inverse_rms_used_twice() -> None:
    def gives_rstd(x: Tensor) -> tuple[Tensor, Tensor]:
        rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * rstd, rstd

    assert "rsqrt is used outside" in near_miss(gives_rstd, draw(5, D, dtype=F32))


def test_refuses_an_inverse_rms_of_something_else() -> None:
    def other(x: Tensor, y: Tensor) -> Tensor:
        return y * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    assert "norm's own input" in near_miss(other, draw(5, D, dtype=F32), draw(5, D, dtype=F32, seed=1))


def test_refuses_float64() -> None:
    assert "float64" in near_miss(torch_norm, draw(5, D, dtype=torch.float64), draw(D, dtype=torch.float64))


def test_refuses_an_inner_value_used_outside() -> None:
    def gives_mean(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6), mean * 2

    assert "is used outside the norm" in near_miss(gives_mean, draw(5, D, dtype=F32))


def test_the_product_used_twice_ends_the_norm_there() -> None:
    """x * rstd is both multiplied by the weight and returned: only the weightless norm is taken."""

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y * w, y

    x, w = draw(5, D, dtype=F32), draw(D, dtype=F32, seed=1)
    seen = rewrite(both, x, w)
    assert seen.only().parameters["weight"] is None
    torch.testing.assert_close(seen.result, both(x, w))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * torch.rsqrt(x.mean(-1, keepdim=True).abs() + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6),
        lambda x: torch.nn.functional.layer_norm(x, (D,)),
    ],
    ids=["mean of x", "fourth power", "LayerNorm"],
)
def test_what_is_no_rms_norm_has_no_site(fn: Callable[[Tensor], Tensor]) -> None:
    x = draw(5, D, dtype=F32)
    seen = rewrite(fn, x)
    assert not norms_of(seen)
    torch.testing.assert_close(seen.result, fn(x))


def test_a_narrowing_cast_is_not_looked_through() -> None:
    """The norm reads the rounded sum: its x is the bf16 value, not the fp32 one."""

    def rounded(x: Tensor, w: Tensor) -> Tensor:
        return torch_norm((x * 1.001).to(BF16), w)

    x, w = draw(64, D, dtype=F32), draw(D, dtype=BF16, seed=1)
    # Inductor's own patterns can drop the rounding from the graph before it comes to us (torch 2.11 does).
    seen = rewrite(rounded, x, w, options={"pattern_matcher": False})
    assert seen.only().parameters["x_dtype"] == BF16
    assert_no_worse(seen.result, rounded(x, w), exact(torch_norm, (x * 1.001).to(BF16), w))


def test_a_widening_after_the_norm_is_no_part_of_it() -> None:
    """It follows the norm's own rounding, and may begin a rotation in float32."""

    def widened(x: Tensor, w: Tensor) -> Tensor:
        return diffusers(x, w).float() * 1.001

    x, w = draw(64, D, dtype=BF16), draw(D, dtype=BF16, seed=1)
    seen = rewrite(widened, x, w)
    assert seen.only().parameters["out_dtype"] == BF16
    assert_no_worse(seen.result, widened(x, w), exact(diffusers, x, w) * 1.001)


def test_training_keeps_the_gradient() -> None:
    """The rsqrt is saved for the backward pass, so the site is refused and says so."""
    x = draw(5, D, dtype=F32).requires_grad_()
    w = draw(D, dtype=F32).requires_grad_()
    assert "backward" in near_miss(torch_norm, x, w, grad=True)


def fused_graph(x_dtype: torch.dtype, eps: float | None) -> torch.fx.Graph:
    """`aten._fused_rms_norm`, as a GPU build's graph has it (a CPU build decomposes it while tracing)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    aten, mode = torch.ops.aten, FakeTensorMode()
    graph = torch.fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"] = mode.from_tensor(draw(4, D, dtype=x_dtype))
    w.meta["val"] = mode.from_tensor(draw(D, dtype=x_dtype))
    both = graph.call_function(aten._fused_rms_norm.default, (x, [D], w, eps))
    with mode:
        both.meta["val"] = aten._fused_rms_norm.default(x.meta["val"], [D], w.meta["val"], eps)
    y = graph.call_function(__import__("operator").getitem, (both, 0))
    y.meta["val"] = both.meta["val"][0]
    graph.output((y,))
    return graph


@pytest.mark.parametrize(("eps", "expected"), [(1e-6, 1e-6), (None, torch.finfo(F32).eps)])
def test_the_fused_operator_of_gpu_builds(eps: float | None, expected: float) -> None:
    (found,) = rms_norm.find(fused_graph(BF16, eps), Context(Options()))
    assert isinstance(found, Site)
    assert found.arguments["eps"] == expected
    assert found.arguments["round_to"] is None
    assert found.outputs[0].target is __import__("operator").getitem


def test_the_fused_operator_with_a_bias() -> None:
    graph = fused_graph(BF16, 1e-6)
    (y,) = graph.output_node().args[0]
    w = next(m for m in graph.nodes if m.name == "w")
    with graph.inserting_before(graph.output_node()):
        total = graph.call_function(torch.ops.aten.add.Tensor, (y, w))
    total.meta["val"] = y.meta["val"] + w.meta["val"]
    graph.output_node().args = ((total,),)
    (found,) = rms_norm.find(graph, Context(Options()))
    assert isinstance(found, Site)
    assert (found.outputs, found.arguments["bias"], found.arguments["round_product"]) == ((total,), w, BF16)
    assert {y, total} < found.nodes


def test_the_fused_operator_with_its_rsqrt_used() -> None:
    graph = fused_graph(BF16, 1e-6)
    both = next(n for n in graph.nodes if n.target is torch.ops.aten._fused_rms_norm.default)
    with graph.inserting_after(both):
        rstd = graph.call_function(__import__("operator").getitem, (both, 1))
    graph.output_node().args = ((*graph.output_node().args[0], rstd),)
    (found,) = rms_norm.find(graph, Context(Options()))
    assert isinstance(found, NearMiss)
    assert "rsqrt is used outside" in found.reason
    assert isinstance(norms.read_fused(both), str)

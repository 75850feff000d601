"""Residual, norm and modulation as one site: every form of every part, the largest first, and what
is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rocm_passes
from rocm_passes.graph_pass import GraphPass
from rocm_passes.ops import fused_norm as op
from rocm_passes.options import Options
from rocm_passes.target import Target
from tests.idioms.norm_cases import (
    BF16,
    CHAINS,
    F16,
    F32,
    NORMS,
    check,
    covered,
    draw,
    outcomes,
    use_reference,
    wide,
)
from tests.rewriting import Rewritten, rewrite

B, S, D = 2, 7, 48
CPU = Target("cpu", "", "CPU", torch.__version__, None)
H200 = Target("nvidia", "sm_90", "H200", "2.11", "3.6")


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


def rms(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """diffusers' RMSNorm."""
    y = (x * torch.rsqrt(wide(x).pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return y if weight is None else y * weight


def layer(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def stream(dtype: torch.dtype = BF16, batch: int = B) -> tuple[Tensor, Tensor]:
    return draw(batch, S, D, dtype=dtype), draw(batch, S, D, dtype=dtype, seed=1)


def tables(*names: str, dtype: torch.dtype = BF16, batch: int = B, tokens: int = 1) -> list[Tensor]:
    return [draw(batch, tokens, D, dtype=dtype, seed=10 + i) * 0.3 for i, _ in enumerate(names)]


def only(seen: Rewritten, idiom: str, covers: dict[str, int]) -> Rewritten:
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (idiom, "rewritten", covers), str(site)
    left = {torch.ops.aten.rsqrt.default, torch.ops.aten.var_mean.correction} & set(seen.targets())
    assert not left
    return seen


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("batch", [1, 2])
def test_flux(dtype: torch.dtype, batch: int) -> None:
    """Gate, sum, LayerNorm and modulation in low precision."""

    def flux(x: Tensor, y: Tensor, g: Tensor, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = x + g[:, None] * y
        return layer(x) * (1 + s[:, None]) + b[:, None], x

    per_sample = [t[:, 0] for t in tables("gate", "scale", "shift", dtype=dtype, batch=batch)]
    seen = check(flux, *stream(dtype, batch), *per_sample)
    only(seen, "residual_norm_modulate", {"layer_norm": 1})
    site = seen.only()
    assert site.parameters["sum_used_elsewhere"] is True
    assert site.parameters["sum_dtype"] is dtype


@pytest.mark.parametrize("tokens", [1, S], ids=["per sample", "per token"])
def test_wan(tokens: int) -> None:
    """fp32 arithmetic, rounded to bf16 between the sum and the norm, and once more at the end."""

    def wan(x: Tensor, y: Tensor, g: Tensor, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = (wide(x) + y * g).type_as(x)
        return (layer(wide(x)) * (1 + s) + b).type_as(x), x

    seen = check(wan, *stream(), *tables("gate", "scale", "shift", dtype=F32, tokens=tokens))
    only(seen, "residual_norm_modulate", {"layer_norm": 1})
    assert seen.only().parameters["sum_dtype"] is BF16


@pytest.mark.parametrize("first", [True, False], ids=["gate first", "gate last"])
def test_both_gate_orders_and_the_commuted_factor(first: bool) -> None:
    def block(x: Tensor, y: Tensor, g: Tensor, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = g * y + x if first else x + y * g
        return (1 + s) * layer(x) + b, x

    seen = check(block, *stream(), *tables("gate", "scale", "shift"))
    only(seen, "residual_norm_modulate", {"layer_norm": 1})
    assert seen.only().parameters["gate"] == [B, 1, D]


def test_z_image() -> None:
    """A norm on the branch, one after the sum, and a scale without a shift."""

    def block(
        x: Tensor, y: Tensor, g: Tensor, w: Tensor, v: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = x + g.tanh() * rms(y, w, 1e-5)
        return rms(x, v, 1e-5) * (1.0 + s), x

    w, v = draw(D, dtype=BF16, seed=4), draw(D, dtype=BF16, seed=5)
    g, s = tables("gate", "scale")
    seen = check(block, *stream(), g, w, v, s)
    only(seen, "residual_norm_modulate", {"rms_norm": 2})
    assert seen.only().parameters["branch_norm"] is True


@pytest.mark.parametrize("rows", [1024, 4096])
def test_the_ledger_says_that_a_branch_with_a_norm_has_too_few_rows(rows: int) -> None:
    def block(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        x = x + rms(y, w)
        return rms(x, v), x

    mode = FakeTensorMode()
    with mode:
        inputs = [torch.empty(1, rows, 3840, dtype=BF16) for _ in "xy"] + [
            torch.empty(3840, dtype=BF16) for _ in "wv"
        ]
        graph = make_fx(block)(*inputs).graph
    GraphPass(Options(), H200)(graph)
    entries = rocm_passes.history()[-1].entries
    reason = (
        "with a norm of the branch Inductor's own code was about as fast or faster: "
        "rows = 1,024, required >= 3,072"
    )
    if rows < 3072:
        assert [(e.idiom, e.outcome) for e in entries] == [("rms_norm", "kept")] * 2
        assert all(any(reason in said for said in e.considered) for e in entries)
    else:
        assert [(e.idiom, e.lowering, e.outcome) for e in entries] == [
            ("residual_norm", "triton", "rewritten")
        ]


def test_mochi() -> None:
    """The gate stands inside the branch's norm, before the cast; the next norm's factor is fp32."""

    def block(x: Tensor, y: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        def inner(v: Tensor, factor: Tensor) -> Tensor:
            f = wide(v)
            n = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6)
            return (n * wide(factor)).to(v.dtype)

        x = x + inner(y, torch.tanh(g))
        return inner(x, 1 + wide(s)), x

    for batch in (1, 2):
        seen = check(block, *stream(batch=batch), *tables("gate", "scale", batch=batch))
        only(seen, "residual_norm_modulate", {"rms_norm": 2})


def test_a_sum_that_nothing_else_reads_is_not_returned() -> None:
    def block(x: Tensor, y: Tensor, s: Tensor, b: Tensor) -> Tensor:
        return layer(x + y) * (1 + s) + b

    seen = check(block, *stream(), *tables("scale", "shift"))
    only(seen, "residual_norm_modulate", {"layer_norm": 1})
    assert seen.only().parameters["sum_used_elsewhere"] is False


def test_a_row_strided_branch() -> None:
    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y.chunk(2, -1)[1]
        return rms(x), x

    seen = check(block, draw(B, S, D, dtype=BF16), draw(B, S, 2 * D, dtype=BF16, seed=1))
    only(seen, "residual_norm", {"rms_norm": 1})


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_residual_and_rms_norm(dtype: torch.dtype) -> None:
    def block(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return rms(x, w), x

    seen = check(block, *stream(dtype), draw(D, dtype=dtype, seed=3))
    only(seen, "residual_norm", {"rms_norm": 1})


def test_sum_and_norm_are_bit_for_bit_the_eager_ones() -> None:
    def block(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return rms(x, w), x

    args = (*stream(), draw(D, dtype=BF16, seed=3))
    seen = rewrite(block, *args)
    for ours, eager in zip(seen.result, block(*args), strict=True):
        assert torch.equal(ours, eager)
    assert not seen.only().notes


def test_residual_and_affine_layer_norm() -> None:
    def block(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = (wide(x) + wide(y)).type_as(x)
        return F.layer_norm(wide(x), (D,), wide(w), wide(b), 1e-6).type_as(x), x

    seen = check(block, *stream(), draw(D, dtype=BF16, seed=3), draw(D, dtype=BF16, seed=4))
    only(seen, "residual_norm", {"layer_norm": 1})


def test_norm_on_the_branch_alone() -> None:
    def block(x: Tensor, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        return x + g * rms(y, w)

    seen = check(block, *stream(), *tables("gate"), draw(D, dtype=BF16, seed=3))
    only(seen, "norm_residual", {"rms_norm": 1})


def test_the_norms_weight_is_no_gate() -> None:
    """Gemma, Z-Image's context refiner: norm, weight, sum, and the next norm."""

    def block(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        x = x + rms(y, w)
        return rms(x, v), x

    seen = check(block, *stream(), draw(D, dtype=BF16, seed=3), draw(D, dtype=BF16, seed=4))
    only(seen, "residual_norm", {"rms_norm": 2})
    assert seen.only().parameters["gate"] is None


def gemma(x: Tensor, weight: Tensor) -> Tensor:
    f = wide(x)
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + wide(weight))).type_as(
        x
    )


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("gated", [True, False])
def test_one_plus_weight_on_the_branch(dtype: torch.dtype, gated: bool) -> None:
    """Gemma: norm(y) * (1 + w), with a gate and without."""

    def block(x: Tensor, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        return x + (g * gemma(y, w) if gated else gemma(y, w))

    seen = check(block, *stream(dtype), *tables("gate", dtype=dtype), draw(D, dtype=dtype, seed=3))
    only(seen, "norm_residual", {"rms_norm": 1})
    assert seen.only().parameters["branch_weight_offset"] == 1.0
    assert torch.ops.aten.add.Tensor not in seen.targets()


def test_each_norm_of_a_chain_has_its_own_offset() -> None:
    def gemma_first(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        x = x + gemma(y, w)
        return rms(x, v), x

    def gemma_last(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        x = x + rms(y, w)
        return gemma(x, v), x

    for block, offsets in ((gemma_first, (1.0, 0.0)), (gemma_last, (0.0, 1.0))):
        seen = check(block, *stream(), draw(D, dtype=BF16, seed=3), draw(D, dtype=BF16, seed=4))
        only(seen, "residual_norm", {"rms_norm": 2})
        found = seen.only().parameters
        assert (found["branch_weight_offset"], found["weight_offset"]) == offsets


def test_a_rounding_inside_the_branchs_norm_is_noted() -> None:
    """Before a weight in fp32, from which the norm's result is fp32 as well."""
    (kernel,) = (low for low in op.FUSED_NORM.lowerings if low.name == "triton")

    def block(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return x + rms(y, w)

    def noted(y_dtype: torch.dtype) -> bool:
        seen = rewrite(block, draw(B, S, D), draw(B, S, D, dtype=y_dtype, seed=1), draw(D, seed=3))
        only(seen, "norm_residual", {"rms_norm": 1})
        (node,) = (m for g in seen.after for m in g.nodes if m.target is op.FUSED_NORM.overload)
        return kernel.note(op.FUSED_NORM.call_of(node), CPU) is not None

    assert noted(BF16)
    assert not noted(F32)


def test_two_norms_of_one_sum() -> None:
    """The sum is computed once, with the first norm; the second stands alone."""

    def block(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return rms(x, w), layer(x)

    seen = check(block, *stream(), draw(D, dtype=BF16, seed=3))
    assert covered(seen) == {"rms_norm": 1, "layer_norm": 1}
    assert {e.idiom for e in seen.sites} & {"residual_norm"}


def test_under_dynamic_shapes() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps = 1e-3
            self.weight = nn.Parameter(draw(D, dtype=BF16))

        def norm(self, x: Tensor) -> Tensor:
            v = wide(x).pow(2).mean(-1, keepdim=True)
            return (x * torch.rsqrt(v + self.eps)).to(x.dtype) * self.weight.to(x.dtype)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x = x + self.norm(y)
            return self.norm(x), x

    seen = check(Block(), *stream(), dynamic=True)
    assert outcomes(seen) == [("residual_norm", "rewritten")]
    assert str(seen.only().parameters["eps"]).startswith("tensor")


def parts(fn: Callable[..., object], *args: Tensor) -> Rewritten:
    """The chain is not taken, its norms are; results stay right."""
    seen = check(fn, *args)
    assert not [e for e in seen.sites if e.idiom in CHAINS]
    assert [e for e in seen.sites if e.idiom in NORMS]
    return seen


def test_an_unrounded_sum_used_elsewhere_is_no_residual() -> None:
    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = wide(x) + wide(y)
        return layer(total.type_as(x)), total

    parts(block, *stream())


def test_a_broadcast_addend_is_no_residual() -> None:
    """A bias or a position embedding."""

    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y[:, :1]
        return layer(x), x

    parts(block, *stream())


def test_a_scaled_addend_is_no_residual() -> None:
    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.add(x, y, alpha=2)
        return layer(x), x

    seen = check(block, *stream())
    assert covered(seen) == {"layer_norm": 1}


def test_float64_is_refused() -> None:
    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return layer(x), x

    seen = rewrite(block, *(t.double() for t in stream()))
    assert outcomes(seen) == [("layer_norm", "refused")]
    assert any("float64" in c for c in seen.only().considered)


def test_a_gate_computed_from_the_norm_is_left_alone() -> None:
    """The scale comes from the sum itself: both cannot be computed at once."""

    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return layer(x) * (1 + x.mean(1, keepdim=True)), x

    seen = check(block, *stream())
    assert covered(seen) == {"layer_norm": 1}
    assert "residual_norm_modulate" not in [e.idiom for e in seen.sites]


def test_off_reports_the_parts_and_what_was_considered() -> None:
    def block(x: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return layer(x) * (1 + s), x

    seen = rewrite(block, *stream(), *tables("scale"), options={"select": "off"})
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (
        "layer_norm",
        "kept",
        {"layer_norm": 1},
    )
    assert [c.split(":")[0] for c in site.considered] == [
        "residual_norm_modulate",
        "residual_norm",
        "norm_modulate",
    ]

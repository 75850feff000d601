"""aiter's norms chosen by the pass and run by the operators, against a double that raises where
aiter would abort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.ops.fused_norm import FUSED_NORM, FusedNorm
from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.doubles.aiter_double import installed
from tests.idioms.norm_cases import BF16, F16, draw, listed, wide
from tests.policy.calls import CHAIN
from tests.rewriting import Rewritten, rewrite

D = 64
MI300 = Target("amd", "gfx942", "MI300X", torch.__version__, None)


def torch_rms(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w, 1e-6)


def add_rms(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    x = x + y
    return torch_rms(x, w), x


def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b, 1e-6)


def group(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.group_norm(x, 4, w, b, 1e-6)


@pytest.fixture(autouse=True)
def on_mi300(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors, a target of gfx942, and the operators running their lowering rather than plain
    torch.
    """
    monkeypatch.setattr("rocm_passes.backend.Target.of_inputs", staticmethod(lambda _: MI300))
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: True)


def through_aiter(fn: Callable[..., Any], *args: Tensor, **options: Any) -> Rewritten:
    with installed("0.1.18", "gfx942"):
        return rewrite(fn, *args, options={"select": "always", **options})


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(
    ("fn", "idiom", "shapes"),
    [
        (torch_rms, "rms_norm", ((3, 5, D), (D,))),
        (add_rms, "residual_norm", ((3, 5, D), (3, 5, D), (D,))),
        (layer, "layer_norm", ((3, 5, D), (D,), (D,))),
        (group, "group_norm", ((2, 16, 4, 4), (16,), (16,))),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_chosen_and_right(
    fn: Callable[..., Any],
    idiom: str,
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = [draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    seen = through_aiter(fn, *args)
    site = seen.only()
    assert (site.idiom, site.outcome, site.lowering) == (idiom, "rewritten", "aiter")
    assert "the aiter kernel failed" not in caplog.text
    exact = listed(fn(*(a.double() for a in args)))
    for ours, true in zip(listed(seen.result), exact, strict=True):
        # gfx942 truncates bf16 where torch rounds: one unit for one rounding, two for the sum and
        # its norm.
        torch.testing.assert_close(ours.double(), true, rtol=2 * torch.finfo(dtype).eps, atol=2e-2)


def test_what_differs_is_noted_and_strict_refuses_it() -> None:
    args = [draw(3, D, dtype=BF16), draw(3, D, dtype=BF16, seed=1), draw(D, dtype=BF16, seed=2)]
    rounding, launching = through_aiter(add_rms, *args).only().notes
    assert "aiter truncates bfloat16 on gfx942 instead of rounding to nearest" in rounding
    assert launching.startswith("an operator call launches it")
    seen = through_aiter(add_rms, *args, rewrite_numerics="strict")
    assert "aiter" not in [e.lowering for e in seen.sites]
    assert any(
        "rewrite_numerics='strict'" in c for e in seen.sites for c in (*e.considered, e.reason)
    )


def chain_reasons(fn: Callable[..., Any], *args: Tensor) -> str:
    seen = through_aiter(fn, *args)
    assert "aiter" not in [
        e.lowering for e in seen.sites if e.idiom not in ("rms_norm", "layer_norm")
    ]
    return " | ".join(c for e in seen.sites for c in (*e.considered, e.reason))


def rows(dtype: torch.dtype = BF16, n: int = 2) -> list[Tensor]:
    return [draw(2, 3, D, dtype=dtype, seed=i) for i in range(n)]


def test_refuses_a_gate() -> None:
    def fn(x: Tensor, y: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return add_rms(x, g * y, w)

    assert "no gate" in chain_reasons(fn, *rows(), draw(D, dtype=BF16), draw(2, 1, D, dtype=BF16))


def test_refuses_a_modulation() -> None:
    def fn(x: Tensor, y: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        n, x = add_rms(x, y, w)
        return n * (1 + s), x

    seen = through_aiter(fn, *rows(), draw(D, dtype=BF16), draw(2, 1, D, dtype=BF16))
    reasons = " | ".join(c for e in seen.sites for c in e.considered)
    assert "no modulation" in reasons
    assert ("residual_norm", "aiter") in [(e.idiom, e.lowering) for e in seen.sites]


def add_layer(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x = x + y
    return layer(x, w, b), x


def test_a_layer_norm_after_the_sum() -> None:
    args = (*rows(), draw(D, dtype=BF16, seed=3), draw(D, dtype=BF16, seed=4))
    seen = through_aiter(add_layer, *args)
    assert seen.only().lowering == "aiter" and "Composable Kernel" in seen.only().notes[0]
    exact = add_layer(*(a.double() for a in args))
    for ours, theirs, true in zip(seen.result, add_layer(*args), exact, strict=True):
        assert_no_worse(ours, theirs, true)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "none", "outputs": 0}, "with a norm only"),
        ({"branch": None}, "with a norm only"),
        ({"weight_offset": 1.0}, "no (1 + weight) form"),
        ({"round_to": BF16}, "rounds within the norm"),
        ({"round_product": BF16}, "rounds within the norm"),
        ({"sum_dtype": torch.float32}, "aiter wants one dtype"),
        ({"outputs": 2}, "no modulation after the norm"),
    ],
)
def test_a_layer_norm_after_the_sum_is_refused(changes: dict[str, Any], reason: str) -> None:
    x, w = draw(3, D, dtype=BF16), draw(D, dtype=BF16)
    given = CHAIN | {"x": x, "branch": x, "branch_norm": False, "kind": "layer", "weight": w}
    lowering = FUSED_NORM.lowering("aiter")
    assert lowering is not None
    with installed("0.1.18", "gfx942"):
        assert lowering.refuses(FusedNorm(**given), MI300) is None
        assert reason in (lowering.refuses(FusedNorm(**given | changes), MI300) or "")


def test_no_rule_takes_a_layer_norm_through_aiter() -> None:
    args = (*rows(), draw(D, dtype=BF16), draw(D, dtype=BF16))
    assert "aiter" not in [e.lowering for e in through_aiter(add_layer, *args, select="auto").sites]


def test_refuses_a_norm_without_a_weight() -> None:
    def fn(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return F.rms_norm(x, (D,), None, 1e-6), x

    assert "no weight" in chain_reasons(fn, *rows())


def test_refuses_a_gemma_weight() -> None:
    def fn(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        f = wide(x)
        n = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + wide(w))
        return n.type_as(x), x

    assert "(1 + weight)" in chain_reasons(fn, *rows(), draw(D, dtype=BF16))


def test_refuses_a_bias_behind_the_sum() -> None:
    def fn(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        normed, x = add_rms(x, y, w)
        return normed + b, x

    reasons = chain_reasons(fn, *rows(), draw(D, dtype=BF16), draw(D, dtype=BF16, seed=3))
    assert "residual_norm: aiter: aiter's rms_norm has no bias" in reasons


def test_refuses_a_norm_of_the_branch_with_a_gemma_weight() -> None:
    def fn(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        f = wide(y)
        normed = (
            f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + wide(w))
        ).type_as(y)
        return add_rms(x, normed, v)

    reasons = chain_reasons(fn, *rows(), draw(D, dtype=BF16), draw(D, dtype=BF16, seed=3))
    assert (
        "residual_norm: aiter: aiter adds the residual as it is: no gate, no norm of the branch"
        in reasons
    )


def test_refuses_a_sum_of_another_dtype() -> None:
    def fn(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = wide(x) + wide(y)
        return torch_rms(total, w), total

    assert "wants one dtype" in chain_reasons(fn, *rows(), draw(D))


def test_group_norm_with_silu_is_not_aiters() -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.silu(group(x, w, b))

    args = (draw(2, 16, 4, 4, dtype=BF16), draw(16, dtype=BF16), draw(16, dtype=BF16))
    assert "nothing after the norm" in through_aiter(fn, *args).only().reason


def test_layer_norm_in_another_dtype_is_not_aiters() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (D,), eps=1e-6)

    assert "returns x's dtype" in through_aiter(fn, draw(3, D, dtype=BF16)).only().reason


def test_group_norm_in_another_dtype_is_not_aiters() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.group_norm(x.float(), 4)

    assert "returns x's dtype" in through_aiter(fn, draw(2, 16, 4, 4, dtype=BF16)).only().reason

"""LayerNorm alone: every spelling found and computed within the accuracy bar; every near miss left
alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.idioms.norm_cases import BF16, F16, F32, check, draw, outcomes, use_reference, wide
from tests.rewriting import rewrite

D = 48


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("affine", [False, True])
def test_in_the_dtype_of_x(dtype: torch.dtype, affine: bool) -> None:
    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), w if affine else None, b if affine else None, 1e-5)

    x, w, b = draw(2, 7, D, dtype=dtype), draw(D, dtype=dtype, seed=1), draw(D, dtype=dtype, seed=2)
    seen = check(norm, x, w, b)
    assert outcomes(seen) == [("layer_norm", "rewritten")]
    assert torch.ops.aten.var_mean.correction not in seen.targets()
    site = seen.only()
    assert site.parameters["eps"] == pytest.approx(1e-5)
    assert site.parameters["weight"] == (dtype if affine else None)


def test_fp32_layer_norm_of_a_bf16_stream() -> None:
    """diffusers' FP32LayerNorm: widened before, narrowed after; the operator reads x and the
    weights as they are.
    """

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(wide(x), (D,), wide(w), wide(b), 1e-6).type_as(x)

    x, w, b = draw(5, D, dtype=BF16), draw(D, dtype=BF16, seed=1), draw(D, dtype=BF16, seed=2)
    seen = check(norm, x, w, b)
    assert outcomes(seen) == [("layer_norm", "rewritten")]
    assert [i["dtype"] for i in seen.only().inputs] == [BF16, BF16, BF16]
    assert torch.ops.prims.convert_element_type.default not in seen.targets()


def test_strided_rows_and_a_large_mean() -> None:
    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), eps=1e-6)

    x = (draw(3, 4, 2 * D) + 1000)[:, ::2, :D].transpose(0, 1)
    assert outcomes(check(norm, x)) == [("layer_norm", "rewritten")]


def test_the_weights_own_cast_is_not_narrowed() -> None:
    """A weight rounded on its way in is read rounded."""

    def norm(x: Tensor, w: Tensor) -> Tensor:
        return F.layer_norm(
            x, (D,), (w * 1.001).to(x.dtype) if x.dtype is BF16 else w * 1.001, None, 1e-6
        )

    x, w = draw(5, D, dtype=BF16), draw(D, dtype=F32, seed=1)
    seen = rewrite(norm, x, w)
    assert outcomes(seen) == [("layer_norm", "rewritten")]
    torch.testing.assert_close(seen.result, norm(x, w), rtol=2**-7, atol=2**-8)


def refused(fn: object, *args: Tensor) -> str:
    seen = rewrite(fn, *args)  # type: ignore[arg-type]
    site = seen.only()
    assert (site.idiom, site.outcome, dict(site.covers)) == (
        "layer_norm",
        "refused",
        {"layer_norm": 1},
    )
    torch.testing.assert_close(seen.result, fn(*args))  # type: ignore[operator]
    return site.reason


def test_refuses_two_dimensions() -> None:
    assert "over 2 dimensions" in refused(lambda x: F.layer_norm(x, (4, D)), draw(3, 4, D))


def test_refuses_statistics_used_outside() -> None:
    def norm(x: Tensor) -> tuple[Tensor, ...]:
        return torch.native_layer_norm(x, (D,), None, None, 1e-6)

    assert "used outside" in refused(norm, draw(3, D))


def test_refuses_an_unused_result() -> None:
    def mean(x: Tensor) -> Tensor:
        return torch.native_layer_norm(x, (D,), None, None, 1e-6)[1]

    assert "used outside" in refused(mean, draw(3, D))


def test_refuses_float64() -> None:
    assert "float64" in refused(lambda x: F.layer_norm(x, (D,)), draw(3, D).double())


def test_training_graphs_have_an_entry_and_right_gradients() -> None:
    model, x = nn.LayerNorm(D), draw(5, D).requires_grad_()
    seen = rewrite(model, x, grad=True)
    assert ("layer_norm", "refused") in outcomes(seen)
    assert any("training graph" in e.reason for e in seen.sites)
    seen.result.sum().backward()
    ours = [x.grad, model.weight.grad, model.bias.grad]
    x.grad = model.weight.grad = model.bias.grad = None
    model(x).sum().backward()
    for a, b in zip(ours, [x.grad, model.weight.grad, model.bias.grad], strict=True):
        torch.testing.assert_close(a, b)

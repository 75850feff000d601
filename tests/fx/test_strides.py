"""Readers of strides, and outputs of control flow, find the strides that they were promised before
a rewrite.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.options import Options
from rocm_passes.target import Target
from tests.fuzz.traced import Traced, references_run, target_named
from tests.idioms.norm_cases import use_reference
from tests.rewriting import rewrite


@pytest.fixture(autouse=True)
def plain_torch_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference(monkeypatch)


VIDEO, KERNEL = torch.randn(3, 2, 6, 4, 7), torch.randn(4, 2, 3, 1, 3) / 4


def normed(x: Tensor, w: Tensor) -> Tensor:
    y = F.conv3d(x, w)
    return y / torch.sqrt(y.pow(2).mean(1, keepdim=True) + 0.5)


def test_a_reader_behind_what_was_not_promised_anew() -> None:
    """The norm is rewritten before the convolution, whose result then lies channels-last, and so
    does the norm's.
    """

    def f(x: Tensor, w: Tensor) -> Tensor:
        return torch.as_strided(normed(x, w), (100, 2), (2, 1), 0) + 1

    seen = rewrite(f, VIDEO, KERNEL, options={"layout": "channels_last"})
    assert {e.idiom for e in seen.sites if e.outcome == "rewritten"} == {"conv3d", "channel_norm"}
    torch.testing.assert_close(seen.result, f(VIDEO, KERNEL))


def test_a_reader_behind_a_view_and_plain_arithmetic() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return torch.as_strided(F.relu(F.conv3d(x, w)).transpose(1, 2), (100, 2), (2, 1), 0) + 1

    seen = rewrite(f, VIDEO, KERNEL, options={"layout": "channels_last"})
    torch.testing.assert_close(seen.result, f(VIDEO, KERNEL))


EXPANDED = (
    "[None].expand(2, -1, -1, -1, -1, -1)",
    "[:, :1].expand(-1, 3, -1, -1, -1)",
    "[:, :, :, ::2].unsqueeze(2).expand(-1, -1, 3, -1, -1, -1)",
    "[None, :, None].expand(2, -1, 3, -1, -1, -1, -1)",
    ".relu()[None].expand(2, -1, -1, -1, -1, -1)",
)


@pytest.mark.parametrize("view", ["[:, :, :, ::2]", "[:, 1:]", ".transpose(1, 2)", "", *EXPANDED])
def test_outputs_of_a_body_with_gaps_between(view: str) -> None:
    """A branch of control flow promises the strides of its outputs, also of a slice."""
    f = eval(f"lambda x, w: (F.conv3d(x, w){view},)", {"F": F})
    with torch.no_grad(), references_run():
        traced = Traced(f, (VIDEO, KERNEL))
        traced.trace()
        ledger = traced.rewrite(
            Options(select="always", layout="channels_last"), target_named("cpu"), visible=False
        )
        (found,) = traced(VIDEO, KERNEL)
    assert [e.outcome for e in ledger.entries] == ["rewritten"]
    (want,) = f(VIDEO, KERNEL)
    torch.testing.assert_close(found, want)
    assert found.stride() == want.stride()


def test_an_output_of_a_body_that_is_returned_twice_stays_one_tensor() -> None:
    def f(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = F.conv3d(x, w)
        return y, y

    with torch.no_grad(), references_run():
        traced = Traced(f, (VIDEO, KERNEL))
        traced.trace()
        traced.rewrite(
            Options(select="always", layout="channels_last"), target_named("cpu"), visible=False
        )
        one, other = traced(VIDEO, KERNEL)
    assert one.data_ptr() == other.data_ptr()
    assert one.stride() == f(VIDEO, KERNEL)[0].stride()


def test_strict_rounds_a_convolution_behind_its_bias() -> None:
    """Folded into the norm, the bias would be added to a result that is rounded already."""
    x, w, b = (
        torch.randn(2, 3, 9, 9).bfloat16(),
        torch.randn(4, 3, 3, 3).bfloat16() / 5,
        torch.randn(4).bfloat16(),
    )

    def f(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor]:
        return (F.group_norm(F.conv2d(x, w, b), 2, b, b, 0.02),)

    with torch.no_grad(), references_run():
        traced = Traced(f, (x, w, b))
        traced.trace()
        options = Options(select="always", rewrite_numerics="strict", tune_seconds=0.0)
        traced.rewrite(options, target_named("sm_90"))
        (found,) = traced(x, w, b)
    away = (found != f(x, w, b)[0]).double().mean().item()
    assert away < 0.02


def test_a_reader_behind_a_decomposed_norm() -> None:
    """What it read was the norm's own result, and is a view by now: it ends the decomposition."""

    def f(x: Tensor, w: Tensor) -> Tensor:
        y = F.group_norm(F.conv3d(x, w), 2)[:, 0]
        return torch.as_strided(y, (12, 5), (5, 1), 0) + 1

    seen = rewrite(f, VIDEO, KERNEL, options={"layout": "channels_last", "idioms": ("conv3d",)})
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    torch.testing.assert_close(seen.result, f(VIDEO, KERNEL))
    whole = rewrite(f, VIDEO, KERNEL, options={"layout": "channels_last", "select": "auto"})
    torch.testing.assert_close(whole.result, f(VIDEO, KERNEL))


@pytest.mark.parametrize("views", ["y, y[:1]", "y[:1], y", "y[:1], y[1:]", "y, y.transpose(0, 1)"])
def test_outputs_of_a_body_that_share_memory_go_on_sharing_it(views: str) -> None:
    f = eval(f"lambda x, w: (lambda y: ({views}))(F.conv3d(x, w))", {"F": F})
    with torch.no_grad(), references_run():
        traced = Traced(f, (VIDEO, KERNEL))
        traced.trace()
        traced.rewrite(
            Options(select="always", layout="channels_last"), target_named("cpu"), visible=False
        )
        found = traced(VIDEO, KERNEL)
    one, other = (t.untyped_storage().data_ptr() for t in found)
    assert one == other
    for got, want in zip(found, f(VIDEO, KERNEL), strict=True):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


def test_outputs_of_a_body_that_share_memory_keep_the_strides_of_a_dim_of_size_1_too() -> None:
    def f(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = F.conv3d(x, w, stride=(1, 2, 1))
        return y, y[:1]

    x, w = torch.randn(1, 4, 1, 1, 9), torch.randn(2, 4, 1, 1, 1)
    with torch.no_grad(), references_run():
        traced = Traced(f, (x, w))
        traced.trace()
        traced.rewrite(Options(select="always"), target_named("cpu"), visible=False)
        found = traced(x, w)
    one, other = (t.untyped_storage().data_ptr() for t in found)
    assert one == other
    assert [t.stride() for t in found] == [(18, 9, 9, 9, 1)] * 2


def test_a_reader_of_symbolic_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strides are products of sizes that no number is known of, and are kept all the same."""
    faked = target_named("sm_90")
    monkeypatch.setattr(Target, "of_inputs", staticmethod(lambda _: faked))
    weight = torch.randn(4, 4, 2, 2, 3)

    def f(x: Tensor, w: Tensor) -> Tensor:
        y = F.group_norm(x.contiguous(memory_format=torch.channels_last_3d), 4, eps=0.02)
        y = y.transpose(2, 1)
        y = F.normalize((y + y.mean()).float(), dim=1, eps=1.0)
        return torch.as_strided(F.conv3d(y, w), (48, 6), (1, 48), 0)

    x = torch.randn(4, 4, 4, 4, 4).bfloat16()
    with references_run():
        seen = rewrite(f, x, weight, dynamic=True)
    outcomes = {e.idiom: e.outcome for e in seen.sites}
    assert outcomes["group_norm"] == outcomes["channel_norm"] == "rewritten"
    torch.testing.assert_close(seen.result, f(x, weight), atol=2e-2, rtol=2e-2)

"""Attention is read off every kernel's node and off its spelled-out form, or left with a reason."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from rocm_passes.ops.attention import ATTENTION
from tests.accuracy import assert_no_worse
from tests.idioms.attention_calls import (
    CHUNKED,
    aten,
    cudnn,
    efficient,
    exact,
    flash,
    operands,
    run,
    sdpa,
    spelled,
)
from tests.rewriting import rewrite


@pytest.mark.parametrize("kernel", [flash, efficient, cudnn, spelled, sdpa])
@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_read_off_every_form(kernel: Any, how: dict[str, Any]) -> None:
    q, k, v = operands()
    seen = run(functools.partial(kernel, **how), q, k, v, **CHUNKED)
    site = seen.only()
    assert (site.outcome, site.lowering) == ("rewritten", "chunked"), site.reason
    names = {spelled: "math", sdpa: "cpu"}
    assert site.parameters["kernel"] == names.get(kernel, kernel.__name__)
    assert site.parameters["causal"] is how.get("is_causal", False)
    assert site.parameters["mask"] is False
    assert_no_worse(seen.result, sdpa(q, k, v, **how), exact(q, k, v, **how))


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("keys", [20, 36, 50])
@pytest.mark.parametrize("masking", ["", "causal", "bool", "float", "rows"])
def test_spelled_out(masking: str, keys: int, dtype: torch.dtype) -> None:
    q, k, v = operands(1, 2, 36, 16, keys=keys, width=8, dtype=dtype)
    how: dict[str, Any] = {}
    if masking == "causal":
        how = {"is_causal": True}
    elif masking == "float":
        how = {"attn_mask": torch.randn(36, keys).to(dtype)}
    elif masking:
        mask = torch.randn(1, 1, 36, keys) > 0
        mask[:, :, 3] = masking != "rows"
        how = {"attn_mask": mask}
    seen = run(functools.partial(sdpa, **how), q, k, v, **CHUNKED)
    site = seen.only()
    assert (site.outcome, site.parameters["kernel"]) == ("rewritten", "math"), site.reason
    assert site.parameters["causal"] is (masking == "causal")
    assert site.parameters["mask"] is (masking not in ("", "causal"))
    assert torch.ops.aten.bmm.default not in seen.targets("after")
    # Both round the scores. Half a unit of a score changes its weight by as much, relatively: the
    # unit is one of the largest score (tests/ops/test_attention.py has all head sizes).
    largest = (q.double() @ k.double().transpose(2, 3) / 4).abs().max()
    wide = [t.double() for t in (q, k, v)]
    given = {n: t.double() if n == "attn_mask" and t.is_floating_point() else t
             for n, t in how.items()}  # fmt: skip
    right, eager = sdpa(*wide, **given), sdpa(q, k, v, **how)
    ours, theirs = (t.double() - right for t in (seen.result, eager))
    unit = torch.finfo(dtype).eps * right.abs().max() * largest.clamp(min=1)
    assert ours.abs().max() <= theirs.abs().max() + unit
    if masking == "rows":
        assert torch.equal(seen.result[:, :, 3], torch.zeros(1, 2, 8, dtype=dtype))


@pytest.mark.parametrize("width", [16, 8])
def test_grouped_heads_are_not_repeated(width: int) -> None:
    q = operands(1, 6, 36, 16)[0]
    _, k, v = operands(1, 3, 36, 16, width=width)
    seen = run(functools.partial(sdpa, enable_gqa=True), q, k, v, **CHUNKED)
    assert seen.only().parameters["key_heads"] == 3
    assert aten.expand.default not in seen.targets("after")
    assert_no_worse(seen.result, sdpa(q, k, v, enable_gqa=True), exact(q, k, v, enable_gqa=True))


def test_heads_that_an_expand_repeats_are_read_once() -> None:
    q, k, v = operands(1, 3, 36, 16)

    def multi_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash(q, k[:, :1].expand(k.shape), v[:, :1].expand(v.shape))

    seen = run(multi_query, q, k, v, **CHUNKED)
    (call,) = [n for g in seen.after for n in g.nodes if n.target is ATTENTION.overload]
    assert call.args[1].meta["val"].shape == call.args[2].meta["val"].shape == (1, 1, 36, 16)
    one = (t[:, :1].expand(t.shape) for t in (k, v))
    assert_no_worse(seen.result, sdpa(q, k[:, :1], v[:, :1]), exact(q, *one))


def refused(fn: Any, *args: Any, grad: bool = False) -> str:
    seen = rewrite(fn, *args, options={"idioms": "attention"}, grad=grad)
    assert {e.outcome for e in seen.sites} == {"refused"}
    return seen.sites[0].reason


def test_refused_with_dropout() -> None:
    def dropping(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return sdpa(q, k, v, dropout_p=0.25)

    reason = refused(dropping, *operands())
    assert "dropped at random" in reason or "dropout_p=0.25" in reason
    assert "dropout_p=0.25" in unread(lambda q, k, v: flash(q, k, v, dropout_p=0.25))


def unread(fn: Any, *args: Any) -> str:
    """The reason for another device's operator, which stays in the graph and cannot run here."""
    site = run(fn, *(args or operands())).only()
    assert site.outcome == "refused"
    return site.reason


def test_refused_where_the_weights_are_asked_for() -> None:
    assert "return_debug_mask=True" in unread(
        lambda q, k, v: flash(q, k, v, return_debug_mask=True)
    )


def test_refused_where_the_logsumexp_is_kept_for_a_backward_pass() -> None:
    q, k, v = (t.requires_grad_() for t in operands(dtype=torch.float32))
    assert "logsumexp is read, which a backward pass needs" in refused(sdpa, q, k, v, grad=True)


def test_refused_where_spelled_out_weights_are_kept_for_a_backward_pass() -> None:
    q, k, v = (t.requires_grad_() for t in operands(width=8, dtype=torch.float32))
    assert "its weights are read elsewhere too" in refused(sdpa, q, k, v, grad=True)


def test_refused_where_a_batch_is_broadcast() -> None:
    q, k, v = operands(3, 2, 36, 16, width=8)
    reason = refused(sdpa, q, k[:1], v[:1])
    assert "[3, 2, 36, 16], [1, 2, 36, 16], [1, 2, 36, 8] are not known to fit together" in reason


def test_one_head_that_is_broadcast_is_read_once() -> None:
    q, k, v = operands(3, 2, 36, 16, width=8)
    seen = run(sdpa, q, k[:, :1], v[:, :1], **CHUNKED)
    assert (seen.only().outcome, seen.only().parameters["key_heads"]) == ("rewritten", 1)
    one = k[:, :1], v[:, :1]
    assert_no_worse(seen.result, sdpa(q, *one), exact(q, *one))


def test_refused_in_float64() -> None:
    assert "q, k and v are float64" in refused(sdpa, *operands(dtype=torch.float64))


def test_refused_for_operands_in_8_bits() -> None:
    packet = aten._scaled_dot_product_flash_attention
    if "quantized" not in packet.overloads():
        pytest.skip("this torch has no such overload")

    def in_8_bits(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return packet.quantized(q, k, v, None, None, None)[0]

    q, k, v = (t.to(torch.float8_e4m3fn) for t in operands())
    assert "in 8 bits already" in unread(in_8_bits, q, k, v)


def test_a_softmax_that_is_no_attention_is_no_site() -> None:
    assert run(lambda x: torch.softmax(x, -1), torch.randn(2, 8)).sites == []

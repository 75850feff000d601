"""The rotary operators through aiter's double: what fits its contract is taken, what doesn't is
refused with why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rocm_passes.target import Target
from tests.accuracy import assert_no_worse
from tests.doubles.aiter_double import installed
from tests.idioms.rotary_spellings import SPELLINGS, Spelling, doubled, example, p3, unit
from tests.rewriting import Rewritten, rewrite
from tests.without_codegen import without_codegen

F16 = torch.float16
BY_NAME = {s.name: s for s in SPELLINGS}


@pytest.fixture(autouse=True)
def aiter_on_amd(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """An MI300 with aiter; a kernel that fails would only log and fall back, so nothing may be
    logged.
    """
    amd = Target("amd", "gfx942", "MI300X", torch.__version__, "3.6", interpreted=True)
    monkeypatch.setattr("rocm_passes.backend.Target.of_inputs", staticmethod(lambda _: amd))
    with installed():
        yield
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]


def run(fn: object, *args: Tensor, **lowering: str) -> Rewritten:
    idioms = ",".join(lowering)
    with without_codegen():
        return rewrite(fn, *args, options={"idioms": idioms, "lowering": lowering})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["p1", "p1_head_major", "p2", "helios", "p3", "p4", "p7", "first_channels"]
)
def test_one_tensor(name: str) -> None:
    spelling = BY_NAME[name]
    given = example(spelling, 2, 8, 4, 64, F16)
    seen = run(spelling.rotate, *given.args, rotary="aiter")
    assert (seen.only().outcome, seen.only().lowering) == ("rewritten", "aiter"), seen.only().reason
    assert_no_worse(seen.result, given.original, given.exact)


def test_q_and_k() -> None:
    q, k = (
        example(BY_NAME["p3"], 2, 8, 4, 64, F16),
        example(BY_NAME["p3"], 2, 8, 4, 64, F16, seed=1),
    )

    def both(q: Tensor, k: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
        return p3(q, freqs), p3(k, freqs)

    seen = run(both, q.args[0], k.args[0], q.args[1], rotary_pair="aiter")
    assert (seen.only().outcome, seen.only().lowering) == ("rewritten", "aiter"), seen.only().reason
    assert_no_worse(seen.result[0], q.original, q.exact)


def test_norm_and_rotation() -> None:
    x, weight = torch.randn(1, 8, 4, 64).to(F16), (1 + 0.1 * torch.randn(64)).to(F16)

    def attention(q: Tensor, k: Tensor, weight: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
        def norm(x: Tensor) -> Tensor:
            variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
            return (x * torch.rsqrt(variance + 1e-6)).to(x.dtype) * weight

        return p3(norm(q), freqs), p3(norm(k), freqs)

    args = (x, x.flip(1), weight, *unit(torch.rand(8, 32)))
    seen = run(attention, *args, qk_norm_rotary="aiter")
    assert (seen.only().outcome, seen.only().lowering) == ("rewritten", "aiter"), seen.only().reason
    for ours, before in zip(seen.result, attention(*args), strict=True):
        # The same roundings in the same places, but for the last of the rotation.
        assert torch.allclose(ours.double(), before.double(), rtol=2e-3, atol=2e-3)


REFUSED: tuple[tuple[Spelling, str], ...] = (
    (BY_NAME["p5"], "aiter has one table for all"),
    (BY_NAME["first_tokens"], "only some tokens are rotated"),
    (BY_NAME["p6"], "aiter returns x's dtype"),
)


@pytest.mark.parametrize(
    ("spelling", "reason"), REFUSED, ids=lambda v: getattr(v, "name", "reason")
)
def test_refusals(spelling: Spelling, reason: str) -> None:
    given = example(spelling, 2, 8, 4, 64, F16)
    entry = run(spelling.rotate, *given.args, rotary="aiter").only()
    assert entry.outcome == "refused"
    assert reason in entry.reason


def test_minus_the_angles_are_refused() -> None:
    given = example(BY_NAME["p1"], 2, 8, 4, 64, F16)

    def back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
        return (x.float() * cos[None, :, None] - turned.float() * sin[None, :, None]).to(x.dtype)

    entry = run(back, given.args[0], *doubled(torch.rand(8, 32)), rotary="aiter").only()
    assert "rotation by minus the angles" in entry.reason

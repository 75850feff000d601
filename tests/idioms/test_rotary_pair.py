"""q and k as one call; what merely looks like a rotation; nothing rotated twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.accuracy import assert_no_worse
from tests.idioms.rotary_spellings import SPELLINGS, Spelling, doubled, example, p1, p2, p3
from tests.rewriting import Rewritten, rewrite
from tests.without_codegen import without_codegen

F16, F32 = torch.float16, torch.float32
OURS = torch.ops.rocm_passes
PAIRED = [s for s in SPELLINGS if s.name not in ("p8", "p1f")]


def run(fn: Callable[..., object], *args: Tensor, **options: object) -> Rewritten:
    with without_codegen():
        return rewrite(fn, *args, options={"idioms": "rotary_pair,rotary", **options})


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.name)
def test_q_and_k_in_one_call(spelling: Spelling) -> None:
    q = example(spelling, 2, 7, 3, 16, F16)
    k_x = example(spelling, 2, 7, 3, 16, F16, seed=5).args[0]

    def both(q: Tensor, k: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor]:
        return spelling.rotate(q, *tables), spelling.rotate(k, *tables)

    seen = run(both, q.args[0], k_x, *q.args[1:])
    entry = seen.only()
    assert (entry.idiom, entry.outcome, dict(entry.covers)) == (
        "rotary_pair",
        "rewritten",
        {"rotary": 2},
    )
    assert OURS.rotary_pair.default in seen.targets()
    assert_no_worse(seen.result[0], q.original, q.exact)
    original = spelling.rotate(k_x.clone(), *q.args[1:])
    # Either rounds once or twice: within two units of the result's dtype.
    unit = 2 * torch.finfo(original.dtype).eps
    assert torch.allclose(seen.result[1].double(), original.double(), rtol=unit, atol=unit)


def test_tables_of_their_own_make_two_calls() -> None:
    a, b = example(PAIRED[0], 1, 5, 2, 16, F32), example(PAIRED[0], 1, 5, 2, 16, F32, seed=3)

    def both(q: Tensor, k: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor]:
        return p1(q, *tables[:2]), p1(k, *tables[2:])

    seen = run(both, a.args[0], b.args[0], *a.args[1:], *b.args[1:])
    assert [(e.idiom, e.outcome) for e in seen.sites] == [("rotary", "rewritten")] * 2
    for ours, given in zip(seen.result, (a, b), strict=True):
        assert_no_worse(ours, given.original, given.exact)


def test_a_rotation_of_a_rotation_is_two() -> None:
    """Each is one site, and neither joins the other in one call."""
    given = example(PAIRED[0], 1, 5, 2, 16, F32)

    def twice(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return p1(p1(x, cos, sin), cos, sin)

    seen = run(twice, *given.args)
    assert [e.idiom for e in seen.sites] == ["rotary", "rotary"]
    assert torch.allclose(seen.result, twice(*given.args), rtol=1e-5, atol=1e-5)


def test_layers_prepare_shared_tables_once() -> None:
    given = example(next(s for s in SPELLINGS if s.name == "p3"), 1, 5, 2, 16, F32)

    def layers(x: Tensor, freqs: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(p3(x, freqs))
        return x

    seen = run(layers, *given.args)
    assert len(seen.sites) == 3
    assert seen.targets().count(OURS.as_real.default) == 1


def norm_scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift


def gate_residual(x: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    return residual + gate * x


def gated_halves(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(a) * b + shift[..., : a.shape[-1]] * scale[..., : a.shape[-1]]


def half_of_a_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Only the first of each pair."""
    return x[..., 0::2] * cos[..., 0::2] - x[..., 1::2] * sin[..., 1::2]


def swapped_only(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1) * sin


def whole_by_one_number(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A table that does not vary over the pairs is no table of angles."""
    a, b = x.chunk(2, dim=-1)
    return x * cos[..., :1] + torch.cat([-b, a], dim=-1) * sin[..., :1]


LOOKALIKES = (
    norm_scale_shift,
    gate_residual,
    gated_halves,
    half_of_a_rotation,
    swapped_only,
    whole_by_one_number,
)


@pytest.mark.parametrize("lookalike", LOOKALIKES, ids=lambda f: f.__name__)
def test_what_merely_looks_like_a_rotation(lookalike: Callable[..., Tensor]) -> None:
    args = tuple(
        torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    seen = run(lookalike, *args)
    assert seen.sites == []
    assert torch.allclose(seen.result, lookalike(*args), rtol=1e-5, atol=1e-5)


def test_an_inner_value_used_outside() -> None:
    given = example(PAIRED[0], 1, 5, 2, 16, F32)

    def leaking(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        part = x.float() * cos[None, :, None]
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
        return part + turned.float() * sin[None, :, None], part

    entry = run(leaking, *given.args).only()
    assert entry.outcome == "refused"
    assert "is used outside the rotation" in entry.reason


def test_in_place_spellings_leave_no_copy() -> None:
    given = example(next(s for s in SPELLINGS if s.name == "p2"), 1, 5, 2, 16, F16)
    aten = torch.ops.aten
    seen = run(p2, *given.args)
    assert not {aten.slice_scatter.default, aten.copy.default, aten.empty.memory_format} & set(
        seen.targets()
    )


def test_an_empty_tensor() -> None:
    x = torch.randn(0, 5, 2, 16)
    seen = run(p2, x, *doubled(torch.rand(5, 8)))
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    assert seen.result.shape == x.shape


def test_symbolic_tokens() -> None:
    given = example(PAIRED[0], 1, 5, 2, 16, F32)
    torch._dynamo.mark_dynamic(given.args[0], 1)
    for table in given.args[1:]:
        torch._dynamo.mark_dynamic(table, 0)
    seen = run(p1, *given.args)
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    assert_no_worse(seen.result, given.original, given.exact)


def test_a_rotation_by_minus_the_angles() -> None:
    """As the backward of a rotation: there and back again is where it was."""
    given = example(PAIRED[0], 1, 5, 2, 16, F32)

    def back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
        return x.float() * cos[None, :, None] - turned.float() * sin[None, :, None]

    seen = run(back, given.original, *given.args[1:])
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    assert_no_worse(seen.result, back(given.original, *given.args[1:]), given.args[0].double())

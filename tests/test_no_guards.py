"""Looking at a graph with symbolic sizes puts no guard on them, whatever is looked for, found or
chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.options import Options
from rocm_passes.registry import IDIOMS
from rocm_passes.rewrite.choose import choose
from rocm_passes.rewrite.match import Context, Match
from rocm_passes.target import Target
from tests.guards import no_new_guards
from tests.idioms.rotary_graphs import passed, traced
from tests.idioms.rotary_spellings import SPELLINGS, Spelling, example, p1, p3
from tests.idioms.test_qk_norm_rotary import r2
from tests.rewriting import Rewritten, rewrite
from tests.without_codegen import without_codegen

AMD = Target("amd", "gfx942", "MI300X", torch.__version__, "3.0")
CPU = Target.of_device("cpu")


def only_reshaped(x: Tensor) -> Tensor:
    return x.flatten(2) * 2


def cut(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([x[:, 1:], x[:, :1]], 1) + F.pad(x, (0, 0, 0, 0, 1, 0))[:, 1:] + (a * b).sum()


def normed(x: Tensor) -> Tensor:
    y = F.layer_norm(x + 1, x.shape[-1:]) * 2 + 1
    return F.silu(r2(y, torch.ones(y.shape[-1]))) + F.normalize(x, dim=-1)


def attention(q: Tensor, k: Tensor, w: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return p1(r2(q, w), c, s), p1(r2(k, w), c, s)


def streams(q: Tensor, t: Tensor, w: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return p1(torch.cat([r2(t, w), r2(q, w)], 1), c, s)


def some_tokens(q: Tensor, c: Tensor, s: Tensor) -> Tensor:
    end = q.shape[1] - 2
    return torch.cat([p1(q[:, :end], c[:end], s[:end]), q[:, end:]], 1)


#: Batches, tokens, and a video's frames and rows: what changes from call to call. Heads and
#: channels do not.
DYNAMIC = (2, 5, 6, 7, 12)
X, W, T = torch.randn(3, 7, 4, 4), torch.randn(4), torch.randn(7, 4)
VIDEO, KERNEL = torch.randn(2, 3, 5, 6, 7), torch.randn(4, 3, 3, 3, 3)
GRAPHS: tuple[tuple[Callable[..., Any], tuple[Tensor, ...]], ...] = (
    (only_reshaped, (X,)),
    (cut, (X,)),
    (normed, (X,)),
    (attention, (X, X + 1, W, T, T + 1)),
    (streams, (X, torch.randn(3, 5, 4, 4), W, torch.randn(12, 4), torch.randn(12, 4))),
    (some_tokens, (X, T, T + 1)),
    (lambda x, w: F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), w), (VIDEO, KERNEL)),
    (
        lambda x, w: F.conv2d(F.interpolate(x, scale_factor=2.0), w),
        (torch.randn(2, 3, 5, 6), KERNEL[..., 0]),
    ),
)


@pytest.mark.parametrize("graph", range(len(GRAPHS)))
def test_a_search_puts_no_guard_on_sizes(graph: int) -> None:
    fn, args = GRAPHS[graph]
    gm = traced(fn, *args, dynamic=DYNAMIC)
    for idiom in IDIOMS:
        with no_new_guards(gm.graph):
            for target in (CPU, AMD):
                for found in idiom.find(gm.graph, Context(Options(), target=target)):
                    if isinstance(found, Match):
                        choose(idiom, found, target, Options())


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.name)
def test_every_rotation_is_found_without_a_guard(spelling: Spelling) -> None:
    args = example(spelling, 5, 7, 3, 16, torch.float32).args
    gm = traced(spelling.rotate, *args, dynamic=DYNAMIC)
    rotary = next(i for i in IDIOMS if i.name == "rotary")
    with no_new_guards(gm.graph):
        (found,) = rotary.find(gm.graph, Context(Options(), target=AMD))
        assert isinstance(found, Match)
        assert "its check failed" not in choose(rotary, found, AMD, Options(select="always")).reason


@pytest.mark.parametrize("fn, args, idiom", [
    (attention, (X, X + 1, W, T, T + 1), "qk_norm_rotary"),
    # The graph reads the size of the cat between norm and rotation: the two stay apart.
    (streams, GRAPHS[4][1], "rotary"),
    (some_tokens, (X, T, T + 1), "rotary"),
], ids=lambda v: getattr(v, "__name__", ""))  # fmt: skip
def test_symbolic_sizes_are_rewritten(
    fn: Callable[..., Any], args: tuple[Tensor, ...], idiom: str
) -> None:
    seen = passed(fn, *args, dynamic=DYNAMIC)
    assert seen.outcomes() == [(idiom, "rewritten")]
    for got, wanted in zip(seen.result, seen.before, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


def unbacked(fn: Callable[..., Any], *args: Tensor) -> Rewritten:
    with (
        without_codegen(),
        torch._dynamo.config.patch(
            capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
        ),
    ):
        return rewrite(fn, *args, options={"idioms": "qk_norm_rotary,rotary_pair,rotary"})


def test_unbacked_tokens() -> None:
    """HunyuanVideo Framepack: the text's mask says how many tokens there are, and the image's
    follow.
    """

    def fn(
        t: Tensor, q: Tensor, mask: Tensor, w: Tensor, c: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = torch.cat([q, t[:, mask.nonzero().squeeze(-1)]], 1)
        tables = [
            torch.cat([table, torch.ones(x.shape[1] - table.shape[0], 4)]) for table in (c, s)
        ]
        return p1(r2(x, w), *tables), p1(r2(x * 2, w), *tables)

    mask = torch.tensor([1, 1, 0, 1, 0])
    args = (torch.randn(1, 5, 4, 4), X[:1], mask, W, T, T + 1)
    seen = unbacked(fn, *args)
    assert [(e.idiom, e.outcome, dict(e.covers)) for e in seen.sites] == [
        ("qk_norm_rotary", "rewritten", {"rotary": 2, "rms_norm": 2})
    ], [e.reason for e in seen.sites]
    for got, wanted in zip(seen.result, fn(*args), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_unbacked_tokens_of_a_complex_rotation() -> None:
    def fn(q: Tensor, mask: Tensor, freqs: Tensor) -> Tensor:
        at = mask.nonzero().squeeze(-1)
        return p3(q[:, at], freqs[at])

    angles = torch.rand(7, 2)
    args = (X, torch.tensor([1, 0, 0, 1, 1, 1, 0]), torch.polar(torch.ones_like(angles), angles))
    seen = unbacked(fn, *args)
    assert [(e.idiom, e.outcome) for e in seen.sites] == [("rotary", "rewritten")]
    assert torch.allclose(seen.result, fn(*args), rtol=1e-5, atol=1e-5)

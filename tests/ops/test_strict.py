"""rewrite_numerics="strict": the bits of the graph's own nodes, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.kernels import register_lowerings
from rocm_passes.ops.operator import COMPUTATIONS, may_give_other_bits
from tests.rewriting import rewrite

BF16, F32 = torch.bfloat16, torch.float32
D = 16


def test_few_lowerings_promise_the_graph_s_bits() -> None:
    """A lowering that says nothing is refused. Those below have tests or fuzzing behind them."""
    register_lowerings()
    promising = {
        f"{name}.{low.name}"
        for name, computation in COMPUTATIONS.items()
        for low in computation.lowerings
        if low.other_bits is not may_give_other_bits and not name.startswith("test_")
    }
    assert promising == {
        "fused_norm.reference",
        "layer_norm.reference",
        "pad.drop",
        "pad.reference",
        "pad.triton",
        "rms_norm.reference",
        "rotary.reference",
        "rotary.real",
        "rotary_pair.reference",
    }


def draw(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rotated(x: Tensor, z: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(z)).flatten(-2)


ROWS, WEIGHT, IMAGE, VIDEO = draw(2, 5, D), draw(D, seed=1), draw(2, 4, 6, 6), draw(1, 4, 3, 5, 5)
KERNEL = draw(4, 4, 3, 3, 3, seed=2) / 10
#: What strict numerics refuse, with what the reason says.
REFUSED: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], str]] = {
    "conv3d": (
        lambda x, w: F.conv3d(F.pad(x, (0, 0, 0, 0, 2, 0)), w, padding=(0, 1, 1)),
        (VIDEO, KERNEL),
        "may sum in another order",
    ),
    "chain of a LayerNorm with a weight": (
        lambda x, w: F.layer_norm(x + x.flip(0), (D,), w, w) * (1 + w) + w,
        (ROWS, WEIGHT),
        "weight and bias may be rounded apart",
    ),
    "LayerNorm in 16 bits": (
        lambda x: F.layer_norm(x, (D,)),
        (ROWS.to(BF16),),
        "ATen may not widen it",
    ),
    "F.normalize": (lambda x: F.normalize(x, dim=1) * 2, (IMAGE,), "may sum in another order"),
    "GroupNorm": (lambda x: F.silu(F.group_norm(x, 2)), (IMAGE,), "may sum in another order"),
    "GroupNorm with a multiplier": (
        lambda x, y: F.group_norm(x, 2) * y + y,
        (IMAGE, draw(2, 4, 6, 6, seed=3)),
        "may sum in another order",
    ),
    "GroupNorm and pad": (
        lambda x: F.pad(F.silu(F.group_norm(x, 2)), (1, 1, 1, 1)),
        (IMAGE,),
        "may sum in another order",
    ),
    "1x1 convolution behind upsampling": (
        lambda x, w: F.conv3d(F.interpolate(x, scale_factor=2.0), w),
        (VIDEO, draw(3, 4, 1, 1, 1, seed=4)),
        "may sum in another order",
    ),
    "rotation by complex numbers": (
        rotated,
        (draw(2, 5, 3, 8), draw(5, 1, 4, 2, seed=5)),
        "complex numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_graph_s_bits_is_refused(name: str) -> None:
    fn, args, says = REFUSED[name]
    assert any(e.outcome == "rewritten" for e in rewrite(fn, *args).sites), "nothing to refuse"
    seen = rewrite(fn, *args, options={"rewrite_numerics": "strict"})
    said = [text for e in seen.sites for text in (e.reason, *e.considered)]
    assert any("rewrite_numerics='strict'" in text and says in text for text in said), said
    # What no idiom takes is decomposed as Inductor would.
    plain = rewrite(fn, *args, options={"select": "off"})
    assert torch.equal(seen.result, plain.result) or torch.equal(seen.result, fn(*args))


TAKEN: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "pad": (
        lambda x, w: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), w),
        (IMAGE, draw(4, 4, 3, 3, seed=3)),
    ),
    "LayerNorm": (lambda x, w: F.layer_norm(x, (D,), w, w), (ROWS, WEIGHT)),
    "RMSNorm": (lambda x, w: F.rms_norm(x, (D,), w, 1e-5), (ROWS, WEIGHT)),
    "chain": (lambda x, w: F.layer_norm(x + x.flip(0), (D,)) * (1 + w) + w, (ROWS, WEIGHT)),
    "chain of an RMSNorm": (lambda x, w: F.rms_norm(x, (D,), w, 1e-5) * (1 + w), (ROWS, WEIGHT)),
    "rotation": (
        lambda x, c, s: x * c + torch.cat([-x[..., 4:], x[..., :4]], -1) * s,
        (draw(2, 5, 3, 8), draw(5, 1, 8, seed=1), draw(5, 1, 8, seed=2)),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_gives_the_graph_s_bits(name: str) -> None:
    fn, args = TAKEN[name]
    seen = rewrite(fn, *args, options={"rewrite_numerics": "strict"})
    assert [e for e in seen.sites if e.outcome == "rewritten"], [str(e) for e in seen.sites]
    assert torch.equal(seen.result, fn(*args))


def test_results_lie_as_the_graph_s_own() -> None:
    """What reads them may sum in an order that their strides decide."""
    x = draw(2, 6, D).transpose(1, 2).contiguous().transpose(1, 2)
    fn = lambda x: F.layer_norm(x.relu(), (D,)).cos()  # noqa: E731
    for options in ({}, {"rewrite_numerics": "strict"}):
        seen = rewrite(fn, x, options=options)
        assert any(e.outcome == "rewritten" for e in seen.sites)
    (cos,) = [n for g in seen.after for n in g.nodes if n.target is torch.ops.aten.cos.default]
    (plain,) = [n for g in seen.before for n in g.nodes if n.target is torch.ops.aten.cos.default]
    assert cos.meta["val"].stride() == plain.meta["val"].stride()


def test_convolutions_keep_their_layout() -> None:
    """Rules for a layout do not apply, and asking for one contradicts strict numerics."""
    from rocm_passes.options import Options
    from rocm_passes.policy import layout
    from tests.fuzz.traced import target_named

    graph = torch.fx.Graph()
    strict = Options(rewrite_numerics="strict", layout="channels_last")
    assert not layout.channels_last(graph, strict, target_named("sm_90"))
    assert layout.channels_last(graph, Options(layout="channels_last"), target_named("sm_90"))

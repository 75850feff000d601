"""The zoo builds, runs, is reproducible, and counts what the architectures say."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from tests.zoo import DEMO, case, cases, count_idioms, in_float64
from tests.zoo.fast import chosen
from tests.zoo.traced import built, exact, live, results, traced

DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", chosen(c.name for c in cases()))
def test_output_is_finite_varied_and_reproducible(name: str) -> None:
    zoo_case = case(name)
    first, second = results(zoo_case.name), zoo_case.run(zoo_case.build())
    assert first
    for one, other in zip(first, second, strict=True):
        assert one.isfinite().all()
        assert one.float().std() > 1e-3
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", chosen(c.name for c in cases() if c.expected))
def test_counts_are_what_the_architecture_says(name: str) -> None:
    zoo_case = case(name)
    assert zoo_case.expected is not None
    assert dict(zoo_case.count(built(zoo_case.name))) == dict(zoo_case.expected)


@pytest.mark.parametrize("name", DEMO)
def test_live_counts_are_those_of_the_traced_graph_and_it_is_one_graph(name: str) -> None:
    """AOTAutograd without decompositions: one node for each LayerNorm, GroupNorm and Conv3d that is
    used.
    """
    found: Counter[str] = Counter()

    def count_nodes(
        graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]
    ) -> Callable[..., Any]:
        for node in graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.convolution.default
        ):
            found["conv3d"] += node.meta["val"].ndim == 5
        for target, idiom in (
            (torch.ops.aten.native_layer_norm.default, "layer_norm"),
            (torch.ops.aten.native_group_norm.default, "group_norm"),
        ):
            found[idiom] += len(graph.graph.find_nodes(op="call_function", target=target))
        return graph.forward

    (_,) = traced(name).compiled(aot_autograd(fw_compiler=count_nodes))
    expected = live(name)
    assert +found == Counter({idiom: expected[idiom] for idiom in found if expected[idiom]})


@pytest.mark.parametrize("name", DEMO)
def test_the_float64_reference_is_near_float32_and_nearer_than_bfloat16(name: str) -> None:
    error = {}
    for dtype in DTYPES:
        (true,), (output,) = exact(name, dtype), results(name, dtype)
        assert true.dtype == torch.float64
        error[dtype] = float((output.double() - true).norm() / true.norm())
    # Measured: 1e-6 to 1e-5 and 5e-3 to 5e-2.
    assert 0 < error[torch.float32] < 1e-4
    assert error[torch.float32] < error[torch.bfloat16] < 0.1


def test_the_reference_restores_the_default_dtype_when_the_model_raises() -> None:
    with pytest.raises(TypeError):
        in_float64(nn.Linear(2, 2), (), {})
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_five_run_in_both_dtypes_with_hand_derived_counts(
    name: str, dtype: torch.dtype
) -> None:
    assert case(name).expected is not None
    (output,) = results(name, dtype)
    assert output.dtype == dtype
    assert output.isfinite().all()


def test_weights_differ_between_seeds() -> None:
    wan = case("wan")
    first, second = (next(wan.build(seed=seed).parameters()) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_inputs_differ_between_seeds() -> None:
    wan = case("wan")
    model = wan.build()
    first, second = (wan.inputs(model, seed)[1]["hidden_states"] for seed in (1, 2))
    assert not torch.equal(first, second)


def test_build_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    case("flux").build()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", DEMO)
def test_no_parameter_is_constant(name: str) -> None:
    for key, parameter in built(name).named_parameters():
        assert parameter.numel() == 1 or len(parameter.unique()) > 1, key


def test_wan_keeps_its_norms_and_tables_in_float32() -> None:
    model = case("wan").build(torch.bfloat16)
    kept = {key for key, p in model.named_parameters() if p.dtype == torch.float32}
    assert {"scale_shift_table", "blocks.0.norm2.weight", "blocks.0.scale_shift_table"} <= kept
    assert model.rope.freqs_cos.dtype == torch.float32
    assert model.blocks[0].attn1.norm_q.weight.dtype == torch.bfloat16


def test_wan_decodes_three_latent_frames() -> None:
    vae = case("vae_wan")
    model = vae.build()
    _, kwargs = vae.inputs(model)
    assert kwargs["z"].shape[2] == 3
    (video,) = vae.run(model)
    assert video.shape == (1, 3, 1 + 2 * 4, 4 * 8, 5 * 8)


def test_case_names_are_unique() -> None:
    names = [c.name for c in cases()]
    assert len(names) == len(set(names))
    assert tuple(names[: len(DEMO)]) == DEMO


def test_an_unknown_case_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(KeyError, match="no zoo case 'wam'; there are wan, "):
        case("wam")


class _Functional(nn.Module):
    """Every counted functional once, and modules that end in one."""

    def __init__(self) -> None:
        super().__init__()
        self.rms = nn.RMSNorm(4)
        self.layer = nn.LayerNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.conv = nn.Conv3d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.rms(x))
        x = F.layer_norm(F.rms_norm(x, (4,)), (4,))
        x = torch.layer_norm(torch.rms_norm(x, (4,)), (4,))
        x = self.conv(self.group(x))
        x = F.group_norm(F.conv3d(x, self.conv.weight), 2)
        x = F.normalize(x, dim=1)
        return F.normalize(x, dim=-1)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return self.rms(x)


def test_functional_calls_and_modules_count_once() -> None:
    counts = count_idioms(_Functional(), (torch.randn(1, 4, 2, 3, 4),), {})
    assert counts == {
        "rms_norm": 3,
        "layer_norm": 3,
        "group_norm": 2,
        "conv3d": 2,
        "channel_norm": 1,
    }


def test_only_the_named_entry_is_counted() -> None:
    assert count_idioms(_Functional(), (torch.randn(2, 4),), {}, entry="decode") == {"rms_norm": 1}


def test_a_hand_written_norm_that_calls_the_functional_counts_once() -> None:
    class OwnRMSNorm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.rms_norm(x, (4,)) + F.layer_norm(x, (4,))

    model = nn.Sequential(OwnRMSNorm(), OwnRMSNorm())
    assert count_idioms(model, (torch.randn(2, 4),), {}) == {"rms_norm": 2}


def test_hooks_and_profiler_are_removed_when_the_model_raises() -> None:
    class BrokenRMSNorm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("broken")

    module = BrokenRMSNorm()
    before = sys.getprofile()
    with pytest.raises(ValueError, match="broken"):
        count_idioms(module, (torch.randn(2),), {})
    assert sys.getprofile() is before
    assert not module._forward_pre_hooks
    assert not module._forward_hooks

"""Operators kept whole, and decomposed again where nothing claimed them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._inductor import config as inductor_config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code

from rocm_passes.backend import rocm_diffusion
from rocm_passes.fx import decompositions as keep
from rocm_passes.registry import IDIOMS
from rocm_passes.rewrite.match import Idiom
from tests.generated_code import difference, only_written
from tests.rewriting import rewrite
from tests.without_codegen import without_codegen

aten = torch.ops.aten
KEPT = ("native_layer_norm", "native_group_norm", "silu", "gelu")


class Norms(nn.Module):
    """Every kept operator, in a form that no idiom here claims."""

    def __init__(self) -> None:
        super().__init__()
        self.group = nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.layer(nn.functional.silu(self.group(x))), approximate="tanh")


PADS = ("replication_pad3d", "reflection_pad3d")


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline of one idiom that finds nothing and keeps everything."""
    nothing = Idiom("nothing", lambda graph, context: iter(()), (), preserves=KEPT)
    monkeypatch.setattr("rocm_passes.graph_pass.IDIOMS", (nothing,))


def test_table_pickles_as_its_recipe() -> None:
    table = keep.table_preserving(KEPT)
    again = pickle.loads(pickle.dumps(table))
    assert again.preserved == tuple(sorted(KEPT))
    assert set(again) == set(table)
    left_out = set(select_decomp_table()) - set(table)
    assert {str(op.overloadpacket).split(".")[-1] for op in left_out} == set(KEPT)


def test_table_follows_the_options_of_the_compile() -> None:
    """Inductor leaves random operators to ATen under fallback_random, so that the numbers are
    eager's.
    """
    table = keep.table_preserving(KEPT)
    with inductor_config.patch(fallback_random=True):
        fallback = keep.table_preserving(KEPT)
        assert set(pickle.loads(pickle.dumps(fallback))) == set(fallback)
    assert set(table) != set(fallback)
    assert pickle.dumps(table) != pickle.dumps(fallback), (
        "one would be taken from the cache for the other"
    )
    with pytest.raises(pickle.UnpicklingError, match="other options"):
        pickle.loads(pickle.dumps(fallback))


@pytest.mark.parametrize(
    ("mode", "select"),
    [
        ("replicate", "off"),
        pytest.param("replicate", "always", marks=pytest.mark.exhaustive),
        pytest.param("reflect", "always", marks=pytest.mark.exhaustive),
    ],
)
def test_a_pad_of_a_channels_last_video_lies_as_inductors_on_a_cpu(mode: str, select: str) -> None:
    """With generated code: Inductor gives a user the strides that the traced graph promises. Those
    are eager's where torch decomposes the pad, as 2.13 does and 2.11 does not.
    """
    x = torch.randn(2, 4, 5, 5, 5).contiguous(memory_format=torch.channels_last_3d)

    def f(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (1, 1, 1, 1, 1, 1), mode=mode)

    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(f, backend="rocm_diffusion", options={"select": select})(x)
        torch._dynamo.reset()
        plain = torch.compile(f, backend="inductor")(x)
    assert torch.equal(got, f(x))
    assert got.stride() == plain.stride()


def test_only_a_pad_of_a_channels_last_video_is_not_kept_on_a_cpu() -> None:
    op = torch.ops.aten.replication_pad3d.default
    assert op not in keep.table_preserving(PADS)
    table = keep.table_preserving(PADS, on_cpu=True)
    assert set(pickle.loads(pickle.dumps(table))) == set(table)
    x = torch.randn(1, 2, 3, 4, 4)
    assert table[op](x, [1] * 6) is NotImplemented
    video = x.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(table[op](video, [1] * 6), op(x, [1] * 6))


def random(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return nn.functional.dropout(x * 2, 0.5, training=True), torch.rand(4), torch.randn(3)


@pytest.mark.parametrize("among_options", [True, False])
@pytest.mark.parametrize("select", ["auto", "always", "off"])
def test_random_numbers_are_eagers_under_fallback_random(select: str, among_options: bool) -> None:
    x = torch.randn(3, 16)
    torch.manual_seed(7)
    expected = random(x)
    options: dict[str, Any] = {"select": select}
    options |= {"fallback_random": True} if among_options else {}
    with (
        without_codegen(),
        inductor_config.patch({} if among_options else {"fallback_random": True}),
    ):
        torch.manual_seed(7)
        seen = rewrite(random, x, options=options)
    for ours, theirs in zip(seen.result, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_names_in_use_are_aten_operators() -> None:
    for idiom in IDIOMS:
        for name in idiom.preserves:
            assert any(
                op.overloadpacket is getattr(aten, name)
                for op in select_decomp_table()
                if hasattr(op, "overloadpacket")
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [None, True])
def test_leftovers_are_seen_whole_and_then_decomposed(
    keeping: None, dtype: torch.dtype, dynamic: bool | None
) -> None:
    torch.manual_seed(0)
    model = Norms().to(dtype)
    x = torch.randn(3, 4, 5, 6).to(dtype)
    seen = rewrite(model, x, dynamic=dynamic)
    whole = {
        aten.native_layer_norm.default,
        aten.native_group_norm.default,
        aten.silu.default,
        aten.gelu.default,
    }
    assert whole <= set(seen.targets("before"))
    assert not whole & set(seen.targets("after"))
    # One bf16 unit: Inductor keeps fp32 between fused operators where eager rounds.
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(seen.result, model(x), rtol=tolerance, atol=tolerance)


def test_training_decomposes_before_the_partitioner(keeping: None) -> None:
    torch.manual_seed(0)
    model = Norms()
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    seen = rewrite(model, x, grad=True)
    assert aten.native_group_norm.default not in seen.targets("before")
    seen.result.sum().backward()
    ours = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    model(x).sum().backward()
    for got, expected in zip(ours, [x.grad, *(p.grad for p in model.parameters())], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.codegen
def test_code_is_plain_inductors_in_forward_and_backward(keeping: None) -> None:
    torch.manual_seed(0)
    model = Norms()
    x = torch.randn(3, 4, 5, 6)

    def forward_code(**how: object) -> list[str]:
        torch._dynamo.reset()
        with only_written(), torch.no_grad():
            return run_and_get_code(torch.compile(model, **how), x)[1]

    def training_code(**how: object) -> list[str]:
        torch._dynamo.reset()
        with only_written():
            compiled = torch.compile(model, **how)
            return run_fw_bw_and_get_code(lambda: compiled(x.clone().requires_grad_()))[1]

    # Not by its name, which is an entry point: a checkout that is not installed has none.
    assert not difference(forward_code(backend=rocm_diffusion), forward_code())
    assert not difference(training_code(backend=rocm_diffusion), training_code())


def test_a_decomposed_norm_behind_what_lies_otherwise_by_now() -> None:
    """Inductor computes the norm's nodes again on the layout that a rewrite in front of it has
    given: a view of that need not exist. With dynamic sizes the norm is not taken, and decomposed.
    """

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(nn.functional.conv3d(x, w), 2) + 1

    x, w = torch.randn(2, 4, 3, 4, 5), torch.randn(4, 4, 1, 1, 1)
    options = {"layout": "channels_last", "idioms": ("conv3d",)}
    seen = rewrite(f, x, w, options=options)
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    assert aten.view.default not in seen.targets()
    torch.testing.assert_close(seen.result, f(x, w))


def test_the_function_that_gives_the_table_pickles() -> None:
    """torch 2.12 puts it into the cache's key, and its own is local to compile_fx."""
    table = keep.table_preserving(("silu",))
    seen: dict[str, Any] = {}
    inner = keep.with_picklable_table(table, lambda gm, inputs, **how: seen.update(how))
    inner(fx.GraphModule(torch.nn.Module(), fx.Graph()), [], get_decomp_fn=dict, aot_mode=False)
    given = pickle.loads(pickle.dumps(seen["get_decomp_fn"]))
    assert given().preserved == ("silu",) and given().digest == table.digest
    assert seen["aot_mode"] is False


def test_only_one_torch_needs_it() -> None:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert keep.key_cannot_be_made() == (release == (2, 12))

"""`rocm_passes.explain` on every way in which something can have been compiled already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rocm_passes
from rocm_passes import Entry, history
from rocm_passes.fx.provenance import short
from tests.without_codegen import codegen_if_asked

BACKEND = "rocm_diffusion"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Model(nn.Module):
    """Library calls only: Inductor has nothing to compile, and the tests are quick."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.conv_out = nn.Conv3d(2, 1, 3)
        self.breaks = breaks

    def forward(self, x: Tensor, hidden: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        for block in self.blocks:
            x = block(x)
        if self.breaks:
            torch._dynamo.graph_break()
        return self.conv_out(x), {"hidden": x} if hidden else {}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def found_in(sites: tuple[Entry, ...]) -> set[str]:
    return {e.module for e in sites if "conv3d" in e.covers}


EVERY_CONV = {"blocks.0.conv", "blocks.1.conv", "blocks.2.conv", "conv_out"}


def test_a_module(x: Tensor) -> None:
    model = Model()
    explanation = rocm_passes.explain(model, x, hidden=True)
    assert found_in(explanation.sites) == EVERY_CONV
    assert len(explanation.ledgers) == 1
    assert explanation.graph_breaks == 0
    # The result is what the model gives, in the structure in which it gives it.
    want, got = model(x, hidden=True), explanation.result
    torch.testing.assert_close(got, want)
    assert type(got) is tuple and set(got[1]) == {"hidden"}


def test_a_function_and_a_method(x: Tensor) -> None:
    model = Model()
    for call in (lambda x: model(x)[0], model.forward):
        assert len(found_in(rocm_passes.explain(call, x).sites)) == 4


def test_sites_name_the_users_line(x: Tensor) -> None:
    weight = torch.randn(2, 2, 1, 1, 1)
    site = rocm_passes.explain(lambda x: nn.functional.conv3d(x, weight), x).sites[0]
    file, line = site.location.rsplit(":", 1)
    assert file == short(__file__)
    assert (
        "nn.functional.conv3d(x, weight)" in Path(__file__).read_text().splitlines()[int(line) - 1]
    )


@pytest.mark.parametrize("backend", ["inductor", BACKEND])
def test_what_torch_compile_returned(x: Tensor, backend: str) -> None:
    model = Model()
    compiled = torch.compile(model, backend=backend)
    compiled(x)
    assert found_in(rocm_passes.explain(compiled, x).sites) == EVERY_CONV


def test_a_compiled_function(x: Tensor) -> None:
    model = Model()
    compiled = torch.compile(lambda x: model(x)[0], backend=BACKEND)
    assert len(found_in(rocm_passes.explain(compiled, x).sites)) == 4


def test_a_module_that_compiled_itself(x: Tensor) -> None:
    model = Model()
    model.compile(backend=BACKEND)
    theirs = model._compiled_call_impl
    assert found_in(rocm_passes.explain(model, x).sites) == EVERY_CONV
    assert model._compiled_call_impl is theirs


def test_a_model_compiled_in_parts_is_explained_in_those_parts(x: Tensor) -> None:
    model = Model()
    for block in model.blocks:
        block.compile(backend=BACKEND)
    theirs = [block._compiled_call_impl for block in model.blocks]
    explanation = rocm_passes.explain(model, x)
    # The blocks are alike, so Dynamo compiles one graph for all; what lies outside them runs
    # eagerly.
    assert len(explanation.ledgers) == 1
    assert [e.module for e in explanation.sites] == ["conv"]
    assert [block._compiled_call_impl for block in model.blocks] == theirs
    torch.testing.assert_close(explanation.result, model(x))


def test_blocks_that_torch_compile_replaced(x: Tensor) -> None:
    model = Model()
    model.blocks = nn.ModuleList(torch.compile(block, backend=BACKEND) for block in model.blocks)
    theirs = [block.forward for block in model.blocks]
    explanation = rocm_passes.explain(model, x)
    assert [e.module for e in explanation.sites] == ["conv"]
    assert [block.forward for block in model.blocks] == theirs
    assert "forward" not in dict(model.blocks[0].named_modules())
    torch.testing.assert_close(explanation.result, model(x))


def test_parts_are_restored_when_the_model_raises(x: Tensor) -> None:
    model = Model()
    model.blocks[0].compile(backend=BACKEND)
    theirs = model.blocks[0]._compiled_call_impl
    with pytest.raises(TypeError):
        rocm_passes.explain(model, x, x, x)
    assert model.blocks[0]._compiled_call_impl is theirs


def test_diffusers_compile_repeated_blocks(x: Tensor) -> None:
    from diffusers import ModelMixin

    model = Model()
    model._repeated_blocks = ["Block"]  # type: ignore[assignment]
    ModelMixin.compile_repeated_blocks(model, backend=BACKEND)
    explanation = rocm_passes.explain(model, x)
    assert [e.module for e in explanation.sites] == ["conv"]
    torch.testing.assert_close(explanation.result, model(x))


def test_graph_breaks_are_counted_with_their_reasons(x: Tensor) -> None:
    explanation = rocm_passes.explain(Model(breaks=True), x)
    assert explanation.graph_breaks == 1
    (reason,) = explanation.break_reasons
    assert "graph_break" in reason
    said = str(explanation)
    assert all(line.strip() in said for line in reason.splitlines()), "no part of it is cut off"
    assert len(explanation.ledgers) == 2
    assert found_in(explanation.sites) == EVERY_CONV
    assert explanation.to_dict()["graph_breaks"] == 1
    assert "2 graphs, 1 graph break\n  break: " in str(explanation)
    assert rocm_passes.explain(Model(), x).graph_breaks == 0


def test_a_warm_cache_hides_nothing(x: Tensor) -> None:
    model = Model()
    torch.compile(model, backend=BACKEND)(x)
    first = history()
    torch._dynamo.reset()
    torch.compile(model, backend=BACKEND)(x)
    second = history()[len(first) :]
    assert [ledger.from_cache for ledger in second] == [True] * len(first), (
        "it should come from the cache"
    )
    assert [str(e) for g in second for e in g.entries] == [str(e) for g in first for e in g.entries]
    assert found_in(rocm_passes.explain(model, x).sites) == EVERY_CONV


def test_options_are_the_backends(x: Tensor) -> None:
    model = Model()
    assert {e.outcome for e in rocm_passes.explain(model, x, options={"select": "off"}).sites} == {
        "kept"
    }
    assert not rocm_passes.explain(model, x, options={"idioms": "none"}).sites
    with codegen_if_asked():
        forced = rocm_passes.explain(model, x, options={"lowering": {"conv3d": "unfold"}})
    assert {e.lowering for e in forced.sites} == {"unfold"}
    torch.testing.assert_close(forced.result, model(x))


def test_a_wrong_option_is_refused(x: Tensor) -> None:
    with pytest.raises(Exception, match="did you mean 'select'"):
        rocm_passes.explain(Model(), x, options={"selekt": "off"})


def test_what_was_compiled_before_still_works_afterwards(x: Tensor) -> None:
    model = Model()
    compiled = torch.compile(model, backend=BACKEND)
    before = compiled(x)
    rocm_passes.explain(model, x)
    torch.testing.assert_close(compiled(x), before)


def test_the_document_is_the_documented_one(x: Tensor) -> None:
    found = rocm_passes.explain(Model(), x).to_dict()
    assert found["environment"].keys() >= {
        "python",
        "torch",
        "hip",
        "cuda",
        "diffusers",
        "transformers",
    }
    assert set(found) == {
        "format",
        "environment",
        "graphs",
        "sites",
        "changes",
        "drawings",
        "graph_breaks",
        "break_reasons",
    }
    assert set(found["sites"][0]) == {
        *("graph", "idiom", "covers", "outcome", "lowering", "reason", "location", "module"),
        *(
            "parameters",
            "inputs",
            "considered",
            "notes",
            "verdicts",
            "error",
            "verification",
            "number",
            "component",
            "bytes",
            "drawing",
        ),
    }
    bias = found["sites"][0]["inputs"][-1]
    assert (bias["shape"], bias["stride"], bias["dtype"]) == ([2], [1], "float32")

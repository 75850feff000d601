"""Where a site comes from: the module's path in the user's model, and a file that means something
elsewhere.
"""

from __future__ import annotations

import functools
import site
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from rocm_passes.backend import rocm_diffusion
from rocm_passes.fx import provenance
from rocm_passes.report.ledger import Ledger
from tests.without_codegen import without_codegen
from tests.zoo import case


def node(**meta: Any) -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta.update(meta)
    return made


def in_module(path: str) -> fx.Node:
    return node(nn_module_stack={"outer": ("L['self']", nn.Module), "inner": (path, nn.Module)})


@pytest.mark.parametrize(
    ("dynamos", "path"),
    [
        ("L['self'].blocks.0.attn1", "blocks.0.attn1"),
        ("L['self']", ""),
        ("", ""),
        # torch 2.11 and 2.12
        ("L['self']._modules['blocks']._modules['0']._modules['attn1']", "blocks.0.attn1"),
        ("L['self'].__dict__['_modules']['blocks']['0'].attn1", "blocks.0.attn1"),
        ("L['self'].blocks[0].attn1", "blocks.0.attn1"),
        # compiled within the compiled
        ("L['self'].blocks.0._orig_mod.attn1", "blocks.0.attn1"),
        ("L['self']._orig_mod.blocks.0", "blocks.0"),
        ("L['fn'].__self__.blocks.0", "blocks.0"),
        # functions over models
        ("G['model'].blocks.0", "blocks.0"),
        ("L['pipe'].unet.blocks.0", "unet.blocks.0"),
        ("G['models']['unet'].blocks.0", "unet.blocks.0"),
        ("L['models'][1].blocks.0", "1.blocks.0"),
        # modules whose names are also Python's or Dynamo's
        ("L['self'].L.self.G", "L.self.G"),
        ("L['self']._modules['self']", "self"),
        ("L['self'].proj.parametrizations.weight.0", "proj.parametrizations.weight.0"),
    ],
)
def test_the_models_own_path(dynamos: str, path: str) -> None:
    assert provenance.module(in_module(dynamos)) == path


def test_where_the_graph_does_not_say() -> None:
    assert provenance.module(node()) == provenance.location(node()) == ""


def at(file: str) -> str:
    trace = f'  File "{file}", line 12, in forward\n    x = 1\n'
    inside = f'  File "{torch.__file__}", line 7, in linear\n    y = 2\n'
    return provenance.location(node(stack_trace=trace + inside))


def test_an_installed_file_is_relative_to_its_packages_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root, *_) = site.getsitepackages()
    assert at(f"{root}/diffusers/models/attention.py") == "diffusers/models/attention.py:12"
    assert at("/usr/lib/python3/dist-packages/other/model.py") == "other/model.py:12"
    # An environment in the working directory.
    monkeypatch.chdir(tmp_path)
    assert at(f"{tmp_path}/.venv/lib/site-packages/a/b.py") == "a/b.py:12"


def test_another_file_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert at(f"{tmp_path}/models/mine.py") == "models/mine.py:12"
    assert at("/elsewhere/mine.py") == "/elsewhere/mine.py:12"
    assert at("<string>") == "<string>:12"


def test_without_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert at("/elsewhere/mine.py") == "/elsewhere/mine.py:12"


def test_what_torch_copies_is_carried_as_a_copy() -> None:
    marks = {
        "recompute": 1,
        "ac_graph_id": 2,
        "partitioner_tag": "is_forward",
        "custom": {"stream": 1},
    }
    own = node(
        **marks,
        val=torch.ones(1),
        tensor_meta=None,
        eager_input_vals=((), {}),
        unbacked_bindings={},
    )
    found = provenance.copied(own)
    assert found == marks
    assert found["custom"] is not own.meta["custom"]


# Real models, in every way of compiling them


@contextmanager
def ledgers() -> Iterator[tuple[Any, list[Ledger]]]:
    found: list[Ledger] = []
    backend = functools.partial(
        rocm_diffusion, options={"select": "off"}, listener=found.append, caches=False
    )
    with without_codegen():
        yield backend, found


def whole(model: nn.Module, backend: Any) -> Callable[..., Any]:
    return torch.compile(model, backend=backend)


def in_place(model: nn.Module, backend: Any) -> Callable[..., Any]:
    model.compile(backend=backend)
    return model


def forward_only(model: nn.Module, backend: Any) -> Callable[..., Any]:
    return torch.compile(model.forward, backend=backend)


def closure(model: nn.Module, backend: Any) -> Callable[..., Any]:
    return torch.compile(lambda *args, **kwargs: model(*args, **kwargs), backend=backend)


def compiled_block_in_a_compiled_model(model: nn.Module, backend: Any) -> Callable[..., Any]:
    blocks = next(m for m in model.children() if isinstance(m, nn.ModuleList))
    blocks[0] = torch.compile(blocks[0], backend=backend)
    return torch.compile(model, backend=backend)


def repeated_blocks(model: nn.Module, backend: Any) -> Callable[..., Any]:
    model.compile_repeated_blocks(backend=backend, fullgraph=True)  # type: ignore[operator]
    return model


WAYS = (whole, in_place, forward_only, closure, compiled_block_in_a_compiled_model, repeated_blocks)


#: How Dynamo names modules in the other ways, test_the_models_own_path has as text.
FAST_WAYS = (whole, compiled_block_in_a_compiled_model)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(
            pytest.param("flux", way, marks=() if way in FAST_WAYS else pytest.mark.exhaustive)
            for way in WAYS
        ),
        pytest.param("wan", whole, marks=pytest.mark.exhaustive),
    ],
)
def test_sites_of_diffusers_models_name_their_modules(name: str, way: Callable[..., Any]) -> None:
    zoo = case(name)
    model = zoo.build(torch.float32)
    args, kwargs = zoo.inputs(model)
    paths = {path.replace("_orig_mod.", "") for path, _ in model.named_modules()}
    if way is repeated_blocks:
        # Dynamo compiles a block and knows of no model around it.
        names = model._repeated_blocks
        blocks = [m for m in model.modules() if type(m).__name__ in names]  # type: ignore[operator]
        paths = {path for block in blocks for path, _ in block.named_modules()}
    with ledgers() as (backend, found), torch.no_grad():
        way(model, backend)(*args, **kwargs)
    entries = [e for ledger in found for e in ledger.entries]
    assert entries
    assert {e.module for e in entries} <= paths
    assert {e.module for e in entries if e.idiom == "rms_norm"} - {""}
    assert all(e.location.startswith(("diffusers/models/", "tests/")) for e in entries)

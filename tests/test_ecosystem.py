"""accelerate, ComfyUI and servers: how each is given this backend."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from examples.serving import default_backend
from rocm_passes import history
from rocm_passes.report import ledger
from tests.without_codegen import without_codegen
from tests.zoo import case

X = torch.randn(2, 16)


class Block(nn.Module):
    """Of its own class: Dynamo skips the code of torch.nn when a module compiles itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    ledger.clear_history()
    with torch.no_grad(), without_codegen():
        yield


def sites() -> list[str]:
    return [e.idiom for g in history() for e in g.entries]


# accelerate


def test_accelerate_refuses_the_name_and_takes_a_model_that_is_compiled_already() -> None:
    """docs/ecosystem.md says so. If the first half fails, accelerate takes other names now."""
    from accelerate import Accelerator
    from accelerate.utils import TorchDynamoPlugin

    with pytest.raises(ValueError, match="ROCM_DIFFUSION"):
        TorchDynamoPlugin(backend="rocm_diffusion")
    model = Block()
    model.compile(backend="rocm_diffusion")
    prepared = Accelerator(cpu=True).prepare_model(model, evaluation_mode=True)
    assert prepared(X).shape == X.shape and sites() == ["rms_norm"]


# ComfyUI: a double of what it gives to nodes, by its source (comfy/model_patcher.py, comfy/sd.py,
# comfy_api/torch_helpers/torch_compile.py).


class ModelPatcher:
    """What MODEL is: a model, and changes that a clone has for itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.object_patches: dict[str, Any] = {}
        self.wrappers: dict[str, Callable[..., Any]] = {}
        self.model_options: dict[str, Any] = {}

    def clone(self) -> ModelPatcher:
        made = ModelPatcher(self.model)
        made.object_patches = dict(self.object_patches)
        return made

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, self.model.get_submodule(name))

    def add_object_patch(self, name: str, value: Any) -> None:
        self.object_patches[name] = value

    def apply(self, x: torch.Tensor) -> Any:
        return self.wrappers.get("apply", self.get_model_object("diffusion_model"))(x)


class BaseModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = nn.RMSNorm(16)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The nodes as ComfyUI imports them: a package from its folder, under a name of its own."""
    folder_paths = types.ModuleType("folder_paths")
    folder_paths.get_output_directory = lambda: str(tmp_path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths)
    folder = Path(__file__).parent.parent / "examples" / "comfyui"
    spec = importlib.util.spec_from_file_location("custom_node", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_node", module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("custom_node.nodes", None)


def node(nodes: Any, name: str) -> Any:
    """An instance, once its class has what ComfyUI reads off it."""
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    assert name in nodes.NODE_DISPLAY_NAME_MAPPINGS
    assert callable(getattr(cls, cls.FUNCTION)) and isinstance(cls.RETURN_TYPES, tuple)
    for kind, *_ in cls.INPUT_TYPES()["required"].values():
        assert isinstance(kind, (str, list))
    return cls()


def test_a_model_is_compiled_by_an_object_patch_where_comfyui_has_no_helper(nodes: Any) -> None:
    model = ModelPatcher(BaseModel())
    (compiled,) = node(nodes, "RocmPassesCompileModel").compile(model, "auto", False)
    assert compiled is not model and not model.object_patches
    torch.testing.assert_close(compiled.apply(X), model.apply(X))
    assert sites() == ["rms_norm"]


def test_a_model_is_compiled_by_comfyuis_helper_where_there_is_one(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def set_torch_compile_wrapper(
        model: Any, backend: str, options: Any = None, mode: Any = None, fullgraph: bool = False,
        dynamic: bool | None = None, keys: Any = ("diffusion_model",),
    ) -> None:  # fmt: skip
        seen.update(backend=backend, options=dict(options), dynamic=dynamic)
        inner = model.get_model_object(keys[0])
        model.wrappers["apply"] = torch.compile(
            model=inner, backend=backend, options=options, mode=mode, fullgraph=fullgraph,
            dynamic=dynamic,
        )  # fmt: skip

    helpers = types.ModuleType("comfy_api.torch_helpers")
    helpers.set_torch_compile_wrapper = set_torch_compile_wrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.torch_helpers", helpers)
    model = ModelPatcher(BaseModel())
    (compiled,) = node(nodes, "RocmPassesCompileModel").compile(model, "off", True)
    torch.testing.assert_close(compiled.apply(X), model.apply(X))
    assert seen["backend"] == "rocm_diffusion" and seen["dynamic"] is True
    assert {e.outcome for g in history() for e in g.entries} == {"kept"}
    guards = [types.SimpleNamespace(name=n) for n in ("L['x']", "L['transformer_options']['a']")]
    assert seen["options"]["guard_filter_fn"](guards) == [True, False]


def test_a_vae_is_compiled_in_place_and_reported(nodes: Any) -> None:
    vae = types.SimpleNamespace(first_stage_model=case("vae_image").build(torch.float32))
    same, report = node(nodes, "RocmPassesCompileVAE").compile(vae, "off")
    assert same is vae and "decoder" in report and "compiled" in report


def test_the_ledger_is_shown_and_written_into_the_output_folder(nodes: Any, tmp_path: Path) -> None:
    torch.compile(nn.RMSNorm(16), backend="rocm_diffusion")(X)
    shown = node(nodes, "RocmPassesLedger").show(object(), "../../elsewhere.html")
    assert "rms_norm" in shown["result"][0] and shown["ui"]["text"] == [shown["result"][0]]
    assert "rms_norm" in (tmp_path / "elsewhere.html").read_text()
    cls = nodes.NODE_CLASS_MAPPINGS["RocmPassesLedger"]
    assert cls.IS_CHANGED() != cls.IS_CHANGED(), "it runs each time"


# Servers: doubles of the calls that sglang's denoising stage and vLLM-Omni's regionally_compile
# make.


def sglang(model: nn.Module) -> None:
    model.compile(mode="max-autotune-no-cudagraphs", fullgraph=False, dynamic=None)


def vllm_omni(model: nn.Module) -> None:
    model.compile(dynamic=True)


def by_torch_compile(model: nn.Module) -> None:
    model.forward = torch.compile(model.forward, dynamic=True)  # type: ignore[method-assign]


@pytest.mark.parametrize("server", [sglang, vllm_omni, by_torch_compile])
@pytest.mark.parametrize("options", [None, {"select": "off"}])
def test_servers_that_name_no_backend_use_this_one(
    server: Callable[[nn.Module], None], options: dict[str, str] | None
) -> None:
    theirs = torch.compile, nn.Module.compile
    model = Block()
    with default_backend(options):
        server(model)
    assert (torch.compile, nn.Module.compile) == theirs, "restored"
    torch.testing.assert_close(model(X), Block()(X))
    assert sites() == ["rms_norm"]


def test_a_backend_that_is_named_stays() -> None:
    model = Block()
    with default_backend():
        model.compile(backend="eager")
    model(X)
    assert sites() == []

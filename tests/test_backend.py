"""The backend as users call it: entry point, options, grad modes, dynamic shapes, caches,
threads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.utils import run_and_get_code

import rocm_passes
from rocm_passes.backend import rocm_diffusion
from rocm_passes.target import Target
from tests import forked
from tests.generated_code import difference, not_compiled, only_written
from tests.rewriting import rewrite
from tests.without_codegen import codegen_if_asked
from tests.zygote import WITHOUT_COMPILER

PACKAGE = Path(rocm_passes.__file__).parent


class Block(nn.Module):
    """A norm, a gate and a Conv3d: something for several idioms to find."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16, eps=1e-6)
        self.linear = nn.Linear(16, 16)
        self.conv = nn.Conv3d(2, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(self.norm(x)) + x, torch.nn.functional.silu(self.conv(video))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def inputs(batch: int = 2, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, tokens, 16, generator=generator),
        torch.randn(1, 2, 4, 6, 6, generator=generator),
    )


def assert_alike(ours: Any, expected: Any) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.stride() == other.stride()


@pytest.mark.codegen
@pytest.mark.each_value
@pytest.mark.parametrize("select", ["auto", "always", "off"])
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_same_results_as_eager(block: Block, select: str, dynamic: bool | None) -> None:
    compiled = torch.compile(
        block, backend="rocm_diffusion", options={"select": select}, dynamic=dynamic, fullgraph=True
    )
    with torch.no_grad():
        for tokens in (5, 7):
            assert_alike(compiled(*inputs(tokens=tokens)), block(*inputs(tokens=tokens)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(block: Block, mode: Callable[[], Any]) -> None:
    with mode():
        assert_alike(rewrite(block, *inputs()).result, block(*inputs()))


def test_training_gives_the_same_gradients(block: Block) -> None:
    """Of the graphs as they are: tests/fx/test_decompositions.py has a backward's code."""

    def gradients(model: Callable[..., Any]) -> list[torch.Tensor]:
        block.zero_grad()
        x, video = inputs()
        x.requires_grad_()
        y, z = model(x, video)
        (y.square().sum() + z.square().sum()).backward()
        grads = [p.grad for p in block.parameters()]
        assert all(g is not None for g in grads) and x.grad is not None
        return [x.grad, *(g.clone() for g in grads if g is not None)]

    compiled = torch.compile(
        block, backend="rocm_diffusion", options={"select": "always"}, fullgraph=True
    )
    with codegen_if_asked():
        found = gradients(compiled)
    for ours, expected in zip(found, gradients(block), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.codegen
def test_mode_among_the_options(block: Block) -> None:
    with torch.no_grad():
        compiled = torch.compile(
            block,
            backend="rocm_diffusion",
            options={"mode": "max-autotune-no-cudagraphs", "select": "off"},
        )
        assert_alike(compiled(*inputs()), block(*inputs()))


class Recorder(CustomGraphPass):
    def __init__(self) -> None:
        self.runs = 0

    def uuid(self) -> str:
        return "recorder"

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.runs += 1


def test_a_users_own_pass_still_runs(block: Block) -> None:
    """Whether it comes among the options or stands in Inductor's config."""
    among_options, in_config = Recorder(), Recorder()
    with torch.no_grad():
        seen = rewrite(block, *inputs(), options={"post_grad_custom_pre_pass": among_options})
        assert among_options.runs == 1 and seen.sites
        with torch._inductor.config.patch(post_grad_custom_pre_pass=in_config):
            seen = rewrite(block, *inputs())
        assert in_config.runs == 1 and seen.sites


def test_nothing_global_is_changed(block: Block) -> None:
    before = torch._inductor.config.get_config_copy()
    rewrite(block, *inputs())
    assert torch._inductor.config.get_config_copy() == before


@pytest.mark.codegen
def test_idioms_off_gives_plain_inductors_code(block: Block) -> None:
    assert not difference(_code(block, {"idioms": "none"}), _code(block, None))


@pytest.mark.codegen
def test_nothing_rewritten_gives_plain_inductors_code(block: Block) -> None:
    """What was kept whole for matching is decomposed again into what Inductor would have had."""
    assert not difference(_code(block, {"select": "off"}), _code(block, None))


def _code(block: Block, options: Mapping[str, Any] | None) -> list[str]:
    torch._dynamo.reset()
    how = {} if options is None else {"backend": "rocm_diffusion", "options": dict(options)}
    with only_written(), torch.no_grad():
        return run_and_get_code(torch.compile(block, **how), *inputs())[1]


@pytest.mark.codegen
def test_two_threads_compile_at_once(block: Block) -> None:
    """Code is written, and compiled by nobody: only the ledgers are looked at."""
    found: dict[str, list[Any]] = {}
    errors: list[BaseException] = []

    def work(select: str) -> None:
        try:
            ledgers: list[Any] = []
            compiled = torch.compile(
                Block(),
                backend=lambda gm, ins: rocm_diffusion(
                    gm, ins, options={"select": select}, listener=ledgers.append, caches=False
                ),
            )
            with torch.no_grad():
                compiled(*inputs())
            found[select] = [e.outcome for g in ledgers for e in g.entries]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in ("always", "off")]
    with not_compiled():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert set(found["always"]) == {"rewritten"}
    assert set(found["off"]) == {"kept"}


def test_target_of_a_cpu_graph() -> None:
    target = Target.of_inputs([torch.ones(1), 3, None])
    assert (target.vendor, target.label, target.is_gpu) == ("cpu", "cpu", False)


SCRIPT = """
import json, sys, torch
imported = "rocm_passes" in sys.modules
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.RMSNorm(8, eps=1e-6), torch.nn.Linear(8, 8)).eval()
with torch.no_grad():
    options = json.loads(sys.argv[1])
torch.compile(model, backend="rocm_diffusion", options=options)(torch.ones(2, 8))
from torch._dynamo.utils import counters
file = sys.modules["rocm_passes"].__file__
print(json.dumps({"imported": imported, "file": file, **counters["inductor"]}))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, so that a test can change it."""
    copied = tmp_path / "site" / "rocm_passes"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def run_script(
    package: Path, options: Mapping[str, Any] | None = None, also: Path | None = None
) -> dict[str, Any]:
    """Compile a small model in a process of its own, on the copied package, with a cache
    beside it.
    """
    root = package.parent
    done = forked.run(
        [sys.executable, "-c", SCRIPT, json.dumps(options or {})],
        env={
            **os.environ,
            WITHOUT_COMPILER: "1",
            "TORCHINDUCTOR_CACHE_DIR": str(root / "cache"),
            "PYTHONPATH": os.pathsep.join(str(p) for p in (root, also) if p),
        },
        cwd=root,
        bare=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not found["imported"] and Path(found["file"]).parent == package
    return found


def hit(counters: Mapping[str, Any]) -> bool:
    hits, misses = counters.get("fxgraph_cache_hit", 0), counters.get("fxgraph_cache_miss", 0)
    assert hits + misses >= 1, f"neither a hit nor a miss: {counters}"
    return bool(hits) and not misses


def test_entry_point_and_caches_across_processes(package: Path) -> None:
    """No import is needed; a second process hits; another option or source file misses."""
    assert not hit(run_script(package))
    assert hit(run_script(package))
    assert not hit(run_script(package, {"select": "off"}))
    with (package / "ops" / "rms_norm.py").open("a") as file:
        file.write("# changed\n")
    assert not hit(run_script(package))


def test_another_aiter_version_misses_the_cache(package: Path, tmp_path: Path) -> None:
    def with_aiter(version: str) -> Path:
        root = tmp_path / version
        info = root / f"amd_aiter-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: amd-aiter\nVersion: {version}\n"
        )
        ops = root / "aiter" / "ops"
        ops.mkdir(parents=True)
        for file in (root / "aiter" / "__init__.py", ops / "__init__.py", ops / "rmsnorm.py"):
            file.write_text("")
        return root

    first, second = with_aiter("0.1.19"), with_aiter("0.1.20")
    assert not hit(run_script(package, also=first))
    assert hit(run_script(package, also=first))
    assert not hit(run_script(package, also=second))

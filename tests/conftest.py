"""What every test relies on: no GPU needed, nothing left over from an earlier test or run."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fast, forked

#: Set by the process that starts the workers of pytest-xdist, which share its folders.
_WORKER = "PYTEST_XDIST_WORKER"


def _starts_workers() -> bool:
    """Whether this process runs no test itself (`-n 2`): torch takes it 3 s to import."""
    after = sys.argv[sys.argv.index("-n") + 1 :] if "-n" in sys.argv else []
    return _WORKER not in os.environ and after[:1] not in ([], ["0"])


def _interpret_kernels() -> None:
    """Without a GPU, on CPU tensors. Triton reads the variable when it is first imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


if not _starts_workers():
    _interpret_kernels()


def _use_folders_of_this_run() -> None:
    """Point every cache at one temporary folder, for this process and for those that tests start.

    Caches that earlier runs filled would keep the passes from running. Tests do not write a user's.
    """
    root = Path(tempfile.mkdtemp(prefix="rocm-passes-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folders = {
        "HOME": "home",
        "XDG_CACHE_HOME": "cache",
        "HF_HOME": "huggingface",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
    }
    for variable, name in folders.items():
        (root / name).mkdir()
        os.environ[variable] = str(root / name)
    os.environ |= {forked.FOLDER: str(root), forked.RUN: str(os.getpid())}


if _WORKER not in os.environ:
    _use_folders_of_this_run()

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in [n for n in os.environ if n.startswith("ROCM_PASSES_")]:
    del os.environ[_name]
# A rewrite that does not compile fails its test, in processes that tests start as well.
os.environ["ROCM_PASSES_ON_COMPILE_ERROR"] = "raise"

# A worker has one core: further threads would take the other workers'. NumPy's BLAS, which Triton's
# interpreter multiplies with, reads the variable as it is loaded: workers must be born with it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor would compile and load a program for each instruction set of the CPU, in each new cache.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# The processes that Inductor would compile in take longer to start than most tests to compile.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def nothing_left_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Compiled code, ledgers and measured choices of one test do not reach the next."""
    choices = tmp_path_factory.getbasetemp() / "cache-of-each-test" / str(next(_NUMBERS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(choices))
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    if "rocm_passes.report.ledger" in sys.modules:
        sys.modules["rocm_passes.report.ledger"].clear_history()
    if "rocm_passes.ops.operator" in sys.modules:
        # What was broken on purpose is not left out of later tests.
        for operator in sys.modules["rocm_passes.ops.operator"].OPERATORS:
            operator._failed.clear()
    if "torch._inductor.config" in sys.modules:
        # pytest's monkeypatch takes an entry that has an alias away for good: use config.patch.
        assert hasattr(sys.modules["torch._inductor.config"], "fx_graph_cache")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "compile every graph that a test rewrites, also where no test looks at the code"
    parser.addoption("--codegen", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("numprocesses", None):
        _prepare(config)


def _prepare(config: pytest.Config) -> None:
    """Of a process that runs tests."""
    import hypothesis
    import torch

    from tests import suites

    _interpret_kernels()
    if _WORKER in os.environ:
        torch.set_num_threads(1)
    suites.choose(config)
    # The fast suite draws the same examples in every run, so that only a change makes it fail.
    hypothesis.settings.register_profile("fast", derandomize=True, deadline=None)
    hypothesis.settings.register_profile("everything", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("everything" if suites.everything() else "fast")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is none, and mark what the fast suite leaves out.

    First, because pytest's own hook deselects by marker.
    """
    import torch

    from tests import suites

    suites.mark_exhaustive(items)
    suites.models_together(items)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


def pytest_collection_finish() -> None:
    """Of what the tests that were collected have imported."""
    fast.everywhere()

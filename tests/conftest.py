"""What every test stands on: no GPU needed, nothing left over from an earlier test or an earlier run."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch

# Triton reads this when it is first imported: without a GPU its kernels then run on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A cache that earlier runs had filled would keep the passes from running.
_CACHE = tempfile.mkdtemp(prefix="rocm-passes-test-cache-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in [n for n in os.environ if n.startswith("ROCM_PASSES_")]:
    del os.environ[_name]


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """Compiled code and ledgers of one test do not reach the next."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if "rocm_passes.report.ledger" in sys.modules:
        sys.modules["rocm_passes.report.ledger"].clear_history()
    if "torch._inductor.config" in sys.modules:
        # pytest's monkeypatch takes an entry that has an alias away for good: use config.patch.
        assert hasattr(sys.modules["torch._inductor.config"], "fx_graph_cache")


def pytest_configure(config: pytest.Config) -> None:
    """Without this a failure is shown below thousands of lines of torch's structured trace."""
    config.option.log_level = config.option.log_level or "WARNING"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))

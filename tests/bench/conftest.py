"""Workers of the benchmarks are forked, in all tests but those of the workers themselves."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from rocm_passes.bench import workers
from tests import forked


@pytest.fixture(autouse=True)
def workers_are_forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_bench_workers.py":
        names = ("PIPE", "TimeoutExpired")
        kept = {name: getattr(subprocess, name) for name in names}
        monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=forked.Popen, **kept))

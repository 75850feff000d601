"""A graph that does not compile with its rewrites is not measured without them."""

from __future__ import annotations

import importlib

import pytest

from rocm_passes.bench import failing


@pytest.mark.parametrize(
    "name",
    ["blocks", "conv3d", "distributed", "norm_sites", "norms", "pads", "pipelines", "quality",
     "vae"],
)  # fmt: skip
def test_a_benchmark_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it reads its arguments, and so before it starts a process."""
    monkeypatch.delenv("ROCM_PASSES_ON_COMPILE_ERROR")
    monkeypatch.setattr("sys.argv", [name, "--no-such-option"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"rocm_passes.bench.{name}").main()
    assert failing.os.environ["ROCM_PASSES_ON_COMPILE_ERROR"] == "raise"


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCM_PASSES_ON_COMPILE_ERROR", "fallback")
    failing.raise_on_compile_error()
    assert failing.os.environ["ROCM_PASSES_ON_COMPILE_ERROR"] == "fallback"

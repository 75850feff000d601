"""What the README promises a stranger."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from examples.demo_arguments import MODELS
from rocm_passes import Explanation, cli
from tests.zoo import case

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_code_runs() -> None:
    use, pipeline, explain = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"torch": torch, "model": nn.RMSNorm(16), "x": torch.randn(2, 16)}
    exec(use, names)
    compiled = names["model"]
    assert isinstance(compiled, nn.Module)
    with torch.no_grad():
        assert compiled(names["x"]).shape == (2, 16)
        exec(explain, names)
    explanation = names["explanation"]
    assert isinstance(explanation, Explanation) and len(explanation.sites) == 1
    names["pipe"] = case("vae_image").build(torch.float32)
    exec(pipeline, names)
    assert "decoder" in str(names["report"]) and "compiled" in str(names["report"])


def test_the_first_screen_leads_from_install_to_what_has_not_run() -> None:
    """Sixty lines: install, quick start, what it does for a model; AMD stands under the title."""
    lines = README.splitlines()[:60]
    heads = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert heads == ["Install", "Quick start", "What it does for your model"]
    assert lines[2].startswith("**Nothing has run on AMD hardware yet.**")
    assert "pip install -e ." in lines and "rocm-passes doctor" in lines
    assert max(map(len, lines)) <= 100


def test_its_commands_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"make (\w+)", README)) <= targets
    commands = set(re.findall(r"rocm-passes (\w+)(?=[ `\n])", README)) - {"and"}
    assert commands, "it shows the command"
    assert commands <= set(cli.commands.commands)


def test_the_demo_has_the_five_models_of_the_main_job() -> None:
    assert {case(name).source.partition(":")[2] for name in MODELS} == {
        *("WanTransformer3DModel", "ZImageTransformer2DModel", "QwenImageTransformer2DModel"),
        *("FluxTransformer2DModel", "AutoencoderKLWan"),
    }


def test_the_ledger_that_it_shows_is_one_that_the_demo_prints() -> None:
    shown = README.partition("<!-- demo: begin -->")[2].partition("<!-- demo: end -->")[0]
    assert re.search(r"\w+: first call [\d.]+ s, of which the passes took [\d.]+ s", shown)
    assert re.search(r"error against float64: compiled [\d.e-]+, eager [\d.e-]+", shown)
    assert re.search(r"in eager +in the ledger +rewritten +kept +refused", shown)
    assert re.search(r"^ *\d+ graphs?, 0 graph breaks$", shown, re.MULTILINE)

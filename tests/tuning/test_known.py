"""What is shipped: by architecture, then by family, never across versions that matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning import known
from rocm_passes.tuning.consulted import INDUCTOR
from rocm_passes.tuning.store import Choices, Measured, load, store

VERSIONS = "torch 2.13.0 / triton 3.7.0 / rocm-passes 0.1.0"
HERE = f"gfx1101 / {VERSIONS}"
ONE = Measured({INDUCTOR: 1.0, "triton": 0.5}, {INDUCTOR: 0, "triton": 0})
TWO = Measured({INDUCTOR: 1.0, "triton": 2.0}, {INDUCTOR: 0, "triton": 0})


def shipped(*machines: tuple[str, Measured]) -> known.Known | None:
    choices: Choices = {machine: {"norm": found} for machine, found in machines}
    return known.shipped(HERE, "norm", choices)


def test_the_same_architecture_goes_before_its_family() -> None:
    family, same = (f"gfx1100 / {VERSIONS}", TWO), (f"gfx1101 / {VERSIONS}", ONE)
    found = shipped(family, same)
    assert found is not None and found.times == ONE
    assert found.origin == "on another gfx1101, shipped with this package"
    found = shipped(family)
    assert found is not None and found.times == TWO
    assert "gfx1100 of the same family" in found.origin


@pytest.mark.parametrize(
    "machine",
    [
        f"gfx1201 / {VERSIONS}",
        f"gfx942 / {VERSIONS}",
        "gfx1101 / torch 2.14.0 / triton 3.7.0 / rocm-passes 0.1.0",
        "gfx1101 / torch 2.13.0 / triton 3.8.0 / rocm-passes 0.1.0",
        "gfx1101 / torch 2.13.0 / triton 3.7.0 / rocm-passes 0.2.0",
        f"gfx1101 / {VERSIONS} / aiter 0.1.7",
        "gfx1101 / torch 2.13.0",
    ],
)
def test_nothing_of_another_family_or_version_is_trusted(machine: str) -> None:
    assert shipped((machine, ONE)) is None


def test_a_patch_release_of_the_compilers_does_not_matter() -> None:
    machine = "gfx1101 / torch 2.13.1 / triton 3.7.2 / rocm-passes 0.1.0"
    assert shipped((machine, ONE)) is not None


def test_two_unknown_architectures_are_no_family() -> None:
    choices: Choices = {f"sm_100 / {VERSIONS}": {"norm": ONE}}
    assert known.shipped(f"sm_120 / {VERSIONS}", "norm", choices) is None


def test_the_user_s_own_measurement_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(choices=str(tmp_path / "c.json"))
    monkeypatch.setattr(known, "_shipped", lambda: {HERE: {"norm": TWO}})
    found = known.known(options, HERE, "norm")
    assert found is not None and found.times == TWO
    store(options.choices).add(HERE, "norm", ONE)
    assert known.known(options, HERE, "norm") == known.Known(ONE)
    assert known.known(options, HERE, "another") is None


def test_what_is_shipped_can_be_read_and_says_what_measured_it() -> None:
    """Every figure has a command; a file without figures is allowed."""
    paths = sorted(known.SHIPPED.glob("*.json"))
    assert [p.stem for p in paths] == ["sm_90"]
    for path in paths:
        choices = load(path)
        assert all(machine.startswith(f"{path.stem} / ") for machine in choices)
        assert json.loads(path.read_text())["command"]


def test_a_site_s_machine_names_what_its_times_depend_on() -> None:
    target = Target("amd", "gfx942", "MI300X", "2.13.0+rocm7", "3.7.0")
    assert known.site_machine(target).startswith("gfx942 / torch 2.13.0 / triton 3.7.0 / rocm-")

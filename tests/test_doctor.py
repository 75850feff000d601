"""The doctor, on this machine and on machines that it is told of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from rocm_passes import doctor
from rocm_passes.kernels.aiter import installation
from rocm_passes.registry import IDIOMS
from rocm_passes.target import Target
from tests.doubles.aiter_double import absent, broken, installed, unrelated

MI300 = Target("amd", "gfx942", "AMD Instinct MI300X", torch.__version__, "3.7.1")
CPU = Target("cpu", "", "CPU", torch.__version__, "3.7.1")


def lowering(found: dict[str, object], idiom: str, name: str) -> dict[str, object]:
    rows = found["lowerings"]
    assert isinstance(rows, list)
    return next(r for r in rows if (r["idiom"], r["lowering"]) == (idiom, name))


def test_every_lowering_of_every_idiom_is_listed_once() -> None:
    found = doctor.examine()
    listed = [(r["idiom"], r["lowering"]) for r in found["lowerings"]]
    assert listed == [(i.name, low.name) for i in IDIOMS for low in i.lowerings]
    for row in found["lowerings"]:
        assert row["available"] == (row["reason"] is None)


def test_this_machine() -> None:
    found = doctor.examine()
    assert found["torch"]["version"] == torch.__version__
    assert found["problems"] == []
    text = doctor.text(found)
    assert torch.__version__ in text
    assert "no problems found" in text


def test_without_a_gpu_triton_says_why_it_is_not_used() -> None:
    found = doctor.examine(CPU)
    row = lowering(found, "rms_norm", "triton")
    assert not row["available"] and "GPU" in str(row["reason"])
    assert lowering(found, "conv3d", "unfold")["available"]
    assert "no GPU: graphs run on the CPU" in doctor.text(found)


def test_an_amd_gpu_with_aiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "ROCM_BUILD", True)
    with installed("0.1.20"):
        found = doctor.examine(MI300)
    assert found["aiter"]["status"] == "usable"
    assert found["aiter"]["version"] == "0.1.20"
    assert lowering(found, "rms_norm", "aiter")["available"]
    assert lowering(found, "rms_norm", "triton")["available"]
    assert "AMD Instinct MI300X (amd, gfx942)" in doctor.text(found)


def test_no_aiter_and_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "ROCM_BUILD", True)
    with absent():
        found = doctor.examine(MI300)
    assert found["aiter"]["status"] == "absent"
    assert "github.com/ROCm/aiter" in str(lowering(found, "rms_norm", "aiter")["reason"])


def test_the_unrelated_package_is_named_as_such() -> None:
    with unrelated():
        found = doctor.examine(MI300)
    assert found["aiter"]["status"] == "unrelated"
    assert "another project than AMD's" in " ".join(doctor.text(found).split())


def test_an_import_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "ROCM_BUILD", True)
    with broken(ImportError("libamdhip64.so: cannot open")):
        found = doctor.examine(MI300)
    assert found["aiter"]["status"] == "broken"
    assert "libamdhip64.so: cannot open" in found["aiter"]["detail"]


def test_an_architecture_that_the_kernels_are_not_checked_on() -> None:
    found = doctor.examine(replace(MI300, arch="gfx90a"))
    assert any("gfx90a" in p for p in found["problems"])
    assert doctor.examine(MI300)["problems"] == []


def test_a_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+rocm6.4")
    assert any("2.9.1+rocm6.4 is too old" in p for p in doctor.examine(CPU)["problems"])


def test_a_backend_that_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BACKEND", "somebody_elses")
    found = doctor.examine(CPU)
    assert any("'somebody_elses' is not registered" in p for p in found["problems"])
    assert "problem: backend" in doctor.text(found)


def test_a_wrong_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCM_PASSES_SELECT", "allways")
    assert any("ROCM_PASSES_SELECT" in p and "'always'" in p for p in doctor.examine(CPU)["problems"])


def test_options_set_in_the_environment_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "option " not in doctor.text(doctor.examine(CPU))
    monkeypatch.setenv("ROCM_PASSES_SELECT", "always")
    assert "option       ROCM_PASSES_SELECT=always" in doctor.text(doctor.examine(CPU))


def test_the_answer_is_plain_data() -> None:
    found = doctor.examine()
    assert json.loads(json.dumps(found)) == found


def test_lines_keep_to_the_width() -> None:
    lines = doctor.text(doctor.examine(MI300), width=80).splitlines()
    assert max(map(len, lines[:-1])) <= 80

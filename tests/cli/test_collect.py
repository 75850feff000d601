"""How the doctor reads a machine: the driver's files, device nodes and versions, from folders made
here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rocm_passes.cli.doctor import collect
from rocm_passes.cli.doctor.machine import DeviceNode


def node(folder: Path, number: int, version: int) -> None:
    path = folder / str(number) / "properties"
    path.parent.mkdir(parents=True)
    path.write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")


def test_the_driver_s_list_of_gpus_is_read_in_its_order(tmp_path: Path) -> None:
    for number, version in enumerate([0, 90402, 90010, 110000, 120001, 100300, 110501]):
        node(tmp_path, number, version)
    node(tmp_path, 10, 90500)
    assert collect.kernel_archs(tmp_path) == (
        *("gfx942", "gfx90a", "gfx1100", "gfx1201", "gfx1030", "gfx1151"),
        "gfx950",
    )
    assert collect.kernel_archs(tmp_path / "nothing") == ()


def test_device_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dri").mkdir()
    for name in ("kfd", "dri/renderD128", "dri/card0"):
        (tmp_path / name).touch()
    found = collect.device_nodes(tmp_path)
    assert [n.path for n in found] == ["/dev/kfd", "/dev/dri/renderD128"]
    assert all(n.access == "usable" and n.group for n in found)
    monkeypatch.setattr("os.access", lambda path, mode: "kfd" not in str(path))
    assert [n.access for n in collect.device_nodes(tmp_path)] == ["denied", "usable"]
    (tmp_path / "kfd").unlink()
    assert collect.device_nodes(tmp_path)[0] == DeviceNode("/dev/kfd", "absent", "")


def test_miopen_s_version_is_decoded() -> None:
    assert collect.miopen_version(3005001) == (3, 5, 1)


def test_only_variables_that_matter_are_kept() -> None:
    environment = {
        "HOME": "/root",
        "ROCM_PASSES_FUEL": "3",
        "HIP_VISIBLE_DEVICES": "0",
        "SECRET": "x",
    }
    assert list(collect.variables(environment).items()) == [
        ("HIP_VISIBLE_DEVICES", "0"),
        ("ROCM_PASSES_FUEL", "3"),
    ]


def test_a_step_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> tuple[str, ...]:
        raise PermissionError("no")

    monkeypatch.setattr(collect, "kernel_archs", fails)
    monkeypatch.setattr(collect, "_aiter", fails)
    machine = collect.this_machine()
    assert machine.kernel_archs == () and machine.aiter.status == "absent"
    assert machine.lowerings

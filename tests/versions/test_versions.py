"""docs/measured/versions.md, and the command that writes it."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.write_docs import between
from tests.versions import once, suite, table, venvs
from tests.versions.table import Run
from tests.versions.venvs import ROOT, Venv, WrongTorch

DOCUMENT = ROOT / "docs" / "measured" / "versions.md"
PASSED = '<testcase classname="tests.a" name="test_b"/>'
FAILED = '<testcase classname="tests.a" name="test_c"><failure>no</failure></testcase>'
SKIPPED = '<testcase classname="tests.a" name="test_d"><skipped>gpu</skipped></testcase>'


def run(torch: str, python: str = "3.11.7", failures: tuple[str, ...] = ()) -> Run:
    return Run(torch, python, "3.7.1", 10, len(failures), 2, 60, failures)


def junit(tmp_path: Path, *cases: str) -> Path:
    path = tmp_path / "junit.xml"
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def test_the_document_is_what_was_kept() -> None:
    text = DOCUMENT.read_text()
    assert text == between(text, "versions", table.rendered(table.kept(DOCUMENT)))
    assert text == between(text, "part", table.part_table())


def test_no_version_that_was_run_has_failures() -> None:
    runs = table.kept(DOCUMENT)
    assert {run.torch: run.failures for run in runs if run.failures} == {}


def test_every_supported_version_has_a_row_also_where_it_was_not_run() -> None:
    ours = [line.split(" | ") for line in table.rendered([run("2.13.0")]).splitlines()[2:]]
    assert {row[0].strip("| ")[:4] for row in ours} == set(suite.VERSIONS)
    assert {row[0].strip("| ") for row in ours if row[3] == "not run"} == {
        *("2.11", "2.12", "2.14", "2.15")
    }


@pytest.mark.parametrize("path", [path for paths in suite.PART.values() for path in paths])
def test_the_part_names_tests_that_are_there(path: str) -> None:
    file, _, name = path.partition("::")
    assert (ROOT / file).exists()
    assert f"def {name}" in (ROOT / file).read_text() if name else True


def test_of_each_test_the_first_case_runs() -> None:
    names = ["a.py::t[1]", "a.py::t[2-[x]]", "a.py::u", "b.py::t[1]", "b.py::C::t[1]"]
    left: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left.extend(items))
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    config: Any = SimpleNamespace(hook=hook)
    once.pytest_collection_modifyitems(config, items)
    assert [i.nodeid for i in items] == [n for n in names if n != "a.py::t[2-[x]]"]
    assert [i.nodeid for i in left] == ["a.py::t[2-[x]]"]


def test_all_cases_run_where_asked() -> None:
    assert "tests.versions.once" in suite.arguments()
    assert "tests.versions.once" not in suite.arguments(all_cases=True)


def test_a_run_counts_outcomes_and_names_failures(tmp_path: Path) -> None:
    found = table.read_junit(
        junit(tmp_path, PASSED, FAILED, SKIPPED), ("3.11.7", "2.12.1+cpu", "-"), 59.7
    )
    assert found == Run("2.12.1+cpu", "3.11.7", "-", 1, 1, 1, 60, ("tests.a::test_c",))
    assert found.place == ((2, 12), (3, 11))


@pytest.mark.parametrize("cases", [(), (SKIPPED,), (FAILED, SKIPPED)])
def test_where_no_test_passed_there_is_no_result(tmp_path: Path, cases: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no test passed"):
        table.read_junit(junit(tmp_path, *cases), ("3.11.7", "2.12.1", "-"), 1)


def test_a_later_run_replaces_its_row_and_keeps_the_others(tmp_path: Path) -> None:
    document = tmp_path / "v.md"
    parts = "".join(f"<!-- {p}: begin -->\n<!-- {p}: end -->\n" for p in ("versions", "part"))
    document.write_text(f"head\n{parts}tail\n")
    table.write(document, [run("2.15.0"), run("2.11.0", failures=("a::b",))])
    assert "- torch 2.11.0: `a::b`" in document.read_text()
    now = [run("2.11.1"), run("2.15.0", "3.12.1")]
    table.write(document, table.joined(table.kept(document), now))
    assert [(r.torch, r.python) for r in table.kept(document)] == [
        ("2.11.1", "3.11.7"),
        ("2.15.0", "3.11.7"),
        ("2.15.0", "3.12.1"),
    ]
    assert "a::b" not in document.read_text() and document.read_text().endswith("tail\n")


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "v.md"
    document.write_text("text\n")
    with pytest.raises(ValueError, match="versions: begin"):
        table.write(document, [])


def test_torch_stays_and_triton_is_the_one_it_brings() -> None:
    lines = venvs.constraints_beside("2.12.1+cu130").splitlines()
    assert [line for line in lines if line.startswith(("torch", "triton", "setuptools"))] == [
        "torch==2.12.1"
    ]
    assert any(line.startswith("pytest==") for line in lines)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder that passes for an environment of this interpreter."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def test_an_environment_with_another_torch_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python is asked once: it imports torch to answer."""
    import torch

    run_once = functools.cache(functools.partial(subprocess.run, capture_output=True, text=True))
    asked = SimpleNamespace(run=lambda command, **_: run_once(tuple(command)))
    monkeypatch.setattr(venvs, "subprocess", asked)
    minor = ".".join(torch.__version__.split(".")[:2])
    assert Venv(here, minor).describe()[1] == torch.__version__
    for other in ("2.1", "1.13"):
        with pytest.raises(WrongTorch, match=f"has torch .*, not {other}"):
            Venv(here, other).describe()


def test_test_tools_that_would_replace_torch_stop_the_command(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([("3.11.7", "2.12.1+rocm7.1", "-"), ("3.11.7", "2.12.1", "-")])
    commands: list[list[object]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(Venv, "describe", lambda self: next(found))
    venv = Venv(here / "new", "2.12")
    venv.folder.mkdir()
    with pytest.raises(WrongTorch, match=r"replaced torch 2\.12\.1\+rocm7\.1 by 2\.12\.1"):
        venv.make("python3")
    assert not venv.is_ready
    assert "torch==2.12.*" in commands[1] and "-c" in commands[2]

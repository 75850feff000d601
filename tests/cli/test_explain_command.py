"""`rocm-passes explain`, run as a user runs it, and what else shows a ledger: torch's logs and its
trace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch._inductor import config as inductor_config

from rocm_passes import cli
from rocm_passes.cli.explain import NO_CACHES
from tests.cli.running import run
from tests.without_codegen import without_codegen

SCRIPT = """
import atexit, os, sys
import torch

conv = torch.nn.Conv3d(2, 2, 3)

# A graph of one library call, which nothing has to be compiled for.
@torch.compile(backend="rocm_diffusion", options={"select": "off"})
def model(x):
    return conv(x)

if __name__ == "__main__":
    with torch.no_grad():
        model(torch.randn(1, 2, 3, 4, 4))
    print("arguments", sys.argv, "beside", os.path.basename(sys.path[0]))
    {ending}
"""
CONV_LINE = 10


Script = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Script:
    def script(ending: str = "pass") -> Path:
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.replace("{ending}", ending))
        return path

    return script


@dataclass(frozen=True)
class PlainRun:
    """The script run by Python itself, with torch's logs and trace on, and the cache that it has
    filled.
    """

    script: Path
    trace: Path
    cache: Path
    stderr: str


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> PlainRun:
    folder = tmp_path_factory.mktemp("plain")
    script, trace, cache = folder / "script.py", folder / "trace", folder / "cache"
    ending = "atexit.register(lambda: print('at exit', sys.argv[1:]))"
    script.write_text(SCRIPT.replace("{ending}", ending))
    settings = {
        "TORCH_LOGS": "+rocm_passes",
        "TORCH_TRACE": str(trace),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return PlainRun(script, trace, cache, done.stderr)


def test_explain_prints_the_ledger_after_the_script_even_on_a_warm_cache(
    plain_run: PlainRun, tmp_path: Path
) -> None:
    script = plain_run.script
    done = run(
        *(
            "explain",
            "--json",
            tmp_path / "l.json",
            "--html",
            tmp_path / "l.html",
            script,
            "--steps",
            "3",
        ),
        TORCHINDUCTOR_CACHE_DIR=str(plain_run.cache),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"arguments ['{script}', '--steps', '3'] beside {script.parent.name}"
    assert any(line.startswith("conv3d ") and f"script.py:{CONV_LINE}" in line for line in lines)
    assert f"1 graph compiled by {script}" in lines
    assert lines[-1] == "at exit ['--steps', '3']"
    found = json.loads((tmp_path / "l.json").read_text())
    assert [s["location"] for s in found["sites"]] == [f"{script}:{CONV_LINE}"]
    assert 'class="group"' in (tmp_path / "l.html").read_text()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command in this process, without code generation; what a script changes here is
    put back.
    """
    monkeypatch.setenv(NO_CACHES, "0")
    monkeypatch.setattr(sys, "argv", ["rocm-passes"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = sys.modules["__main__"]
    with inductor_config.patch(force_disable_caches=False), without_codegen():
        yield
    sys.modules["__main__"] = main


@pytest.mark.usefixtures("in_process")
def test_explain_keeps_the_exit_code_and_says_every_site(
    write: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", "--all", str(write("sys.exit(7)"))])
    assert ended.value.code == 7
    header, row = capsys.readouterr().out.splitlines()[2:4]
    assert header.split() == ["graph", "idiom", "outcome", "module", "where", "inputs", "why"]
    assert row.startswith("graph") and "float32[1, 2, 3, 4, 4] float32[2, 2, 3, 3, 3]" in row
    assert os.environ[NO_CACHES] == "1" and inductor_config.force_disable_caches


@pytest.mark.usefixtures("in_process")
def test_explain_shows_exceptions_and_reports_all_the_same(
    write: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", str(write("raise LookupError('the script fails')"))]) == 1
    said = capsys.readouterr()
    assert said.err.rstrip().endswith("LookupError: the script fails")
    assert 'script.py", line' in said.err and "rocm_passes" not in said.err
    assert "conv3d" in said.out


@pytest.mark.usefixtures("in_process")
def test_explain_of_a_script_that_compiles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('hello')\n")
    assert cli.main(["explain", str(script)]) == 0
    said = capsys.readouterr().out
    assert "compiled nothing with torch.compile(..., backend='rocm_diffusion')" in said


def test_a_script_s_own_traceback_is_shown_from_its_frames_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def fails():\n    raise LookupError('no such thing')\n\nfails()\n")
    done = run("explain", script)
    assert done.returncode == 1
    plain = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stderr == plain.stderr
    script.write_text("this is no Python\n")
    assert run("explain", script).stderr.rstrip().endswith("SyntaxError: invalid syntax")


def test_explain_runs_a_module_as_python_does(tmp_path: Path) -> None:
    package = tmp_path / "program"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import sys\nfrom . import part\nprint(__name__, sys.argv, sys.path[0])\n"
    )
    (package / "part.py").write_text("import sys\nprint('part', __name__)\n")
    done = run("explain", "-m", "program", "--json", "x", cwd=tmp_path)
    plain = subprocess.run(
        [sys.executable, "-m", "program", "--json", "x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        done.stdout.startswith(plain.stdout) and "['" + str(package / "__main__.py") in plain.stdout
    )
    assert "--json stands behind the script's name" in done.stderr
    assert not (tmp_path / "x").exists()


CHILDREN = """
import multiprocessing
import torch

def compiled():
    conv = torch.nn.Conv3d(2, 2, 3)
    call = torch.compile(conv, backend="rocm_diffusion", options={"select": "off"})
    with torch.no_grad():
        call(torch.randn(1, 2, 3, 4, 4))

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=compiled)
    child.start()
    child.join()
    assert child.exitcode == 0
"""


def test_what_a_child_process_compiled_is_in_the_ledger(tmp_path: Path) -> None:
    """The parent compiles nothing. (Ranks of torchrun: tests/report/test_child_ledgers.py.)"""
    script = tmp_path / "script.py"
    script.write_text(CHILDREN)
    done = run("explain", "--json", tmp_path / "l.json", script)
    assert done.returncode == 0, done.stderr
    assert f"1 graph compiled by {script}" in done.stdout
    (site,) = json.loads((tmp_path / "l.json").read_text())["sites"]
    assert site["idiom"] == "conv3d" and site["graph"].startswith("graph0 of process ")


def test_torch_logs_prints_entries_as_they_happen(plain_run: PlainRun) -> None:
    assert f"conv3d at {plain_run.script}:{CONV_LINE}: " in plain_run.stderr


def test_the_ledger_lands_in_torchs_structured_trace(plain_run: PlainRun) -> None:
    (log,) = plain_run.trace.glob("*.log")
    lines = log.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if '"name": "rocm_passes_graph0"' in line)
    payload = []
    for line in lines[start + 1 :]:
        if not line.startswith("\t"):
            break
        payload.append(line[1:])
    (site,) = json.loads("\n".join(payload))["sites"]
    assert site["idiom"] == "conv3d"
    assert site["location"].endswith(f"script.py:{CONV_LINE}")

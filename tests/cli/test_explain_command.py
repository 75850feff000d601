"""The command, mostly run as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rocm_passes import cli

SCRIPT = """
import atexit, os, sys
import torch

conv = torch.nn.Conv3d(2, 2, 3)

# A graph of one library call, which nothing has to be compiled for.
@torch.compile(backend="rocm_diffusion", options={"select": "off"})
def model(x):
    return conv(x)

if __name__ == "__main__":
    atexit.register(lambda: print("at exit", sys.argv[1:]))
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
    """The script run by Python itself, with torch's logs and trace on, and the cache that it has filled."""

    script: Path
    trace: Path
    cache: Path
    stderr: str


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> PlainRun:
    folder = tmp_path_factory.mktemp("plain")
    script, trace, cache = folder / "script.py", folder / "trace", folder / "cache"
    script.write_text(SCRIPT.replace("{ending}", "pass"))
    settings = {
        "TORCH_LOGS": "+rocm_passes",
        "TORCH_TRACE": str(trace),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **settings}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return PlainRun(script, trace, cache, done.stderr)


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rocm_passes.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
    )


def test_explain_prints_the_ledger_after_the_script_even_on_a_warm_cache(
    plain_run: PlainRun, tmp_path: Path
) -> None:
    script = plain_run.script
    done = run(
        *("explain", "--json", tmp_path / "l.json", "--html", tmp_path / "l.html", script, "--steps", "3"),
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
    assert "<table" in (tmp_path / "l.html").read_text()


def test_explain_keeps_the_exit_code_and_says_every_site(write: Script) -> None:
    done = run("explain", "--all", write("sys.exit(7)"))
    assert done.returncode == 7
    header, row = done.stdout.splitlines()[2:4]
    assert header.split() == ["graph", "idiom", "outcome", "module", "where", "inputs", "why"]
    assert row.startswith("graph0") and "float32[1, 2, 3, 4, 4] float32[2, 2, 3, 3, 3]" in row


def test_explain_lets_exceptions_through_and_reports_all_the_same(write: Script) -> None:
    done = run("explain", write("raise LookupError('the script fails')"))
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("LookupError: the script fails")
    assert 'script.py", line' in done.stderr
    assert "conv3d" in done.stdout


def test_explain_of_a_script_that_compiles_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('hello')\n")
    done = run("explain", script)
    assert done.returncode == 0
    assert "compiled nothing with torch.compile(..., backend='rocm_diffusion')" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["explain"], "script"),
        (["explain", "no_such_file.py"], "no script 'no_such_file.py'"),
        (
            ["explain", "--json", "no_such_folder/l.json", __file__],
            "no folder to write 'no_such_folder/l.json'",
        ),
        (["explane", "script.py"], "invalid choice: 'explane'"),
        (["doctor", "--loudly"], "--loudly"),
        (["demo", "no_such_model"], "no model 'no_such_model'"),
        (["bench", "no_such_benchmark"], "no 'no_such_benchmark'; there are "),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    assert code == 2
    assert says in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "lowerings" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_doctor_exits_with_1_on_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROCM_PASSES_SELEKT", "auto")
    assert cli.main(["doctor"]) == 1
    assert "did you mean 'ROCM_PASSES_SELECT'" in capsys.readouterr().out


def test_a_subcommand_exists_where_its_module_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "HANDED_OVER", {"measure": ("rocm_passes.no_such_module", "help")})
    assert "measure" not in cli.parser().format_help()
    monkeypatch.setattr(cli, "HANDED_OVER", {"measure": ("rocm_passes.doctor", "look closely")})
    assert "measure" not in cli.parser().format_help(), "it has no main"
    calls: list[list[str]] = []
    monkeypatch.setattr("rocm_passes.doctor.main", calls.append, raising=False)
    assert "look closely" in cli.parser().format_help()
    assert cli.main(["measure", "--quickly"]) == 0
    assert calls == [["--quickly"]]


def test_bench_runs_a_program_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "speed.py").write_text('import sys\nif __name__ == "__main__":\n    print(sys.argv)\n')
    for name in ("__init__.py", "helper.py"):
        (folder / name).write_text("")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.delitem(sys.modules, "benchmarks", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli._benchmarks() == ["speed"]
    assert cli.main(["bench", "speed", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "['rocm-passes bench speed', '--steps', '3']\n"


def test_the_demo_and_the_benchmarks_need_a_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert cli.main(["demo"]) == 2
    assert "part of a checkout" in capsys.readouterr().err
    assert cli.main(["bench", "norms"]) == 2
    assert "there are none" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("rocm-passes")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "doctor" in done.stdout and "explain" in done.stdout


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

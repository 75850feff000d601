"""The command as a whole: its help, its version, and what it says of wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rocm_passes
from examples import demo_arguments
from rocm_passes import cli, torch_version
from rocm_passes.cli import bench, demo
from rocm_passes.options import SELECT

COMMANDS = ("doctor", "explain", "tune", "rules", "verify", "bisect", "demo", "bench")

#: Fails as soon as torch is imported, by the command or by anything that it imports.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from rocm_passes.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], f"rocm-passes, version {rocm_passes.__version__}"),
        (["--help"], "explain"),
        (["doctor", "--help"], "--report"),
        (["explain", "--help"], "--html FILE"),
        (["tune", "--help"], "--seconds"),
        (["rules", "--help"], "--target ARCH"),
        (["bench", "--help"], "--share FILE"),
        (["verify", "--help"], "--live"),
        (["bisect", "--help"], "--check CHECK"),
        (["demo", "--help"], "--as-if ARCH"),
    ],
)
def test_help_and_version_need_no_torch(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_the_doctor_of_a_torch_that_does_not_import_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "doctor"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "fails to import" in done.stdout and done.stdout.rstrip().endswith("will not work here")
    assert "Traceback" not in done.stderr


def test_the_package_imports_without_torch_and_says_what_is_missing() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import rocm_passes, importlib.metadata as m\n"
        "def none(name): raise m.PackageNotFoundError(name)\n"
        "m.version = none; import importlib.util as u; u.find_spec = lambda name: None\n"
        "try:\n    rocm_passes.explain\nexcept rocm_passes.TorchError as error:\n    print(error)\n"
        "try:\n    from rocm_passes import compile_pipeline\nexcept ImportError as error:\n    "
        "print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("torch is not installed: install torch 2.11 or newer") == 2, (
        done.stderr
    )


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)
    assert set(cli.commands.commands) == set(COMMANDS)


@pytest.mark.parametrize("module", ["rocm_passes", "rocm_passes.cli"])
def test_python_m(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and rocm_passes.__version__ in done.stdout


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("rocm-passes")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "doctor" in done.stdout and "explain" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["explane", "script.py"], "there is no command 'explane'; did you mean 'explain'?"),
        (["doctor", "--jason"], "--json"),
        (["explain"], "a script is needed, or -m MODULE"),
        (["explain", "no_such_file.py"], "there is no script 'no_such_file.py'"),
        (["explain", "."], "'.' is a folder: name a Python file, or a module by -m"),
        (
            ["explain", "-m", "no_such_module"],
            "there is no module 'no_such_module' that can be run",
        ),
        (["explain", "-m", "no_such.module"], "there is no module 'no_such.module'"),
        (["explain", "--json", "no_such_folder/l.json", __file__], "there is no folder"),
        (["explain", "--html", ".", __file__], "cannot write '.': it is a folder"),
        (["verify"], "a script is needed, or -m MODULE"),
        (["bisect"], "a script is needed, or -m MODULE"),
        (
            ["bisect", "--check", "no_such_module:check", __file__],
            "--check: No module named 'no_such_module'",
        ),
        (["bisect", "--check", "", __file__], "--check: expected a command, or MODULE:FUNCTION"),
        (["tune"], "a script is needed, or -m MODULE"),
        (["tune", "no_such_file.py"], "there is no script 'no_such_file.py'"),
        (["tune", "--merge", "no_such.json"], "there is no file 'no_such.json' to merge"),
        (["tune", "--show", "--choices", "no_such.json"], "there is no file 'no_such.json'"),
        (["tune", "--seconds", "-1", __file__], "--seconds"),
        (["demo", "no_such_model"], "no model 'no_such_model'"),
        (
            ["bench", "no_such_benchmark"],
            "there is no script and no benchmark 'no_such_benchmark'; there are sdxl",
        ),
        (["bench", "no_such_file.py"], "there is no script 'no_such_file.py'"),
        (["bench", "--forms", "egaer", __file__], "there is no form 'egaer'"),
        (["bench"], "a script is needed, or -m MODULE"),
        (["bench", "--seconds", "-1", __file__], "--seconds"),
        (["doctor", "--json", "--report"], "give --report or --json, not both"),
        (["explain", "-m"], "Option '-m' requires an argument"),
        (["explain", "-m", __file__], "is a file, not a module: leave out -m"),
        (["explain", "-m", "email"], "'email' is a package without a __main__ module"),
        (["explain", "--json", "", __file__], "cannot write '': the name is empty"),
        (["verify", "--json", ".", __file__], "cannot write '.': it is a folder"),
        (["tune", "--show", __file__], "--show runs and merges nothing"),
        (["tune", "--show", "--merge", "a.json"], "--show runs and merges nothing"),
        (["demo", "--output", __file__], "cannot write into"),
        (["demo", "--select", "allways"], "invalid choice: 'allways'"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as error:  # the demo's own parser
        code = error.code  # type: ignore[assignment]
    assert code == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "Commands:" in "".join(capsys.readouterr())


def test_a_misspelt_script_is_answered_with_its_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decode.py").touch()
    assert cli.main(["explain", str(tmp_path / "decoed.py")]) == 2
    assert "did you mean 'decode.py'?" in capsys.readouterr().err


def test_a_link_to_nothing_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").symlink_to("nowhere.py")
    assert cli.main(["explain", str(tmp_path / "script.py")]) == 2
    said = capsys.readouterr().err
    assert "is a link to a file that is not there" in said and "did you mean" not in said


def test_the_ending_alone_makes_no_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "abc.py").touch()
    assert cli.main(["explain", str(tmp_path / "xyz.py")]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_package_that_fails_to_import_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails_when_imported").mkdir()
    (tmp_path / "fails_when_imported" / "__init__.py").write_text("raise ValueError('boom')")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", "-m", "fails_when_imported.x"]) == 2
    assert "importing its package raised ValueError: boom" in capsys.readouterr().err


NEEDING_TORCH = {
    "rules": [],
    "explain": [__file__],
    "verify": [__file__],
    "tune": [__file__],
    "bisect": [__file__],
    "bench": [__file__],
    "demo": [],
}


@pytest.mark.parametrize("command", NEEDING_TORCH)
def test_a_torch_that_is_too_old_is_one_line(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch_version, "installed", lambda: "2.10.0+rocm7.0")
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, *NEEDING_TORCH[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rocm-passes: torch 2.10.0+rocm7.0 is too old")


@pytest.mark.parametrize("arguments", [["rules"], ["bench", "--list"], ["tune", __file__]])
def test_a_torch_that_fails_to_import_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rocm-passes: torch fails to import (")
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_is_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands, "main", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_demo_says_what_each_choice_of_sites_means() -> None:
    assert set(demo_arguments.SELECT) == set(SELECT)


def test_an_unwritable_output_is_refused_before_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('the script ran')")
    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    assert cli.main(["explain", "--html", str(tmp_path / "l.html"), str(script)]) == 2
    assert "l.html': Permission denied" in capsys.readouterr().err
    assert not (tmp_path / "l.html").exists()


def test_an_error_of_this_package_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text("[]")
    assert cli.main(["tune", "--show", "--choices", str(tmp_path / "c.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rocm-passes: ") and "not a file of measured choices" in said
    assert len(said.splitlines()) == 1


def test_bench_runs_a_program_of_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "speed.py").write_text(
        'import sys\nif __name__ == "__main__":\n    print(sys.argv)\n'
    )
    for name in ("__init__.py", "helper.py"):
        (folder / name).write_text("")
    monkeypatch.setattr(bench, "FOLDER", folder)
    monkeypatch.setattr(bench, "PACKAGE", "programs")
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.syspath_prepend(tmp_path)
    assert bench.benchmarks() == ["speed"]
    assert cli.main(["bench", "speed", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "['rocm-passes bench speed', '--steps', '3']\n"


def test_bench_runs_a_pipeline_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        bench.runpy, "run_module", lambda module, run_name: ran.append((module, sys.argv[1:]))
    )
    assert cli.main(["bench", "sdxl", "--seconds", "60"]) == 0
    assert ran == [("rocm_passes.bench.pipelines", ["--only", "sdxl", "--seconds", "60"])]


def test_bench_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert (
        "pipelines: sdxl, wan, z_image, flux" in said
        and "blocks, conv3d" in said
        and "script_child" not in said
    )


def test_bench_writes_what_it_measured_and_a_copy_to_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    given: list[list[str]] = []

    def measure(
        words: list[str], *how: object
    ) -> tuple[list[dict[str, object]], dict[str, object]]:
        given.append(words)
        rows: list[dict[str, object]] = [
            {
                "form": form,
                "calls_ms": ms,
                "total_s": 1.0,
                "first_cold_s": 2.0,
                "first_warm_s": 1.0,
                "peak_gib": 1.0,
            }
            for form, ms in (("inductor", 4.0), ("ours", 3.0))
        ]
        return [*rows, {"form": "static", "failed": f"at {program}: no luck"}], {
            "graphs": [{"at": str(program)}]
        }

    monkeypatch.setattr("rocm_passes.bench.script.measure", measure)
    files = tmp_path / "all.json", tmp_path / "share.json"
    words = ["--json", str(files[0]), "--share", str(files[1]), str(program), "--prompt", "a cat"]
    assert cli.main(["bench", *words]) == 0
    assert given == [[str(program), "--prompt", "a cat"]]
    captured = capsys.readouterr()
    assert "0.750" in captured.out and "no luck" in captured.err
    everything, shared = (json.loads(file.read_text()) for file in files)
    assert (
        everything["rows"] == [*shared["rows"][:2], everything["rows"][2]]
        and shared["script"] == "program.py"
    )
    assert (
        shared["machine"]["torch"]
        and str(tmp_path) not in files[1].read_text()
        and "cat" not in files[1].read_text()
    )


def test_the_benchmarks_are_found() -> None:
    assert {"norms", "blocks", "vae", "conv3d"} <= set(bench.benchmarks())


def test_the_demo_needs_a_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    assert cli.main(["demo"]) == 2
    assert "part of a checkout" in capsys.readouterr().err

"""`rocm-passes verify` and `rocm-passes bisect`: what they print, their exit codes, and what they
refuse.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch._inductor import config as inductor_config

from rocm_passes import cli
from rocm_passes.cli import bisect
from rocm_passes.cli.explain import NO_CACHES
from tests import forked
from tests.without_codegen import without_codegen

#: Two RMSNorms, without code generation. `wrong` breaks the second, by its width.
SCRIPT = """
import torch
import torch.nn.functional as F
from rocm_passes.ops.rms_norm import RMS_NORM
from tests.without_codegen import without_codegen

right = RMS_NORM.reference
RMS_NORM.reference = lambda call: right(call) * (1 if call.x.shape[-1] != {wrong} else 2)

options = {{"select": "always", "lowering": "rms_norm=reference"}}

@torch.compile(backend="rocm_diffusion", options=options)
def model(x, y):
    return F.rms_norm(x, (16,)), F.rms_norm(y, (24,))

with without_codegen(), torch.no_grad():
    for found in model(torch.ones(2, 16), torch.ones(2, 24)):
        print("mean", found.mean().item())
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[int], Path]:
    def write(wrong: int) -> Path:
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(wrong=wrong))
        return path

    return write


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command in this process; what a script changes here is put back."""
    from rocm_passes.ops.rms_norm import RMS_NORM

    monkeypatch.setenv(NO_CACHES, "0")
    monkeypatch.setenv("ROCM_PASSES_VERIFY", "off")
    monkeypatch.setattr(sys, "argv", ["rocm-passes"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(RMS_NORM, "reference", RMS_NORM.reference)
    main = sys.modules["__main__"]
    with inductor_config.patch(force_disable_caches=False), without_codegen():
        yield
    sys.modules["__main__"] = main


@pytest.mark.usefixtures("in_process")
def test_verify_prints_each_site_and_exits_with_0_where_all_hold(
    script: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(script(0))]) == 0
    said = capsys.readouterr().out
    assert said.count("rms_norm by reference") == 2 and said.count("held") == 2
    assert "2 sites in" in said and "0 put back" in said


@pytest.mark.usefixtures("in_process")
def test_verify_exits_with_1_where_a_site_was_put_back(
    script: Callable[[int], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["verify", "--json", str(tmp_path / "l.json"), str(script(24))]) == 1
    said = capsys.readouterr().out
    # The script's own result is right: the site was put back before it ran.
    assert said.count("mean 1.0") + said.count("mean 0.9999") == 2
    assert "put back" in said and "its error against float64 is" in said and "1 put back" in said
    assert '"status": "put back"' in (tmp_path / "l.json").read_text()


@pytest.mark.usefixtures("in_process")
def test_verify_keeps_the_script_s_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ends.py"
    path.write_text("raise SystemExit(7)\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", str(path)])
    assert ended.value.code == 7
    assert "no site was rewritten, so there is nothing to verify" in capsys.readouterr().out


def forked_as_run(
    command: Sequence[str], *, env: Mapping[str, str], timeout: float | None, **_: Any
) -> subprocess.CompletedProcess[str]:
    return forked.run(command, env=env, timeout=timeout or 300)


def test_bisect_finds_the_rewrite_in_processes_of_their_own(
    script: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bisect.subprocess, "run", forked_as_run)
    assert cli.main(["bisect", str(script(24))]) == 1
    said = capsys.readouterr().out
    assert "rewrite 2 makes the result wrong:" in said
    assert "rms_norm by reference at" in said and "script.py:14" in said


class Script:
    """Stands for the runs of a script: wrong from a number of rewrites on."""

    def __init__(self, rewrites: int, wrong_from: int) -> None:
        self.rewrites, self.wrong_from = rewrites, wrong_from
        self.asked: list[int] = []

    def __call__(self, fuel: int) -> bisect.Run:
        self.asked.append(fuel)
        made = min(fuel, self.rewrites)
        good = made < self.wrong_from
        sites: tuple[dict[str, Any], ...] = tuple({"number": i + 1} for i in range(made))
        return bisect.Run(good, "1.0" if good else "2.0", sites)


@pytest.mark.parametrize("compares", [True, False])
@pytest.mark.parametrize("wrong_from", [1, 2, 7, 63, 64])
def test_the_search_halves(compares: bool, wrong_from: int) -> None:
    runs = Script(64, wrong_from)
    found = bisect.search(runs, compares)
    assert found is not None and found.rewrites == wrong_from
    assert len(runs.asked) <= 2 + 6


@pytest.mark.parametrize("compares", [True, False])
def test_a_right_result_finds_nothing(compares: bool) -> None:
    assert bisect.search(Script(8, 9), compares) is None


def test_a_result_that_is_wrong_without_rewrites_is_refused() -> None:
    with pytest.raises(bisect.BisectError, match="wrong without any rewrite"):
        bisect.search(Script(8, 0), compares=False)


def test_a_script_that_fails_without_rewrites_is_refused_with_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text("raise ValueError('boom')")
    assert cli.main(["bisect", str(tmp_path / "script.py")]) == 2
    said = capsys.readouterr().err
    assert "ends with exit code 1 without any rewrite" in said and "ValueError: boom" in said


def test_a_script_without_rewrites_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text("print(1.0)")
    assert cli.main(["bisect", str(tmp_path / "script.py")]) == 0
    assert "no site was rewritten: `rocm-passes explain` says why" in capsys.readouterr().out


def test_a_result_that_differs_without_rewrites_is_refused() -> None:
    outputs = iter(["1.0", "2.0"])
    with pytest.raises(bisect.BisectError, match="rewrites nothing, and its result differs"):
        bisect.search(lambda fuel: bisect.Run(True, next(outputs)), compares=True)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("x 1.000", "x 1.001", True), ("x 1.0", "x 1.1", False), ("[1.0, 2]", "[1.0, 2]", True),
     ("1.0", "nan", False), ("1 2", "1", False), ("yes", "no", False)],
)  # fmt: skip
def test_outputs_are_compared_word_by_word(a: str, b: str, same: bool) -> None:
    assert bisect.alike(bisect.Run(True, a), bisect.Run(True, b)) is same


def test_checks_by_command_and_by_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checks_of_bisect.py").write_text(
        "def is_one(output):\n    assert output == 'one'\n    return True\n"
    )
    by_function = bisect.judge_of("checks_of_bisect:is_one")
    program = "import os; assert open(os.environ['ROCM_BISECT_OUTPUT']).read() == 'one'"
    by_command = bisect.judge_of(f'{sys.executable} -c "{program}"')
    for judge in (by_function, by_command):
        assert judge("one", 0) and not judge("two", 0) and not judge("one", 1)
    with pytest.raises(bisect.BisectError, match="'no_such_program' cannot be run"):
        bisect.judge_of("no_such_program now")("one", 0)

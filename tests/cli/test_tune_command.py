"""`rocm-passes tune`: what it met, measured and skipped, and what it keeps where something
fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rocm_passes import cli
from rocm_passes.cli import tune
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.target import Target
from rocm_passes.tuning import budget, tuning
from rocm_passes.tuning import measure as measuring
from rocm_passes.tuning.ahead import Call
from rocm_passes.tuning.store import Measured, Store, load
from tests.ops.conv3d_calls import call

MI300 = Target("amd", "gfx942", "MI300X", "2.11.0+rocm7", "3.6")
CPU = Target("cpu", "", "CPU", "2.11", None)
ABLE = ("taps", "direct", "unfold")
#: The timers here never run it.
CALL = call((1,))
CALLS = [Call(f"conv3d call {number}", ABLE, CALL) for number in range(3)]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh budget; what a script changes in the process is put back."""
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    for variable in ("ROCM_PASSES_TUNE_SECONDS", "ROCM_PASSES_CHOICES"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sys, "argv", ["rocm-passes"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


def timer(lowerings: Sequence[Lowering[Any]], of: Any, watch: measuring.Watch) -> Measured:
    return Measured(
        {"taps": 2.0, "direct": 3.0}, {"taps": 1, "direct": 1}, {"unfold": "out of memory"}
    )


def options(folder: Path, **more: Any) -> Options:
    return Options(choices=str(folder / "c.json"), **more)


def test_what_was_measured_known_and_skipped_is_said(tmp_path: Path) -> None:
    Store(tmp_path / "c.json").add(
        tuning.machine(MI300),
        CALLS[0].key,
        Measured(dict.fromkeys(ABLE, 1.0), dict.fromkeys(ABLE, 1)),
    )
    tuned = tune.measure(CALLS, options(tmp_path), MI300, timer)
    assert [t.state for t in tuned] == ["known", "measured", "measured"]
    said = tune.told("decode.py", 1, tuned, MI300).splitlines()
    assert said[0] == "decode.py: 1 graph, 3 different calls to choose by measurement"
    assert "measured: 2" in said and "known: 1" in said
    at = said.index("  conv3d call 1")
    assert said[at + 1 : at + 3] == [
        "      taps 2 ms, direct 3 ms",
        "      unfold skipped: out of memory",
    ]


def test_a_measurement_that_fails_costs_its_call_only(tmp_path: Path) -> None:
    runs = iter([None, RuntimeError("HIP error"), None])

    def failing(*arguments: Any) -> Measured:
        error = next(runs)
        if error is not None:
            raise error
        return timer(*arguments)

    tuned = tune.measure(CALLS, options(tmp_path), MI300, failing)
    assert [t.state for t in tuned] == ["measured", "not measured", "measured"]
    assert tuned[1].reason == "measuring failed: RuntimeError: HIP error"
    assert len(load(tmp_path / "c.json")[tuning.machine(MI300)]) == 2


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    runs = iter([True, False])

    def interrupted(*arguments: Any) -> Measured:
        if not next(runs):
            raise KeyboardInterrupt
        return timer(*arguments)

    tuned = tune.measure(CALLS, options(tmp_path), MI300, interrupted)
    assert [t.state for t in tuned] == ["measured", "not measured", "not measured"]
    assert tuned[2].reason == "interrupted"
    assert len(load(tmp_path / "c.json")[tuning.machine(MI300)]) == 1


def test_a_spent_budget_is_the_reason(tmp_path: Path) -> None:
    budget.BUDGET.spend(60)
    (tuned, *_) = tune.measure(CALLS, options(tmp_path, tune_seconds=60.0), MI300, timer)
    assert tuned.reason == "the 60 seconds are spent (--seconds gives more)"


def test_a_cpu_is_the_reason(tmp_path: Path) -> None:
    (tuned, *_) = tune.measure(CALLS, options(tmp_path), CPU)
    assert tuned.state == "not measured" and "no GPU" in tuned.reason


def test_lowerings_that_all_fail_are_named(tmp_path: Path) -> None:
    found = Measured({}, {}, dict.fromkeys(ABLE, "out of memory"))
    (tuned, *_) = tune.measure(CALLS[:1], options(tmp_path), MI300, lambda *_: found)
    said = tune.told("decode.py", 1, [tuned], MI300)
    assert "no lowering could be run" in said and "taps skipped: out of memory" in said


def test_nothing_met_is_explained() -> None:
    assert "compiled nothing with torch.compile" in tune.told("decode.py", 0, [], MI300)
    assert "only convolutions are measured after the script" in tune.told("decode.py", 2, [], MI300)


def test_the_command_runs_a_script_with_its_budget_and_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "decode.py"
    script.write_text(
        "import os, sys; from rocm_passes.tuning import ahead\n"
        "print(os.environ['ROCM_PASSES_TUNE_SECONDS'], ahead.active(), sys.argv[1:])"
    )
    choices = tmp_path / "made" / "c.json"
    assert (
        cli.main(["tune", "--seconds", "90", "--choices", str(choices), str(script), "--fast"]) == 0
    )
    said = capsys.readouterr().out
    assert "90.0 True ['--fast']" in said
    assert f"choices are kept in {choices}" in said
    from rocm_passes.tuning import ahead

    assert not ahead.active()


def test_a_script_that_fails_keeps_its_code_and_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(
        tune, "measure", lambda calls, *_: measured.extend(c.key for c in calls) or []
    )
    script = tmp_path / "decode.py"
    script.write_text(
        "from rocm_passes.tuning import ahead\n"
        "ahead._NOTED.add(ahead.Call('conv3d met', ('taps',), None))\n"
        "raise LookupError('no weights')\n"
    )
    assert cli.main(["tune", "--choices", str(tmp_path / "c.json"), str(script)]) == 1
    said = capsys.readouterr()
    assert measured == ["conv3d met"]
    assert "LookupError: no weights" in said.err and "is measured all the same" in said.err
    script.write_text("raise SystemExit('bye')")
    assert cli.main(["tune", "--choices", str(tmp_path / "c.json"), str(script)]) == 1


def test_a_file_that_is_none_of_ours_is_refused_before_the_script_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text("[]")
    script = tmp_path / "decode.py"
    script.write_text("print('it ran')")
    assert cli.main(["tune", "--choices", str(tmp_path / "c.json"), str(script)]) == 2
    said = capsys.readouterr()
    assert "not a file of measured choices" in said.err and "it ran" not in said.out


def test_the_command_merges_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arch in (("a", "gfx942"), ("b", "gfx950"), ("c", "gfx1100")):
        Store(tmp_path / f"{name}.json").add(
            arch, "conv3d call", Measured({"taps": 2.0}, {"taps": 1})
        )
    merged = [str(tmp_path / "b.json"), str(tmp_path / "c.json")]
    assert cli.main(["tune", "--choices", str(tmp_path / "a.json"), "--merge", *merged]) == 0
    assert set(load(tmp_path / "a.json")) == {"gfx942", "gfx950", "gfx1100"}
    assert "gfx950: 1 call\n" in capsys.readouterr().out


def test_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["tune", "--show"]) == 0
    assert "nothing is measured yet" in capsys.readouterr().out
    Store(tmp_path / "rocm-passes" / "choices.json").add(
        "gfx942", "key", Measured({"taps": 2.0}, {"taps": 1})
    )
    assert cli.main(["tune", "--show"]) == 0
    assert "key: taps 2 ms" in capsys.readouterr().out

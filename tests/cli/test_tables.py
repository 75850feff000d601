"""Tables and progress, as a terminal and as a file get them."""

from __future__ import annotations

import pytest

from rocm_passes.cli.tables import progress


def test_progress_is_silent_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress([1, 2], "measuring")) == [1, 2]
    assert "".join(capsys.readouterr()) == ""


def test_progress_is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress([1, 2], "measuring")) == [1, 2]
    captured = capsys.readouterr()
    assert "measuring" in captured.err and captured.out == ""

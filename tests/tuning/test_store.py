"""The file of measured choices: readable, merged, shared between writers, never broken by half a
write.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from rocm_passes.tuning import store as stores
from rocm_passes.tuning.store import Measured, Store, StoreError, dump, load, merged, update

ONE = Measured({"direct": 3.0, "taps": 1.9}, {"direct": 0, "taps": 300})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "choices.json"
    Store(path).add(
        "gfx942", "conv3d a", Measured({"taps": 1.5}, {"taps": 2}, {"direct": "out of memory"})
    )
    assert Store(path).find("gfx942", "conv3d a") == Measured(
        {"taps": 1.5}, {"taps": 2}, {"direct": "out of memory"}
    )
    assert Store(path).find("gfx942", "conv3d b") is None
    assert Store(path).find("gfx950", "conv3d a") is None


def test_the_file_is_json_with_one_measurement_a_line() -> None:
    text = dump({"gfx942": {"b": ONE, "a": ONE}})
    assert json.loads(text)["choices"]["gfx942"]["a"]["ms"]["taps"] == 1.9
    lines = [line for line in text.splitlines() if '"ms"' in line]
    assert [line.split('"')[1] for line in lines] == ["a", "b"]
    assert json.loads(dump({})) == {"format": 1, "choices": {}}


def test_merging_keeps_every_machine_and_each_smaller_time() -> None:
    other = Measured({"taps": 2.5, "unfold": 4.0}, {"taps": 400, "unfold": 900})
    both = merged({"a": {"x": ONE}}, {"a": {"x": other}, "b": {"x": other}})
    assert both["a"]["x"].ms == {"direct": 3.0, "taps": 1.9, "unfold": 4.0}
    assert both["a"]["x"].mib == {"direct": 0, "taps": 400, "unfold": 900}
    assert both["b"]["x"] == other
    assert merged(both, both) == both


def test_the_best_is_the_fastest_that_fits() -> None:
    assert ONE.best() == "taps"
    assert ONE.best(mib_at_most=100) == "direct"
    assert ONE.best(mib_at_most=-1) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a file of measured choices"),
        ("[]", "not a file of measured choices"),
        ('{"format": 99, "choices": {}}', "format 99; this version reads 1"),
        ('{"format": 1, "choices": {"a": {"x": {}}}}', "not a file of measured choices"),
    ],
)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "choices.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=reason):
        load(path)
    kept = Store(path)
    kept.add("a", "x", ONE)
    assert kept.find("a", "x") == ONE
    assert path.read_text() == text


def test_a_measurement_anew_takes_the_place_of_what_was_known(tmp_path: Path) -> None:
    """And of nothing else; merging would keep each lowering's smaller time."""
    kept = Store(tmp_path / "choices.json")
    kept.add("a", "x", ONE)
    kept.add("a", "y", ONE)
    slower = Measured({"direct": 4.0}, {"direct": 0})
    kept.add("a", "x", slower, anew=True)
    for found in (kept, Store(tmp_path / "choices.json")):
        assert found.find("a", "x") == slower
        assert found.find("a", "y") == ONE


def _write_for_ever(path: Path) -> None:
    for at in itertools.count():
        update(path, {"a": {f"call {at}": ONE}})


def test_a_killed_process_leaves_a_sound_file(tmp_path: Path) -> None:
    """And no lock that the next one would wait for."""
    path = tmp_path / "choices.json"
    for _ in range(3):
        before = len(load(path).get("a", {}))
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        process.start()
        while len(load(path).get("a", {})) <= before:
            time.sleep(0.005)
        process.kill()
        process.join()
        known = load(path)["a"]
        assert all(found == ONE for found in known.values())
        update(path, {"b": {"x": ONE}})
        assert set(known) <= set(load(path)["a"])


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = Store(tmp_path / "file" / "choices.json")
    kept.add("a", "x", ONE)
    assert kept.find("a", "x") == ONE
    assert "can't be written" in caplog.text


def _write(path: Path, worker: int) -> None:
    for i in range(5):
        update(path, {"a": {f"{worker} {i}": ONE}})


def test_processes_and_threads_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    context = multiprocessing.get_context("fork")
    workers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        context.Process(target=_write, args=(path, w)) for w in range(2)
    ]
    workers += [threading.Thread(target=_write, args=(path, w)) for w in range(2, 4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(load(path)["a"]) == 20
    assert not list(tmp_path.glob("*.tmp"))


def test_one_store_a_file_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores.store().path == tmp_path / "rocm-passes" / "choices.json"
    assert stores.store() is stores.store()
    assert stores.store(str(tmp_path / "other.json")) is not stores.store()

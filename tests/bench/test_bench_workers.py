"""Processes that share a GPU: replies, failures, and how many are admitted at once."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from rocm_passes.bench.workers import Admission, Worker, WorkerFailed

SCRIPT = """
import sys
from rocm_passes.bench.workers import commands, reply
print("noise")
reply(arguments=sys.argv[1:])
for command in commands():
    if command == ["fail"]:
        raise RuntimeError("out of luck")
    reply(words=command)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "answering.py").write_text(SCRIPT)
    path = ":".join([str(tmp_path), *sys.path])
    return Worker("answering", ["a", "b"], {"PYTHONPATH": path}, tmp_path / "log")


def test_replies_are_told_from_other_output(worker: Worker) -> None:
    assert worker.wait() == {"arguments": ["a", "b"]}
    assert worker.ask("burst", "3") == {"words": ["burst", "3"]}
    worker.close()
    assert worker.process.returncode == 0


def test_a_failure_is_said_with_the_end_of_the_log(worker: Worker) -> None:
    worker.wait()
    with pytest.raises(WorkerFailed, match="out of luck"):
        worker.ask("fail")
    with pytest.raises(WorkerFailed, match="out of luck"):
        worker.ask("again")


def test_a_killed_worker_fails_its_wait(worker: Worker) -> None:
    worker.wait()
    worker.kill()
    with pytest.raises(WorkerFailed):
        worker.wait()


def most_at_once(admission: Admission, gib: list[float]) -> tuple[int, float]:
    """The most that held it at a time, in number and in GiB."""
    lock, held, most = threading.Lock(), [], [0, 0.0]

    def hold(size: float) -> None:
        with admission.admitted(size):
            with lock:
                held.append(size)
                most[:] = max(most[0], len(held)), max(most[1], sum(held))
            time.sleep(0.02)
            with lock:
                held.remove(size)

    threads = [threading.Thread(target=hold, args=(size,)) for size in gib]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return int(most[0]), most[1]


def test_the_number_is_bounded() -> None:
    assert most_at_once(Admission(3, 100.0), [1.0] * 10)[0] == 3


def test_the_memory_is_bounded() -> None:
    count, gib = most_at_once(Admission(10, 10.0), [4.0] * 6)
    assert (count, gib) == (2, 8.0)


def test_what_needs_more_than_there_is_runs_alone() -> None:
    assert most_at_once(Admission(10, 10.0), [1.0, 20.0, 1.0])[1] == 20.0


def test_what_is_kept_counts_on() -> None:
    admission = Admission(10, 10.0)
    with admission.admitted(8.0, kept=6.0):
        pass
    assert most_at_once(admission, [2.0] * 5) == (2, 4.0)

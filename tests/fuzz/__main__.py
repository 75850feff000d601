"""`python -m tests.fuzz`: run random programs for some time, shrink what fails, write a case file
for each.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tests.fuzz import mutants
from tests.fuzz.check import Failure, check
from tests.fuzz.generate import program
from tests.fuzz.program import Program
from tests.fuzz.shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=100_000, help="the first seed")
    parser.add_argument("--programs", type=int, default=10**9, help="at most so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own")
    parser.add_argument("--seed", type=int, help="check and shrink the program of this seed only")
    parser.add_argument(
        "--out", type=Path, default=Path("fuzz-cases"), help="folder for the case files"
    )
    parser.add_argument(
        "--mutants", action="store_true", help="plant faults instead, and see each caught"
    )
    parser.add_argument("--docs", type=Path, help="with --mutants: write the table into this file")
    parser.add_argument("--only", default="", help="with --mutants: those whose names hold this")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if asked.mutants:
        return mutants.run(asked.only, asked.docs)
    if asked.seed is not None:
        asked.first, asked.programs = asked.seed, 1
    counts = fuzz(asked.first, asked.programs, asked.seconds, asked.out, max(1, asked.jobs))
    print(counts.text())
    return min(sum(counts.failed.values()), 1)


@dataclass
class Counts:
    """What a run did."""

    seeds: range
    programs: int = 0
    skipped: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    rewritten: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        self.programs += other.programs
        self.skipped += other.skipped
        for mine, its in (
            (self.kinds, other.kinds),
            (self.rewritten, other.rewritten),
            (self.failed, other.failed),
        ):
            mine.update(its)

    def text(self) -> str:
        return "\n".join((
            f"seeds {self.seeds.start} to {self.seeds.stop - 1}",
            f"programs {self.programs}, skipped {self.skipped} "
            "(eager does not run them, or is not finite)",
            f"parts of programs: {dict(self.kinds.most_common())}",
            f"sites rewritten: {dict(self.rewritten.most_common())}",
            f"programs that failed: {dict(self.failed)}",
        ))  # fmt: skip


def fuzz(first: int, programs: int, seconds: float, folder: Path, jobs: int = 1) -> Counts:
    """Counts of what ran. SIGTERM ends a run with its counts.

    With several processes, process i checks every jobs-th program, from first + i on. A process
    that dies counts as one failure.
    """
    if jobs == 1:
        return fuzz_alone(range(first, first + programs), seconds, folder)
    context = multiprocessing.get_context("fork")
    processes: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
    for job in range(jobs):
        receiver, sender = context.Pipe(duplex=False)
        seeds = range(first + job, first + programs, jobs)
        process = context.Process(target=_send_counts, args=(sender, seeds, seconds, folder))
        process.start()
        sender.close()
        processes.append((process, receiver))
    signal.signal(signal.SIGTERM, lambda *_: [p.terminate() for p, _ in processes])
    total = Counts(range(first, first))
    last = first
    for process, receiver in processes:
        try:
            counts: Counts = receiver.recv()
        except EOFError:
            process.join()
            total.failed[f"process ended with exit code {process.exitcode}"] += 1
            continue
        process.join()
        total.add(counts)
        last = max(last, counts.seeds.stop)
    total.seeds = range(first, last)
    return total


def _send_counts(sender: Connection, seeds: range, seconds: float, folder: Path) -> None:
    sender.send(fuzz_alone(seeds, seconds, folder))


def fuzz_alone(seeds: range, seconds: float, folder: Path) -> Counts:
    end = time.monotonic() + seconds
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    counts = Counts(range(seeds.start, seeds.start))
    for seed in seeds:
        if time.monotonic() >= end or stopped:
            break
        made = program(seed)
        counts.programs += 1
        counts.seeds = range(seeds.start, seed + 1)
        if counts.programs == 20:
            # By now all is imported. Collections that walk through it took a sixth of the time.
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
        outcome = check(made)
        counts.skipped += bool(outcome.skipped)
        counts.kinds.update(made.kinds)
        counts.rewritten.update(outcome.rewritten)
        if outcome.failures:
            counts.failed[outcome.failures[0].kind] += 1
            print(write_case(made, outcome.failures[0], folder), flush=True)
        if counts.programs % 500 == 0:
            print(f"{counts.programs} programs, {counts.failed.total()} failed", flush=True)
    return counts


def write_case(made: Program, failure: Failure, folder: Path) -> str:
    """Shrink a failure and write it as a script; a line that says what and where."""
    small, why = shrink(made, failure)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed_{made.seed}_{why.kind}.py"
    reason = f"{why.kind} under {why.setting}: {why.message}"
    path.write_text(small.script(dict(why.setting.options), why.setting.target, reason))
    return f"seed {made.seed}: {reason.splitlines()[0]} -> {path}"


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.fuzz`: run random programs for some time, shrink what fails, write a case file
for each.
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
import time
import warnings
from collections import Counter
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
    return fuzz(asked.first, asked.programs, asked.seconds, asked.out)


def fuzz(first: int, programs: int, seconds: float, folder: Path) -> int:
    """Counts of what ran, and how many programs failed. SIGTERM ends a run with its counts."""
    end = time.monotonic() + seconds
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    kinds: Counter[str] = Counter()
    rewritten: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    done = skipped = 0
    while done < programs and time.monotonic() < end and not stopped:
        made = program(first + done)
        done += 1
        if done == 20:
            # By now all is imported. Collections that walk through it took a sixth of the time.
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
        outcome = check(made)
        skipped += bool(outcome.skipped)
        kinds.update(made.kinds)
        rewritten.update(outcome.rewritten)
        if outcome.failures:
            failed[outcome.failures[0].kind] += 1
            print(write_case(made, outcome.failures[0], folder), flush=True)
        if done % 500 == 0:
            print(f"{done} programs, {sum(failed.values())} failed", flush=True)
    print(f"seeds {first} to {first + done - 1}")
    print(f"programs {done}, skipped {skipped} (eager does not run them, or is not finite)")
    print("parts of programs:", dict(kinds.most_common()))
    print("sites rewritten:", dict(rewritten.most_common()))
    print("programs that failed:", dict(failed))
    return min(sum(failed.values()), 1)


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

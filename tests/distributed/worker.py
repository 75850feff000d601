"""One rank of two: makes the checks, with gloo on the CPU (test_pair.py starts it)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from tests.distributed import benchmark, choices, pipelines, shards  # noqa: F401  (of checks)
from tests.distributed.checks import make


def main() -> None:
    dist.init_process_group("gloo")
    make(Path(sys.argv[1]), everything="all" in sys.argv[2:])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

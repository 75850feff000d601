"""A rank that is killed while it measures, as a real process on a real store."""

from __future__ import annotations

import sys
import time

import torch.distributed as dist

from rocm_passes.tuning.ranks import Ranks
from tests import forked

KILLED = """
import os, signal, sys
import torch.distributed as dist
from rocm_passes.tuning.ranks import Ranks

def measure():
    os.kill(os.getpid(), signal.SIGKILL)

store = dist.TCPStore("localhost", int(sys.argv[1]), is_master=False)
Ranks(store, 1, 3).decided("gfx942", "a call", "gfx942 MI300X", None, measure, 10.0)
"""


def test_the_others_wait_the_limit_and_go_by_rule_together() -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    killed = forked.run([sys.executable, "-c", KILLED, str(store.port)])
    assert killed.returncode == -9
    began = time.monotonic()
    found = [
        Ranks(store, rank, 3).decided("gfx942", "a call", "gfx942 MI300X", None, lambda: None, 1.0)
        for rank in (0, 2)
    ]
    assert 1.0 <= time.monotonic() - began < 10.0
    assert [d.measured for d in found] == [None, None]
    assert {d.why for d in found} == {"rank 0 waited 1 s for rank 1, which measures it"}

"""The command as one of several ranks of torchrun: what each has comes together on rank 0.

torchrun's agent keeps a store for as long as any rank runs. The process groups of the script may
be gone by then.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

#: That rank 0 waits for the others, once it is done itself.
SECONDS = 60.0
SECONDS_OF_FAILED = 3.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Place:
    """Where a rank finds the store of its agent."""

    rank: int
    size: int
    host: str
    port: int


def of_this_process(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process among the ranks of torchrun; None where it is alone, or there is no agent."""
    size = environment.get("WORLD_SIZE", "")
    if not size.isdigit() or int(size) < 2:
        return None
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, host, port = (environment[v] for v in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return Place(int(rank), int(size), host, int(port))


def gathered(
    name: str, mine: Any, place: Place, seconds: float = SECONDS, everywhere: bool = False
) -> list[Any | None] | None:
    """On rank 0 what each rank has, None for one that did not give it in time; None on the others.

    name: of this exchange, the same on all ranks, and once in a run. everywhere: on the others too.
    """
    try:
        return _gathered(name, mine, place, seconds, everywhere)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        click.echo(f"rank {place.rank}: torchrun's agent can't be reached: {said}", err=True)
        return [mine if rank == place.rank else None for rank in range(place.size)]


def _gathered(
    name: str, mine: Any, place: Place, seconds: float, everywhere: bool
) -> list[Any | None] | None:
    import torch

    distributed: Any = torch.distributed
    store = distributed.TCPStore(
        place.host, place.port, is_master=False, timeout=datetime.timedelta(seconds=seconds)
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"rocm_passes/{name}/{attempt}/{rank}" for rank in range(place.size)]
    store.set(keys[place.rank], json.dumps(mine))
    if place.rank != 0 and not everywhere:
        return None
    until = time.monotonic() + seconds
    while not store.check(keys) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    return [json.loads(store.get(key)) if store.check([key]) else None for key in keys]

"""`rocm-passes bench` under torchrun: all ranks run the same form at once, and rank 0 has the
figures.
"""

from __future__ import annotations

import socket
from typing import Any

from rocm_passes.bench.script import Together, slowest
from rocm_passes.cli import ranks
from rocm_passes.report import folding
from rocm_passes.report.ledger import from_document, to_dict


class OnRanks(Together):
    """Ranks of torchrun, through the store of its agent."""

    def __init__(self, place: ranks.Place) -> None:
        self._place = place

    def variables(self, number: int) -> dict[str, str]:
        """Each run makes its process group on a port of its own: in the agent's store the addresses
        of the run before would still stand.
        """
        port = _free_port() if self._place.rank == 0 else None
        found = ranks.gathered(f"port {number}", port, self._place, everywhere=True) or [port]
        return {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(found[0])}

    def failed(self, number: int, mine: str, seconds: float) -> str:
        found = ranks.gathered(f"run {number}", mine, self._place, seconds, everywhere=True) or []
        said = ["no word of it" if each is None else each for each in found]
        return "; ".join(f"rank {rank}: {each}" for rank, each in enumerate(said) if each)


def together() -> Together:
    place = ranks.of_this_process()
    return Together() if place is None else OnRanks(place)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])


def of_all_ranks(
    rows: list[dict[str, Any]], ledger: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any], str] | None:
    """Under torchrun, on rank 0: the rows of the slowest ranks, and the ledgers as one. None on the
    other ranks. Otherwise what this process has.
    """
    place = ranks.of_this_process()
    if place is None:
        return rows, ledger, ""
    found = ranks.gathered("bench", [rows, ledger], place)
    if found is None:
        return None
    given = {rank: each for rank, each in enumerate(found) if each is not None}
    ledgers = {rank: from_document(each[1]) for rank, each in given.items() if each[1]}
    folded = to_dict(folding.folded(ledgers), ledger.get("environment"))
    merged = slowest({rank: each[0] for rank, each in given.items()})
    return merged, folded, f"; {folding.named(given)}, of which the slowest counts"

"""What passes over the whole graph did outside of the sites: one `Change` for each place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: What a change promises of values. "exact": the bits of the unchanged graph. "close": it may round
#: elsewhere, or sum in another order. "eager": eager's values, where Inductor's own code has
#: others.
CONTRACTS = ("exact", "close", "eager")
#: What became of a change. "taken": the compiled graph has it; "failed": it was taken back.
CHANGE_VERDICTS = ("taken", "failed")


@dataclass(frozen=True)
class Change:
    """One place where a pass changed the graph, outside of the sites.

    did: what was done, in words; alike at like places. reason: why values stay as `contract` says,
    or why the change was taken back.
    step: the pass. location, module, component: as of a site.
    stays: it was made before the graph was split into forward and backward, and stands also where
    the graph is compiled again without rewrites.
    """

    did: str
    reason: str
    contract: str = "exact"
    step: str = ""
    verdict: str = "taken"
    location: str = ""
    module: str = ""
    component: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stays: bool = False

    def __post_init__(self) -> None:
        assert self.contract in CONTRACTS, self.contract
        assert self.verdict in CHANGE_VERDICTS, self.verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Change:
        return Change(**found)

    def taken_back(self, reason: str) -> Change:
        return replace(self, verdict="failed", reason=reason)

    def kind(self) -> tuple[str, ...]:
        """What like changes have in common: they are shown as one group."""
        return self.step, self.verdict, self.did, self.contract, self.reason

    def said(self) -> str:
        """`exact: it is x to the bit`, or why it was taken back."""
        return f"{self.contract if self.verdict == 'taken' else 'taken back'}: {self.reason}"

    def __str__(self) -> str:
        where = self.location or self.module or "unknown place"
        return f"{self.step} at {where}: {self.did}: {self.said()}"

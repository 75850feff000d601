"""Ledgers of several ranks as one: a graph that ranks compiled alike stands there once."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rocm_passes.report.ledger import Ledger


def folded(by_rank: Mapping[int, Sequence[Ledger]]) -> list[Ledger]:
    """In the order of the first rank that compiled each graph. Times are those of the slowest.

    Graphs are alike where every entry and note is: idioms, shapes, choices and their reasons. (The
    names of nodes may differ.) A rank that compiled the same graph twice has it twice.
    """
    alike: dict[tuple[str, int], dict[int, Ledger]] = {}
    for rank, graphs in sorted(by_rank.items()):
        seen: collections.Counter[str] = collections.Counter()
        for graph in graphs:
            content = _content(graph)
            alike.setdefault((content, seen[content]), {})[rank] = graph
            seen[content] += 1
    return [_one(found) for found in alike.values()]


def _one(found: Mapping[int, Ledger]) -> Ledger:
    first = next(iter(found.values()))
    return replace(
        first,
        graph=f"{first.graph} of {named(found)}",
        ranks=tuple(found),
        seconds=max(g.seconds for g in found.values()),
        from_cache=all(g.from_cache for g in found.values()),
    )


def named(ranks: Iterable[int]) -> str:
    """`rank 3`, or `ranks 0-3, 6`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    return f"rank{'s' if sum(map(len, runs)) != 1 else ''} {', '.join(words)}"


def summary(graphs: Iterable[Ledger]) -> str:
    """Which ranks, and how many graphs not all of them have; empty where there are no ranks."""
    graphs = list(graphs)
    ranks = {rank for g in graphs for rank in g.ranks}
    if not ranks:
        return ""
    apart = sum(set(g.ranks) != ranks for g in graphs)
    agree = "which agree" if not apart else f"of which {apart} are not on all of them"
    return f"on {named(ranks)}, {agree}"


def _content(graph: Ledger) -> str:
    found = graph.to_dict()
    for site in found["sites"]:
        site["inputs"] = [{**given, "name": ""} for given in site["inputs"]]
    return json.dumps([found["looked_for"], found["notes"], found["sites"], found["changes"]])

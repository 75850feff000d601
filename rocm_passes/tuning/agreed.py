"""What a choice goes by: what this process knows or measures, or what a group's ranks agree on.

A process group starts from one rank's measurements, and each later one is decided once for all
ranks (ranks.py). Without a group, this process's own file and the shipped ones count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rocm_passes.options import Options
from rocm_passes.policy.bounds import RANK_SHARE
from rocm_passes.target import Target
from rocm_passes.tuning import budget, ranks
from rocm_passes.tuning.known import Known, known, shipped_for
from rocm_passes.tuning.ranks import card
from rocm_passes.tuning.store import Measured, store

Measure = Callable[[], Measured | None]

#: The calls that this process has measured although they were known.
_ANEW: set[str] = set()


def asked(
    options: Options,
    target: Target,
    where: str,
    key: str,
    names: Sequence[str],
    measure: Measure | None,
) -> Known | None:
    """What is known of these candidates, which are measured where one of them is not known.

    measure: None where nothing may be measured now.
    """
    found = None if _anew(key, options) else find(options, target, where, key)
    if measure is None or (found is not None and found.covers(names)):
        return found
    return measured(options, target, where, key, names, measure) or found


def _anew(key: str, options: Options) -> bool:
    """Is it to be measured although it is known? Once a process, with select="measure"."""
    if options.select != "measure" or key in _ANEW:
        return False
    _ANEW.add(key)
    return True


def find(options: Options, target: Target, where: str, key: str) -> Known | None:
    """What is known of a call before anything is measured."""
    group = ranks.current() if target.is_gpu else None
    if group is None:
        return known(options, where, key)
    kept = store(options.choices)
    found = group.base(kept.choices, card(target)).get(where, {}).get(key)
    return Known(found, "by the process group") if found is not None else shipped_for(where, key)


def measured(
    options: Options,
    target: Target,
    where: str,
    key: str,
    names: Sequence[str],
    measure: Measure,
) -> Known | None:
    """Measure what is not known of these candidates, once in a process group. None: rules decide.

    Waiting for another rank is time of the budget, as measuring is.
    """
    group = ranks.current() if target.is_gpu else None
    if group is None:
        found = measure() if options.tune_seconds > 0 else None
        return Known(found) if found is not None else None
    kept = store(options.choices)
    left = budget.BUDGET.remaining(options.tune_seconds)
    mine = kept.find(where, key)
    if left > 0 and mine is not None and not Known(mine).covers(names):
        mine = None
    limit = min(left, RANK_SHARE.value * options.tune_seconds)
    may_measure = measure if left > 0 else None
    decision = group.decided(where, key, card(target), mine, may_measure, limit)
    budget.BUDGET.spend(decision.waited)
    if decision.measured is None:
        return None
    if decision.rank != group.rank:
        kept.add(where, key, decision.measured)
    return Known(decision.measured, f"on rank {decision.rank}")

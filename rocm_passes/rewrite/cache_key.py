"""What Inductor's cache key must hold besides what Inductor itself hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rocm_passes.kernels.aiter import contract, installation
from rocm_passes.kernels.aiter.aiter_conv import needs_conv
from rocm_passes.kernels.aiter.conv_contract import ConvEntry
from rocm_passes.options import Options
from rocm_passes.target import Target, unmet
from rocm_passes.tuning import agreed, sites, tuning
from rocm_passes.tuning.consulted import SITE, Asked, Record, record_of


@cache
def _source_hash() -> str:
    """Of every source file of the package: a changed kernel or matcher must miss the caches."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _convolutions(target: Target) -> list[str | None]:
    """Which convolutions of aiter's can run: FlyDSL is a package of its own, which comes and goes
    without aiter.
    """
    if target.vendor != "amd":
        return []
    entries: tuple[ConvEntry, ...] = ("flydsl", "triton", "winograd")
    return [unmet([needs_conv(entry)], target) for entry in entries]


def cache_key(options: Options, target: Target, kept: Sequence[str]) -> str:
    """What can change the generated code and what Inductor does not itself hash, less the
    measurements.
    """
    aiter = installation.find()
    parts = [
        _source_hash(),
        repr(options),
        repr(target),
        repr(tuple(kept)),
        repr((aiter.status, aiter.version, sorted(aiter.features), contract.without_ck())),
        repr(_convolutions(target)),
        repr(torch.version.hip or torch.version.cuda),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def with_choices(key: str, asked: Record) -> str:
    """The key with the choices of the graph at hand."""
    return hashlib.sha256(f"{key}\0{asked.token}".encode()).hexdigest()


def recalled(key: str, options: Options, target: Target) -> Record:
    """What the graph of that key asked of the measurements, with the token that it has now."""

    def answer(each: Asked) -> str:
        found = agreed.find(options, target, each.machine, each.key)
        if found is None:
            return ""
        if each.kind == SITE:
            return sites.decide(found.times, each.able, each.hidden) or ""
        return tuning.fastest(each.able, found.times, each.mib_at_most, each.given) or ""

    # What a spent budget left to the rules stays with them: to measure it now would compile the
    # graph anew. `rocm-passes tune` measures it, and then the answers differ.
    asks_again = options.select == "measure" and options.tune_seconds > 0
    may_measure = target.is_gpu and asks_again
    return record_of(key, answer, may_measure)

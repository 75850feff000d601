"""What a ShapeEnv has been told: a search over a graph must leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

from rocm_passes.fx.builder import fake_mode_of


def shape_env_of(graph: fx.Graph) -> Any:
    mode = fake_mode_of(graph)
    assert mode is not None and mode.shape_env is not None, "the graph has no symbolic sizes"
    return mode.shape_env


def told(env: Any) -> dict[str, Any]:
    """Guards, specialisations and what is known of each symbol."""
    return {
        "guards": [str(g.expr) for g in env.guards],
        "replacements": {str(a): str(b) for a, b in env.replacements.items()},
        "divisible": {str(d) for d in env.divisible},
        "ranges": {str(s): str(r) for s, r in env.var_to_range.items()},
        "deferred": {
            str(s): [str(a.expr) for a in r] for s, r in env.deferred_runtime_asserts.items()
        },
    }


@contextmanager
def no_new_guards(graph: fx.Graph) -> Iterator[None]:
    """Within it nothing may be asked of the graph's symbolic sizes that puts a guard on them."""
    env = shape_env_of(graph)
    before = told(env)
    yield
    after = told(env)
    assert after == before, {k: (before[k], after[k]) for k in before if before[k] != after[k]}

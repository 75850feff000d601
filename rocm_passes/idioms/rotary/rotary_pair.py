"""q and k rotated by the same tables, as one call.

Before (FLUX)                                       After
    q2 = convert(q * cos + turned(q) * sin, bf16)       q2, k2 = rocm_passes.rotary_pair(q, k, cos,
    k2 = convert(k * cos + turned(k) * sin, bf16)               sin, ...)

When it pays: as `rotary`, with half the launches, and table rows read once for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from rocm_passes.fx.convexity import Contraction
from rocm_passes.idioms.rotary import rotary
from rocm_passes.idioms.rotary.rotations import Rotation, rotations
from rocm_passes.idioms.rotary.tables import merge_tables, share_tables
from rocm_passes.ops import rotary_pair as op
from rocm_passes.ops.operator import Call
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.policy.bounds import PAIRED_WITHIN
from rocm_passes.rewrite.match import Context, Found, Idiom, Match

NAME = "rotary_pair"
COVERS = {"rotary": 2}


def find(graph: fx.Graph, context: Context) -> Iterator[Found]:
    found = rotations(graph)
    merge_tables(found)
    for q, k in pairs(found, Contraction(graph)):
        recipes = recipes_of(q, k, context)
        if recipes is not None:
            yield _site(q, k, *recipes)


def recipes_of(q: Rotation, k: Rotation, context: Context) -> tuple[Recipe, Recipe] | None:
    """The recipes of two rotations by one set of tables: the axes of both are named alike.

    Which axis holds the heads is read off q's strides where the tables do not tell, and k's may
    differ.
    """
    recipe = rotary.recipe_of(q, context)
    if not isinstance(recipe, Recipe):
        return None
    k_recipe = rotary.recipe_of(k, context, like=recipe)
    if not isinstance(k_recipe, Recipe) or k_recipe.heads != recipe.heads:
        return None
    return recipe, k_recipe


def pairs(found: list[Rotation], contraction: Contraction) -> Iterator[tuple[Rotation, Rotation]]:
    """Neighbours in graph order that share tables and do not need each other: one attention's q and
    k.
    """
    waiting: list[Rotation] = []
    for rotation in found:
        if rotation.leak is not None:
            continue
        for other in reversed(waiting[-int(PAIRED_WITHIN.value) :]):
            both = _site_of(other, rotation)
            if share_tables(other, rotation) and both.obstacle(contraction) is None:
                waiting.remove(other)
                yield other, rotation
                break
        else:
            waiting.append(rotation)


@dataclass(frozen=True)
class _Reads(Call):
    """What both rotations read."""

    q: fx.Node
    k: fx.Node
    tables: Sequence[fx.Node]


def _site_of(q: Rotation, k: Rotation) -> Match:
    reads = _Reads(q.x, k.x, q.tables)
    return Match(q.anchor, frozenset(q.nodes | k.nodes), (q.result, k.result), reads, COVERS)


def _site(q: Rotation, k: Rotation, recipe: Recipe, k_recipe: Recipe) -> Match:
    arguments: dict[str, Any] = {"q": q.x, "k": k.x, "tables": list(q.tables)}
    call = op.SpelledRotaryPair(**arguments, recipe=recipe, k_recipe=k_recipe)
    nodes = frozenset(q.nodes | k.nodes)
    return Match(q.anchor, nodes, (q.result, k.result), call, COVERS, q.parameters())


IDIOM = Idiom(NAME, find, op.ROTARY_PAIR.lowerings, op.ROTARY_PAIR, fuses=True)

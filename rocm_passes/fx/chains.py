"""Chains of views: a value, what it is a view of, and so on, to the node whose memory it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from rocm_passes.fx import nodes as n


@dataclass(frozen=True)
class Root:
    """The last node of a chain, as it was before a change.

    value: how its memory lay. views: the nodes in front of it, the innermost last.
    """

    value: torch.Tensor
    views: tuple[fx.Node, ...]

    def now(self, chain: Sequence[fx.Node]) -> fx.Node | None:
        """What stands in its place in the chain as it is after the change.

        It is what its innermost view reads, or the first node where there was no view. A shape
        alone would not tell: of a square result, a transposed one has the same.
        """
        if not self.views:
            return self._checked(chain[:1])
        if self.views[-1] in chain:
            return self._checked(chain[chain.index(self.views[-1]) + 1 :][:1])
        # The view was replaced as well.
        alike = (node for node in reversed(chain) if self._checked([node]) is not None)
        return next(alike, None)

    def _checked(self, found: Sequence[fx.Node]) -> fx.Node | None:
        alike = found and n.value(found[0]) is not None
        alike = alike and n.same_shape(n.shape(found[0]), self.value.shape)
        return found[0] if alike else None


def root(chain: Sequence[fx.Node]) -> Root | None:
    """None where it is no tensor."""
    value = n.value(chain[-1])
    return None if value is None else Root(value, tuple(chain[:-1]))

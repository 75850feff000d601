"""Passes on one of Inductor's hooks: the user's own, then those of this package.

What a hook takes depends on the torch version:

    2.11   one pass, called with the graph
    2.12   also one CustomInferenceAwareGraphPass, called with `is_inference` too (post-grad hooks)
    2.13   also a list or a tuple of passes, each called in its own way
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass

#: The public class is asked for by name: torch 2.11 has none.
_INFERENCE_AWARE: type | None = getattr(custom_graph_pass, "CustomInferenceAwareGraphPass", None)
#: This function reads the lists, from torch 2.13 on.
_TAKES_SEVERAL = hasattr(custom_graph_pass, "get_custom_graph_passes")


class PassSequence(CustomGraphPass):
    """Passes in order, as the one pass that a hook of torch 2.11 and 2.12 takes."""

    def __init__(self, passes: Sequence[Callable[..., None]]) -> None:
        self.passes = tuple(passes)

    def uuid(self) -> Any:
        """None, and so no caching, where one pass has none: the same as for that pass alone."""
        uuids = [p.uuid() if isinstance(p, CustomGraphPass) else None for p in self.passes]
        return tuple(uuids) if all(uuids) else None

    def __call__(self, graph: fx.Graph, **about: bool) -> None:
        for each in self.passes:
            each(graph, **(about if _is_inference_aware(each) else {}))


if _INFERENCE_AWARE is not None:
    #: Inductor calls it with `is_inference`, which it hands to those of its passes that take it.
    InferenceAwareSequence: type[PassSequence] = type(
        "InferenceAwareSequence", (PassSequence, _INFERENCE_AWARE), {}
    )
else:
    InferenceAwareSequence = PassSequence


def after_the_users(patch: Mapping[str, Any], hook: str, ours: CustomGraphPass) -> Any:
    """The value for Inductor's option `hook` that runs the user's passes and then ours.

    patch: what this compile changes in Inductor's config; it has the user's passes where they came
    as options.
    """
    theirs = patch[hook] if hook in patch else getattr(inductor_config, hook)
    if theirs is None:
        return ours
    passes = (*theirs, ours) if isinstance(theirs, (list, tuple)) else (theirs, ours)
    if _TAKES_SEVERAL:
        return passes
    if any(_is_inference_aware(p) for p in passes):
        return InferenceAwareSequence(passes)
    return PassSequence(passes)


def _is_inference_aware(found: object) -> bool:
    return _INFERENCE_AWARE is not None and isinstance(found, _INFERENCE_AWARE)

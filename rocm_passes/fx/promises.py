"""What a graph's readers rely on beside the values, taken down before a rewrite and kept after it:
strides that a reader sees, and that outputs share no memory which they did not share before.
"""

from __future__ import annotations

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import aliasing, strides


class Promises:
    """Those of one graph, as it is when this is made."""

    def __init__(self, graph: fx.Graph, fake_mode: FakeTensorMode) -> None:
        self._graph, self._fake_mode = graph, fake_mode
        self._shared = aliasing.sharing(graph)
        self._sources = aliasing.sources(graph)
        self._laid_out = strides.output_strides(graph)
        self._promised = strides.promises(graph)

    def keep_apart(self) -> list[fx.Node]:
        """Returns what was copied."""
        copied = aliasing.keep_apart(self._graph, self._shared, self._fake_mode)
        aliasing.check_sources(self._graph, self._sources)
        return copied

    def keep_strides(self, rewritten: bool) -> list[fx.Node]:
        """rewritten: what reads strides inside the graph may stand behind a rewrite. Returns what
        was laid out anew.
        """
        inside = []
        if rewritten:
            inside = strides.keep_promises(self._graph, self._promised, self._fake_mode)
        return [
            *inside,
            *strides.keep_output_strides(self._graph, self._laid_out, self._fake_mode),
        ]

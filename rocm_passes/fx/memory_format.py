"""What the memory format of a graph's convolutions depends on; `policy/layout.py` decides it for
the whole graph.

Between neighbours of unlike format stands a conversion that reads and writes the whole activation.
Pointwise code, norms, upsampling and cats take on the format of the convolutions round them, so
these decide.
"""

from __future__ import annotations

from torch import fx

from rocm_passes.fx import nodes as n


def mixes_pixels(node: fx.Node) -> bool:
    """Not a matrix product in disguise (1x1, or a patch embedding)."""
    kernel = n.shape(node.args[1])[2:]
    stride = node.args[3]
    return any(k > 1 for k in kernel) and tuple(kernel) != tuple(stride)  # type: ignore[arg-type]


def suits(node: fx.Node) -> bool:
    """Grouped convolutions with several channels a group are slow channels-last; they keep their
    layout.

    So do those of symbolic size, as in Inductor: strides cannot be asked for before sizes are
    numbers.
    """
    groups = node.args[8]
    if not all(isinstance(size, int) for size in n.shape(node.args[0])):
        return False
    return bool(groups == 1 or n.shape(node.args[1])[1] == 1)

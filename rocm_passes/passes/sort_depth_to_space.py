"""The channels of a convolution in front of a depth-to-space, sorted so that whole runs of them
move.

An upsampler's convolution makes S pixels of each, as channels (c, s); a depth-to-space (pixel
shuffle) sorts them into place. Channels-last in memory, the C channels of a pixel then lie S apart,
and what reads the shuffled video, which Inductor does not write out, gathers them one by one.
Sorted as (s, c) they are one run. The weight's rows and the bias are sorted instead; every element
is computed as before. A result that several read is then written out once, channels-last: Inductor
would have each of them go through the shuffle.

Before (LTX-Video's upsampler)                  After
    y = convolution(x, w, bias)                     v = view(permute(view(w, [C, S, ...])), w's
    z = view(y, [N, C, 2, 2, 2, T, H, W])                   shape)
    u = permute(z, [0, 1, 5, 2, 6, 3, 7, 4])        y = convolution(x, v, bias, sorted alike)
    r = slice(view(u))                              z = permute(view(y, [N, 2, 2, 2, C, T, H, W]),
    norm(r), r + ...                                        ...)
                                                    u = permute(z, [0, 1, 5, 2, 6, 3, 7, 4])
                                                    r = channels_last(slice(view(u)))
                                                    norm(r), r + ...

On an H200 three kernels of LTX-Video's decoder read its last upsampler so, at a third of the
memory's rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import fx
from torch._inductor import inductor_prims
from torch._prims_common import make_channels_last_strides_for
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.fx import memory_format
from rocm_passes.fx import nodes as n
from rocm_passes.fx.builder import Builder
from rocm_passes.fx.nodes import aten
from rocm_passes.idioms.convolution.videos import SORTED_BY
from rocm_passes.policy.bounds import LEAST_RUN
from rocm_passes.report.changes import Change
from rocm_passes.rewrite.work import WholeGraphPass, Work, change_at

_WEIGHT, _BIAS, _TRANSPOSED, _GROUPS = 1, 2, 6, 8
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_MOVES = (*_VIEWS, aten.permute.default, aten.clone.default, aten.slice.Tensor)


_DID = "a convolution's channels are sorted by pixel for the depth-to-space behind it"
_REASON = "the weight's rows and the bias are sorted alike; each element is computed as before"


def sort_channels(
    graph: fx.Graph, fake_mode: FakeTensorMode, is_channels_last: Callable[[fx.Node], bool]
) -> list[Change]:
    """Sort the channels of the convolutions that run channels-last."""
    changes = []
    for convolution in n.calls(graph, aten.convolution.default):
        shuffle = _shuffle_behind(convolution)
        if shuffle is not None and is_channels_last(convolution):
            _sort(convolution, shuffle, fake_mode)
            changes.append(change_at(convolution, _DID, _REASON))
    return changes


def _shuffle_behind(convolution: fx.Node) -> fx.Node | None:
    """The view [N, C, s..., *spatial] of the convolution's result, where it alone reads it, and a
    permutation then leaves N and C in front.
    """
    split = n.only_user(convolution)
    if (
        convolution.args[_TRANSPOSED]
        or convolution.args[_GROUPS] != 1
        or not n.is_call(split, *_VIEWS)
    ):
        return None
    sizes, (batch, channels, *spatial) = n.shape(split), n.shape(convolution)
    if not all(isinstance(size, int) for size in (*sizes, batch, channels, *spatial)):
        return None
    factors = sizes[1 : len(sizes) - len(spatial)]
    if sizes[0] != batch or list(sizes[len(sizes) - len(spatial) :]) != spatial or len(factors) < 2:
        return None
    permuted = n.only_user(split)
    if not n.is_call(permuted, aten.permute.default):
        return None
    stays = list(n.arg(permuted, 1))[:2] == [0, 1]
    return split if stays and factors[0] >= LEAST_RUN.value and factors[0] < channels else None


def _sort(convolution: fx.Node, split: fx.Node, fake_mode: FakeTensorMode) -> None:
    graph = convolution.graph
    batch, run, *rest = n.shape(split)
    spatial = n.shape(convolution)[2:]
    factors = rest[: len(rest) - len(spatial)]
    pixels = math.prod(factors)
    with graph.inserting_before(convolution):
        b = Builder(graph, fake_mode, convolution)

        def by_pixel(rows: fx.Node) -> fx.Node:
            """Rows (c, s) as rows (s, c)."""
            inner = list(n.shape(rows)[1:])
            apart = b(aten.reshape.default, rows, [run, pixels, *inner])
            turned = b(aten.permute.default, apart, [1, 0, *range(2, 2 + len(inner))])
            whole: fx.Node = b(aten.reshape.default, turned, [run * pixels, *inner])
            return whole

        arguments = list(convolution.args)
        arguments[_WEIGHT] = by_pixel(n.argument(convolution, _WEIGHT))
        if arguments[_BIAS] is not None:
            arguments[_BIAS] = by_pixel(n.argument(convolution, _BIAS))
        sorted_by_pixel = b(aten.convolution.default, *arguments)
        sorted_by_pixel.meta[SORTED_BY] = pixels
        apart = b(aten.reshape.default, sorted_by_pixel, [batch, *factors, run, *spatial])
        count = len(factors)
        behind = range(2 + count, 2 + count + len(spatial))
        placed = b(aten.permute.default, apart, [0, 1 + count, *range(1, 1 + count), *behind])
    split.replace_all_uses_with(placed)
    result = _last_of_the_moves(placed)
    if (
        len(result.users) > 1
        and n.shape(result)[:2] == (batch, run)
        and len(n.shape(result)) == 2 + len(spatial)
    ):
        _write_out(result, fake_mode)
    graph.erase_node(split)
    graph.erase_node(convolution)


def _last_of_the_moves(node: fx.Node) -> fx.Node:
    """Past what only moves elements, as far as each is alone in reading the one before."""
    while n.is_call(n.only_user(node), *_MOVES):
        (node,) = node.users
    return node


def _write_out(result: fx.Node, fake_mode: FakeTensorMode) -> None:
    graph = result.graph
    with graph.inserting_after(result):
        b = Builder(graph, fake_mode, result)
        written = b(
            inductor_prims.force_stride_order,
            result,
            make_channels_last_strides_for(n.shape(result)),
        )
    result.replace_all_uses_with(written, delete_user_cb=lambda user: user is not written)


def _applies(work: Work) -> bool:
    return work.channels_last and work.on_gpu and work.may_rewrite


def _run(work: Work) -> Sequence[Change]:
    return sort_channels(work.graph, work.fake_mode, memory_format.suits)


PASS = WholeGraphPass("sort_depth_to_space", _run, _applies)

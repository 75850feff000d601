"""Images and videos: GroupNorm, channel norms, convolutions with pads, frames in front, slices,
upsampling.
"""

from __future__ import annotations

import math

from tests.fuzz import norms
from tests.fuzz.draft import Draft, Unfit


def group_norm(d: Draft, x: str) -> str:
    """GroupNorm, perhaps with SiLU, SpatialNorm's multiplier and addend, behind a convolution's
    bias.
    """
    channels, dtype = d.shape(x)[1], d.dtype_of(x)
    if len(d.shape(x)) < 3 or math.prod(d.shape(x)[2:]) < 2:
        raise Unfit("no space")
    groups = d.one(*[g for g in (1, 2, 3, 4, 6) if channels % g == 0])
    weight = norms.weight_of(d, channels, dtype) if d.maybe(0.7) else "None"
    if weight != "None" and d.shape(weight) != (channels,):
        weight = "None"
    bias = f"{d.tensor([channels], dtype)}" if weight != "None" and d.maybe(0.8) else "None"
    read = f"{x}.float()" if dtype != "f32" and weight == "None" and d.maybe(0.3) else x
    y = d.say(f"F.group_norm({read}, {groups}, {weight}, {bias}, {d.one(*norms.EPSILONS)})")
    if d.maybe(0.2):
        multiplier, addend = plane(d, y), plane(d, y)
        y = d.say(f"{y} * {multiplier} + {addend}")
    y = activated(d, y)
    return d.say(f"{y}.to({dtype})") if d.dtype_of(y) != dtype and d.maybe(0.8) else y


def channel_norm(d: Draft, x: str) -> str:
    """RMSNorm over dim 1, in the forms of Wan's and of LTX's VAE."""
    channels, dtype, rank = d.shape(x)[1], d.dtype_of(x), len(d.shape(x))
    wide = d.say(f"{x}.float()") if dtype != "f32" and d.maybe(0.6) else x
    scale = d.one(math.sqrt(channels), 1.0, 2.0)
    form = d.random.randrange(5)
    if form < 2:
        y = d.say(f"F.normalize({wide}, dim=1, eps={d.one(1e-12, 1e-5, 1.0)})")
        y = d.say(f"{y}.to({dtype})") if d.dtype_of(y) != dtype and d.maybe(0.7) else y
        y = d.say(f"{y} * {scale}") if scale != 1.0 else y
    elif form < 4:
        square = d.one(f"{wide}.pow(2)", f"{wide} ** 2", f"{wide} * {wide}")
        dim = d.one(1, 1, 1, 1, 2)
        y = d.say(
            f"{wide} / torch.sqrt(({square}).mean({dim}, keepdim=True) + {d.one(*norms.EPSILONS)})"
        )
    else:
        moved = d.say(f"{wide}.movedim(1, -1)")
        y = d.say(f"{norms.rms_norm(d, moved)}.movedim(-1, 1)")
    if d.maybe(0.6):
        gamma = d.tensor(
            [channels, *[1] * (rank - 2)], d.one(dtype, dtype, "f32"), scale=0.5, add=1.0
        )
        y = d.say(d.one(f"{y} * {gamma}", f"{gamma} * {y}"))
    if d.maybe(0.25):
        y = d.say(f"{y} + {d.tensor([channels, *[1] * (rank - 2)], dtype)}")
    return activated(d, y)


def activated(d: Draft, y: str) -> str:
    return (
        d.say(
            d.one("F.silu({0})", "F.silu({0})", "{0} * torch.sigmoid({0})", "F.relu({0})").format(y)
        )
        if (d.maybe(0.6))
        else y
    )


def plane(d: Draft, y: str) -> str:
    """A multiplier or addend of a norm's result: of full size, upsampled from a smaller one, or a
    channel's.
    """
    n, c, *space = d.shape(y)
    form = d.random.randrange(4)
    if form == 0:
        return d.tensor([n, c, *[1] * len(space)], scale=0.5)
    if form == 1 and all(s % 2 == 0 for s in space):
        small = d.tensor([n, c, *[s // 2 for s in space]], scale=0.5)
        return d.say(f"F.interpolate({small}, scale_factor=2.0, mode='nearest')")
    if form == 2:
        small = d.tensor([n, c, *[1] * len(space)], scale=0.5)
        return d.say(f"F.interpolate({small}, size={tuple(space)})")
    return d.tensor([n, c, *space], scale=0.5)


def convolution(d: Draft, x: str) -> str:
    """A convolution of x, padded in front, by itself, or not."""
    rank = len(d.shape(x)) - 2
    if rank not in (2, 3):
        raise Unfit("neither an image nor a video")
    if d.shape(x)[1] == 0:
        raise Unfit("no channels")
    kernel = [d.one(1, 3, 3, 2) for _ in range(rank)]
    if d.maybe(0.25):
        kernel = [1] * rank
    x, own = padded(d, x, kernel)
    channels, out = d.shape(x)[1], d.size(2, 4)
    groups = 2 if channels % 2 == 0 and out % 2 == 0 and d.maybe(0.1) else 1
    scale = round(1 / math.sqrt(channels * math.prod(kernel) / groups), 3)
    weight = d.tensor([out, channels // groups, *kernel], d.dtype_of(x), scale=scale)
    bias = d.tensor([out], d.dtype_of(x)) if d.maybe(0.6) else "None"
    stride = [d.one(1, 1, 1, 2) for _ in range(rank)]
    dilation = d.one(1, 1, 1, 1, 2)
    return d.say(
        f"F.conv{rank}d({x}, {weight}, {bias}, stride={stride}, padding={own}, "
        f"dilation={dilation}, groups={groups})"
    )


def padded(d: Draft, x: str, kernel: list[int]) -> tuple[str, list[int]]:
    """x with a pad written in front or not, and the convolution's own padding."""
    rank = len(kernel)
    own = [d.one(0, k // 2) for k in kernel]
    if d.maybe(0.45):
        return x, own
    sides = [
        side
        for k in reversed(kernel)
        for side in d.one((0, 0), (k // 2, k // 2), (0, 1), (k - 1, 0))
    ]
    mode = d.one("constant", "constant", "replicate", "reflect")
    if not any(sides):
        return x, own
    pad = (
        f"F.pad({x}, {sides}"
        + (f", mode='{mode}'" if mode != "constant" else d.one("", "", "", ", value=0.5"))
        + ")"
    )
    return d.say(pad), [0] * rank if d.maybe(0.6) else own


def frames_in_front(d: Draft, x: str) -> str:
    """A causal convolution's cache: frames joined in front, some kept for the next chunk."""
    if len(d.shape(x)) != 5:
        raise Unfit("no video")
    n, c, _, h, w = d.shape(x)
    form = d.random.randrange(4)
    if form == 0:
        joined = d.say(f"torch.cat([{x}[:, :, :1].repeat(1, 1, {d.one(1, 2)}, 1, 1), {x}], 2)")
    elif form == 1:
        joined = d.say(f"torch.cat([{x}[:, :, :1], {x}[:, :, :1], {x}], 2)")
    else:
        cache = d.tensor([n, c, d.one(1, 2), h, w], d.dtype_of(x))
        joined = d.say(f"torch.cat([{cache}, {x}], 2)")
    if d.maybe(0.5):
        d.say(f"{joined}[:, :, -{d.one(1, 2)}:]")
    if d.maybe(0.2):
        d.say(f"{joined}[:, :, {d.one('1:3', ':2', ':-1', '::2')}]")
    return convolution(d, joined)


def upsampled(d: Draft, x: str) -> str:
    """Nearest upsampling, of all frames or all but the first, often in front of a convolution."""
    rank = len(d.shape(x)) - 2
    if rank not in (2, 3):
        raise Unfit("neither an image nor a video")
    factors = [d.one(1, 2, 2, 3) for _ in range(rank)]
    form = d.random.randrange(5)
    if form == 0 and rank == 3 and d.shape(x)[2] > 1:
        first = d.say(f"F.interpolate({x}[:, :, :1], scale_factor={[1.0, 2.0, 2.0]})")
        rest = d.say(f"F.interpolate({x}[:, :, 1:], scale_factor=2.0)")
        y = d.say(f"torch.cat([{first}, {rest}], 2)")
    elif form == 1:
        text = "".join(f".repeat_interleave({f}, {i + 2})" for i, f in enumerate(factors) if f > 1)
        y = d.say(f"{x}{text or '.clone()'}")
    elif form == 2 and rank == 3:
        y = d.say(
            f"F.interpolate({x}.movedim(2, 1).flatten(0, 1), scale_factor=2.0, "
            "mode='nearest-exact')"
        )
        y = d.say(f"{y}.unflatten(0, ({d.shape(x)[0]}, {d.shape(x)[2]})).movedim(1, 2)")
    elif form == 3:
        size = tuple(s * f for s, f in zip(d.shape(x)[2:], factors, strict=True))
        y = d.say(f"F.interpolate({x}, size={size})")
    else:
        y = d.say(f"F.interpolate({x}, scale_factor={[float(f) for f in factors]}, mode='nearest')")
    y = group_norm(d, y) if d.maybe(0.2) else y
    return convolution(d, y) if d.maybe(0.7) else y


def depth_to_space(d: Draft, x: str) -> str:
    """A convolution whose channels become space."""
    y = convolution(d, x)
    n, c, *space = d.shape(y)
    if c % 4 or len(space) != 3:
        raise Unfit("its channels do not become space")
    t, h, w = space
    order = d.one("(0, 1, 4, 5, 2, 6, 3)", "(0, 3, 4, 5, 1, 6, 2)")
    channels = f"{c // 4}, 2, 2" if order.startswith("(0, 1") else f"2, 2, {c // 4}"
    moved = d.say(f"{y}.reshape({n}, {channels}, {t}, {h}, {w}).permute{order}")
    sizes = f"{n}, {c // 4}, {t}, {2 * h}, {2 * w}"
    return d.say(f"{moved}.reshape({sizes})")


def block(d: Draft, x: str) -> str:
    """norm, SiLU, pad, convolution: a residual block's half."""
    y = d.one(group_norm, group_norm, channel_norm)(d, x)
    y = d.one(convolution, convolution, frames_in_front)(d, y)
    if d.maybe(0.4):
        y = d.one(group_norm, channel_norm)(d, y)
    return y

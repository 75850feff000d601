"""What random choice seldom puts together: programs in which the guards against shared memory,
cycles and double readers have something to refuse.
"""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.norms import other_of

#: One program in so many has one of these.
ONE_IN = 8


def add(d: Draft, x: str) -> None:
    """Write one of them behind the program; what it gives is returned."""
    d.one(mutual_chains, frames_kept, first_frame_apart, bias_read_twice)(d, x)


def mutual_chains(d: Draft, x: str) -> None:
    """Two residual chains, each scaled by the other's sum: either can be one site, not both."""
    shape, dtype = d.shape(x), d.dtype_of(x) or "f32"
    if len(shape) < 2 or 0 in shape:
        shape = (2, 5, 8)
    sums = [d.say(f"{d.tensor(shape, dtype)} + {d.tensor(shape, dtype)}") for _ in range(2)]
    made = []
    for mine, other in (sums, sums[::-1]):
        scale = d.one(f"{other}.mean(-2, keepdim=True)", f"{other}", f"torch.tanh({other})")
        normed = f"F.layer_norm({mine}, ({shape[-1]},))"
        shift = d.one("", f" + {other_of(d, mine)}")
        made.append(d.say(f"{normed} * (1 + {scale}){shift}"))
    d.kinds.append("mutual_chains")
    d.returned += d.one([*sums, *made], made)


def frames_kept(d: Draft, x: str) -> None:
    """A causal convolution's cache, returned: behind the rewrite it can be an input, or another
    output.
    """
    frames = d.one(1, 2)
    cache, chunk = d.tensor([1, 4, frames, 4, 3]), d.tensor([1, 4, 2, 4, 3])
    chunk = d.say(f"F.group_norm({chunk}, 2)") if d.maybe(0.5) else chunk
    joined = d.say(f"torch.cat([{cache}, {chunk}], 2)")
    kept = d.say(f"{joined}[:, :, {d.one(f':{frames}', '-2:', f'{frames}:')}]")
    weight = d.tensor([2, 4, d.one(1, 2), 3, 3], scale=0.2)
    y = d.say(f"F.conv3d({joined}, {weight})")
    d.kinds.append("frames_kept")
    d.returned += d.one([kept, y], [kept, kept, y], [chunk, kept, y], [kept, y, f"{kept}"])


def first_frame_apart(d: Draft, x: str) -> None:
    """All frames but the first are doubled, then padded: the pad reads the small video."""
    video = d.tensor([1, 4, d.one(2, 3), 3, 4])
    first = d.say(f"F.interpolate({video}[:, :, :1], scale_factor=[1.0, 2.0, 2.0])")
    rest = d.say(f"F.interpolate({video}[:, :, 1:], scale_factor=2.0)")
    joined = d.say(f"torch.cat([{first}, {rest}], 2)")
    mode = d.one(", mode='replicate'", ", mode='replicate'", "")
    padded = d.say(f"F.pad({joined}, (1, 1, 1, 0, {d.one(1, 2)}, 0){mode})")
    weight = d.tensor([2, 4, 3, 3, 3], scale=0.1)
    d.kinds.append("first_frame_apart")
    d.returned.append(d.say(f"F.conv3d({padded}, {weight})"))


def bias_read_twice(d: Draft, x: str) -> None:
    """A norm that reads a convolution's result as its multiplier and addend too: the bias stays
    before all three.
    """
    rank = d.one(2, 3)
    image = d.tensor([1, 4, *[4, 3, 5][:rank]])
    weight, bias = d.tensor([4, 4, *[2] * rank], scale=0.2), d.tensor([4])
    c = d.say(f"F.conv{rank}d({image}, {weight}, {bias})")
    y = d.say(f"F.group_norm({c}, {d.one(1, 2)}) {d.one(f'* {c} + {c}', f'* {c} + {c}.sin()')}")
    d.kinds.append("bias_read_twice")
    d.returned.append(d.say(f"F.silu({y})") if d.maybe(0.3) else y)

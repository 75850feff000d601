"""Programs from seeds: a start, some idioms with glue between them, outputs of every kind."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import glue, norms, rare, rotations, videos
from tests.fuzz.draft import FLOATS, Draft, Unfit
from tests.fuzz.program import Program

Fragment = Callable[[Draft, str], str]

#: By the rank of what they read.
FRAGMENTS: dict[int, tuple[Fragment, ...]] = {
    2: (norms.rms_norm, norms.layer_norm, norms.chain),
    3: (norms.rms_norm, norms.layer_norm, norms.chain, norms.chain, norms.chain, videos.group_norm,
        videos.channel_norm),
    4: (rotations.rotation, rotations.rotation, rotations.q_and_k, rotations.q_and_k,
    videos.group_norm,
        videos.channel_norm, videos.convolution, videos.block, videos.upsampled, norms.rms_norm,
        norms.chain),
    5: (videos.group_norm, videos.channel_norm, videos.convolution, videos.convolution,
    videos.block, videos.block,
        videos.frames_in_front, videos.frames_in_front, videos.upsampled, videos.depth_to_space,
        norms.rms_norm),
}  # fmt: skip


def program(seed: int) -> Program:
    """The program of a seed, always the same one."""
    for attempt in range(50):
        draft = Draft(seed + attempt * 7_777_777)
        try:
            return _written(draft, seed)
        except Unfit:
            continue
    raise AssertionError(f"no program came of seed {seed}")


def _written(d: Draft, seed: int) -> Program:
    d.dtype = d.one("f32", "f32", "f32", "f32", "bf16", "bf16", "bf16", "f16", "f64")
    d.square = d.one(4, 8) if d.maybe(0.15) else None
    d.mode = _mode(d)
    x = start(d)
    if d.maybe(0.08):
        x = cyclic(d, x)
    # torch.compile takes several times as long as a graph: its programs are short.
    steps = d.one(1, 2, 2, 3, 4) if d.mode == "graph" else d.one(1, 1, 2)
    for _ in range(steps):
        x = _step(d, x)
    if d.mode == "compile":
        x = _in_control_flow(d, x)
    if d.maybe(0.12) and d.mode != "grad":
        x = d.attempt(lambda: glue.by_strides(d, x)) or x
    if seed % rare.ONE_IN == 5:
        rare.add(d, x)
    returned = [*outputs(d, x), *d.returned]
    if d.mode != "grad" and (seed % 4 == 2 or seed % (2 * rare.ONE_IN) == 13):
        glue.overwrite(d)
    return d.program(returned)


def _mode(d: Draft) -> str:
    """Most programs run our pass over one graph, which is fast. The others go through
    torch.compile.
    """
    return d.random.choices(["graph", "compile", "dynamic", "grad"], [93, 3, 2, 2])[0]


def start(d: Draft) -> str:
    """The first input: its rank says which idioms come, its strides are of every kind."""
    rank = d.one(2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5)
    batch = d.size(1, 1, 2, 3)
    sizes = {
        2: [d.size(1, 5, 7), d.size(8, 16, 6)],
        3: [batch, d.size(1, 5, 7, 12), d.size(8, 16, 12)],
        4: [batch, d.size(3, 4, 6), d.size(2, 3, 4, 6), d.size(4, 8, 8, 12)],
        5: [
            d.size(1, 1, 2) if not d.square else 4,
            d.size(4, 4, 8, 6),
            d.size(1, 2, 3, 4),
            d.size(3, 4),
            d.size(4, 3, 5),
        ],
    }[rank]
    if d.square:
        sizes = [4 if rank == 5 else d.square] * rank
    if d.maybe(0.03):
        sizes[d.random.randrange(rank)] = d.one(0, 1)
    x = _laid_out(d, sizes)
    d.kinds.append(f"rank {rank}")
    return x


def _laid_out(d: Draft, sizes: list[int]) -> str:
    """An input of those sizes that lies in memory in some way."""
    rank, scale = len(sizes), d.one(1.0, 1.0, 0.1, 3.0)
    cast = "" if d.dtype == "f32" else f".to({d.dtype})"
    scaled = f" * {scale}" if scale != 1.0 else ""
    form = d.random.randrange(10)
    if form < 5:
        return d.tensor(sizes, scale=scale)
    if form == 5:
        order = d.random.sample(range(rank), rank)
        back = [order.index(i) for i in range(rank)]
        listed = ", ".join(str(sizes[i]) for i in order)
        return d.input(f"(torch.randn({listed}){scaled}){cast}.permute({back})")
    if form == 6 and rank in (4, 5):
        last = "channels_last" if rank == 4 else "channels_last_3d"
        return d.input(
            f"(torch.randn({sizes}){scaled}){cast}.contiguous(memory_format=torch.{last})"
        )
    if form == 7:
        dim = d.random.randrange(rank)
        wider = [s + (2 if i == dim else 0) for i, s in enumerate(sizes)]
        return d.input(f"(torch.randn({wider}){scaled}){cast}.narrow({dim}, 1, {sizes[dim]})")
    if form == 8:
        dim = d.random.randrange(rank - 1)
        one = [1 if i == dim else s for i, s in enumerate(sizes)]
        return d.input(f"(torch.randn({one}){scaled}){cast}.expand({sizes})")
    return d.input(f"(torch.randn({sizes}) + {d.one(0.5, 3.0)}){cast}")


def _step(d: Draft, x: str) -> str:
    """One idiom, mostly on the latest value, and glue before or behind it."""
    source = x if d.maybe(0.8) else d.one(x, *d.variables()[-6:])
    if d.maybe(0.35):
        source = d.attempt(lambda: d.one(*glue.GLUE)(d, source)) or source
    y = _idiom(d, source)
    if y is None:
        return d.attempt(lambda: d.one(*glue.GLUE)(d, source)) or source
    if d.maybe(0.35):
        y = d.attempt(lambda: d.one(*glue.GLUE)(d, y)) or y
    return y


def _idiom(d: Draft, x: str) -> str | None:
    fragments = FRAGMENTS.get(len(d.shape(x)), ())
    for _ in range(4):
        if not fragments:
            return None
        fragment = d.one(*fragments)
        made = d.attempt(lambda f=fragment: f(d, x))  # type: ignore[misc]
        if made is not None:
            d.kinds.append(fragment.__name__)
            return made
    return None


def cyclic(d: Draft, x: str) -> str:
    """Two chains, each scaled by what the other makes."""
    y = norms.other_of(d, x)
    size, dim = d.shape(x)[-1], "-2, keepdim=True" if len(d.shape(x)) > 1 else "0"
    # Never the same sum twice: the difference of two equal chains would be noise.
    a, b = (d.say(f"{n} {sign} {norms.other_of(d, n)}") for n, sign in ((x, "+"), (y, "-")))
    first = d.say(f"F.layer_norm({a}, ({size},)) * (1 + {b}.mean({dim}))")
    second = d.say(f"F.layer_norm({b}, ({size},)) * (1 + {d.one(a, first)}.mean({dim}))")
    d.kinds.append("cyclic")
    return d.say(f"{first} - {second}")


def _in_control_flow(d: Draft, x: str) -> str:
    """A branch of cond, or a checkpointed part."""
    size = d.shape(x)[-1]
    norm = d.one(f"F.layer_norm(a, ({size},)) * 2", f"F.rms_norm(a, ({size},), None, 1e-5)",
                 "a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 0.02)")  # fmt: skip
    if d.maybe(0.5):
        d.kinds.append("cond")
        other = d.one("a * 2", "a.sin()", norm)
        return d.say(
            f"torch.cond({x}.sum() > {d.one(-1e6, 1e6)}, lambda a: {norm}, lambda a: {other}, "
            f"({x},))"
        )
    d.kinds.append("checkpoint")
    return d.say(f"checkpoint(lambda a: {norm}, {x})")


def outputs(d: Draft, last: str) -> list[str]:
    """The last value; now and then inner ones, views of them, an input, one twice."""
    found = [last]
    inner = [
        s.target for s in d.statements if s.target != last and d.values[s.target].dtype in FLOATS
    ]
    for _ in range(d.one(0, 0, 1, 1, 2, 3)):
        if inner:
            found.append(d.one(*inner))
    if d.maybe(0.1):
        viewed = d.one(*found)
        made = d.attempt(
            lambda: d.say(
                d.one(f"{viewed}.transpose(0, -1)", f"{viewed}[:1]", f"{viewed}.flatten()")
            )
        )
        found += [made] if made else []
    if d.maybe(0.03):
        found.append(d.one(*d.inputs))
    if d.maybe(0.03):
        found.append(last)
    return found if d.maybe(0.9) else found[::-1]

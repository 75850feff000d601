"""Rotary embeddings as people write them: pairs and halves, real, complex and by matrices, q beside
k, behind norms.
"""

from __future__ import annotations

from tests.fuzz import norms
from tests.fuzz.draft import Draft, Unfit

#: Where tokens and heads stand: "bshd" or "bhsd".
LAYOUTS = ("bshd", "bshd", "bhsd")


def rotation(d: Draft, x: str) -> str:
    """One rotation of x [B, S, H, D] or [B, H, S, D], or of its first channels or some of its
    tokens.
    """
    return rotated(d, x, d.one(*LAYOUTS), d.one(*SPELLINGS))


def q_and_k(d: Draft, q: str) -> str:
    """q and k by the same tables, each perhaps normed before, perhaps in another layout of
    memory.
    """
    k = norms.other_of(d, q)
    if d.maybe(0.25):
        k = d.say(f"{k}.transpose(1, 2).contiguous().transpose(1, 2)")
    layout, spelling = d.one(*LAYOUTS), d.one(*SPELLINGS)
    normed = d.maybe(0.6)
    both, tables = [], None
    for x in (q, k):
        if normed:
            x = norms.rms_norm(d, x)
            x = (d.attempt(lambda x=x: between(d, x)) or x) if d.maybe(0.15) else x
        tables = tables if tables and d.maybe(0.85) else Tables(d, x, layout)
        both.append(spelling(d, x, tables))
    if d.maybe(0.4):
        text = d.tensor([*d.shape(both[0])], d.dtype_of(both[0]) or "f32")
        dim = layout.index("s")
        return d.say(
            f"torch.cat([{text}, {both[0]}], {dim}) * torch.cat([{text}, {both[1]}], {dim})"
        )
    return (
        d.say(f"{both[0]} @ {both[1]}.transpose(-1, -2)")
        if d.maybe(0.4)
        else d.say(f"{both[0]} - {both[1]}")
    )


def between(d: Draft, x: str) -> str:
    """Dims that change places between the norm and the rotation."""
    return d.say(
        d.one(f"{x}.transpose(1, 2)", f"{x}.transpose(-1, -2)", f"{x}.flip(-1)", f"{x} * 1.5")
    )


def rotated(d: Draft, x: str, layout: str, spelling: object) -> str:
    shape = d.shape(x)
    if len(shape) != 4 or shape[-1] % 2 or shape[-1] < 2:
        raise Unfit("no pairs")
    part = d.random.random()
    axis = layout.index("s")
    if part < 0.15 and shape[axis] > 2:  # Some of the tokens.
        first = d.one(1, 2)
        index = ":, " * axis
        turned = spelling(d, d.say(f"{x}[{index}{first}:]"), None, layout)  # type: ignore[operator]
        kept = d.say(f"{x}[{index}:{first}]")
        pieces = f"{kept}, {turned}"
        if d.maybe(0.3):
            turned = spelling(d, d.say(f"{x}[{index}:-{first}]"), None, layout)  # type: ignore[operator]
            pieces = f"{turned}, {x}[{index}-{first}:]"
        return d.say(f"torch.cat([{pieces}], {axis})")
    if part < 0.3 and shape[-1] >= 4 and shape[-1] % 4 == 0:  # The first channels, or the last.
        half = shape[-1] // 2
        front = d.maybe(0.75)
        moved = d.say(f"{x}[..., :{half}]" if front else f"{x}[..., {half}:]")
        turned = spelling(d, moved, None, layout)  # type: ignore[operator]
        pieces = f"{turned}, {x}[..., {half}:]" if front else f"{x}[..., :{half}], {turned}"
        return d.say(f"torch.cat([{pieces}], -1)")
    return spelling(d, x, None, layout)  # type: ignore[operator,no-any-return]


class Tables:
    """Angles of x, and the tables that spellings make of them; each is an input, made once."""

    def __init__(self, d: Draft, x: str, layout: str) -> None:
        batch, width = d.shape(x)[0], d.shape(x)[-1]
        axis, head = layout.index("s"), layout.index("h")
        self._d = d
        sizes = [1, 1, 1]
        sizes[axis] = d.shape(x)[axis] if d.maybe(0.9) else 1
        sizes[0] = batch if d.maybe(0.15) else 1
        sizes[head] = d.shape(x)[head] if d.maybe(0.15) else 1
        self._rows, self._half = sizes, width // 2
        self._made: dict[str, str] = {}

    def _input(self, kind: str, expression: str) -> str:
        if kind not in self._made:
            self._made[kind] = self._d.input(expression)
        return self._made[kind]

    def _angles(self, last: int | None = None) -> str:
        return f"torch.rand({', '.join(map(str, self._rows))}, {last or self._half}) * 6.28"

    def narrow(self) -> tuple[str, str]:
        """cos and sin, an entry a pair."""
        return self._input("cos", f"({self._angles()}).cos()"), self._input(
            "sin", f"({self._angles()}).sin()"
        )

    def interleaved(self) -> tuple[str, str]:
        cos, sin = (f"({self._angles()}).{f}().repeat_interleave(2, -1)" for f in ("cos", "sin"))
        return self._input("cos2", cos), self._input("sin2", sin)

    def halves(self) -> tuple[str, str]:
        cos, sin = (f"({self._angles()}).{f}().repeat(1, 1, 1, 2)" for f in ("cos", "sin"))
        return self._input("cosh", cos), self._input("sinh", sin)

    def unequal(self) -> tuple[str, str]:
        """A table whose two entries of a pair differ."""
        width = 2 * self._half
        cos, sin = (f"({self._angles(width)}).{f}()" for f in ("cos", "sin"))
        return self._input("cosu", cos), self._input("sinu", sin)

    def complex(self) -> str:
        rows = ", ".join(map(str, self._rows))
        return self._input("z", f"torch.polar(torch.ones({rows}, {self._half}), {self._angles()})")

    def matrices(self) -> str:
        rows = ", ".join(map(str, self._rows))
        return self._input("m", f"torch.randn({rows}, {self._half}, 2, 2)")


def stacked(d: Draft, x: str, tables: Tables | None, layout: str = "bshd") -> str:
    """even * cos - odd * sin, odd * cos + even * sin, stacked."""
    cos, sin = (tables or Tables(d, x, layout)).narrow()
    cos, sin = _perhaps_cast(d, x, cos, sin)
    wide = _wide(d, x)
    if d.maybe(0.5):
        a, b = d.say(f"{wide}[..., 0::2]"), d.say(f"{wide}[..., 1::2]")
    else:
        pairs = d.say(f"{wide}.unflatten(-1, (-1, 2))")
        a, b = d.say(f"{pairs}.unbind(-1)[0]"), d.say(f"{pairs}[..., 1]")
    first, second = d.say(f"{a} * {cos} - {b} * {sin}"), d.say(_second(d, a, b, cos, sin))
    return _back(d, x, d.say(f"torch.stack([{first}, {second}], -1).flatten(-2)"))


def halved(d: Draft, x: str, tables: Tables | None, layout: str = "bshd") -> str:
    """x * cos + rotate_half(x) * sin."""
    t = tables or Tables(d, x, layout)
    cos, sin = d.one(t.halves, t.halves, t.unequal)()
    cos, sin = _perhaps_cast(d, x, cos, sin)
    wide, half = _wide(d, x), d.shape(x)[-1] // 2
    if d.maybe(0.5):
        turned = d.say(f"torch.cat([-{wide}[..., {half}:], {wide}[..., :{half}]], -1)")
    else:
        split = d.say(f"{wide}.unflatten(-1, (2, -1))")
        turned = d.say(f"torch.cat([-{split}.unbind(-2)[1], {split}[..., 0, :]], -1)")
    return _back(
        d,
        x,
        d.say(d.one(f"{wide} * {cos} + {turned} * {sin}", f"{turned} * {sin} + {cos} * {wide}")),
    )


def turned_pairs(d: Draft, x: str, tables: Tables | None, layout: str = "bshd") -> str:
    """FLUX: x * cos + stack(-odd, even) * sin, tables with each entry twice."""
    t = tables or Tables(d, x, layout)
    cos, sin = d.one(t.interleaved, t.interleaved, t.unequal)()
    wide = _wide(d, x)
    pairs = d.say(f"{wide}.reshape(*{wide}.shape[:-1], -1, 2)")
    turned = d.say(f"torch.stack([-{pairs}[..., 1], {pairs}[..., 0]], -1).flatten(3)")
    return _back(d, x, d.say(f"{wide} * {cos} + {turned} * {sin}"))


def written(d: Draft, x: str, tables: Tables | None, layout: str = "bshd") -> str:
    """Wan: slices of an empty tensor are assigned."""
    cos, sin = (tables or Tables(d, x, layout)).narrow()
    a, b = (
        d.say(f"{x}.unflatten(-1, (-1, 2)).unbind(-1)[0]"),
        d.say(f"{x}.unflatten(-1, (-1, 2))[..., 1]"),
    )
    out = d.say(f"torch.zeros_like({x})")
    d.say(f"{out}[..., 0::2].copy_({a} * {cos} - {b} * {sin})", "in place")
    d.say(f"{out}[..., 1::2].copy_({a} * {sin} + {b} * {cos})", "in place")
    return _back(d, x, out)


def by_complex(d: Draft, x: str, tables: Tables | None, layout: str = "bshd") -> str:
    freqs = (tables or Tables(d, x, layout)).complex()
    wide = x if d.dtype_of(x) == "f32" else d.say(f"{x}.float()")
    z = d.say(f"torch.view_as_complex({wide}.reshape(*{wide}.shape[:-1], -1, 2))")
    freqs = d.one(freqs, freqs, f"{freqs}.conj()")
    return _back(d, x, d.say(f"torch.view_as_real({z} * {freqs}).flatten(3)"))


def by_matrices(d: Draft, x: str, tables: Tables | None, layout: str = "bshd") -> str:
    m = (tables or Tables(d, x, layout)).matrices()
    wide = _wide(d, x)
    if d.maybe(0.5):
        pairs = d.say(f"{wide}.reshape(*{wide}.shape[:-1], -1, 1, 2)")
        return _back(d, x, d.say(f"({m} * {pairs}).sum(-1).reshape({wide}.shape)"))
    pairs = d.say(f"{wide}.reshape(*{wide}.shape[:-1], -1, 1, 2)")
    made = d.say(
        f"({m}[..., 0] * {pairs}[..., 0] + {m}[..., 1] * {pairs}[..., 1]).reshape({wide}.shape)"
    )
    return _back(d, x, made)


def _second(d: Draft, a: str, b: str, cos: str, sin: str) -> str:
    if d.maybe(0.06):  # Near misses: no rotation, another sign, a cast inside.
        return d.one(
            f"{b} * {cos} - {a} * {sin}",
            f"{b} * {sin} + {a} * {cos}",
            f"{b} * {cos} + ({a} * {sin}).to(i32)",
        )
    return d.one(
        f"{b} * {cos} + {a} * {sin}", f"{a} * {sin} + {b} * {cos}", f"{a} * {sin} + {cos} * {b}"
    )


def _perhaps_cast(d: Draft, x: str, cos: str, sin: str) -> tuple[str, str]:
    if d.maybe(0.2):
        return d.say(f"{cos}.to({d.dtype_of(x)})"), d.say(f"{sin}.to({d.dtype_of(x)})")
    return cos, sin


def _wide(d: Draft, x: str) -> str:
    return d.say(f"{x}.float()") if d.dtype_of(x) not in ("f32", "f64") and d.maybe(0.7) else x


def _back(d: Draft, x: str, made: str) -> str:
    return (
        d.say(f"{made}.to({d.dtype_of(x)})")
        if d.dtype_of(made) != d.dtype_of(x) and d.maybe(0.8)
        else made
    )


SPELLINGS = (
    stacked,
    stacked,
    halved,
    halved,
    turned_pairs,
    written,
    by_complex,
    by_complex,
    by_matrices,
)

"""Norms of rows, in many spellings, with what stands round them: residuals, gates, modulations; and
near misses.
"""

from __future__ import annotations

import math

from tests.fuzz.draft import Draft, Unfit

EPSILONS = (1e-6, 1e-5, 0.02, 0.5)


def rms_norm(d: Draft, x: str) -> str:
    """An RMSNorm of x over its last dim."""
    size, dtype = d.shape(x)[-1], d.dtype_of(x)
    eps = d.one(*EPSILONS)
    if d.maybe(0.15):
        weight = d.one("None", weight_of(d, size, dtype))
        return d.say(f"F.rms_norm({x}, ({size},), {weight}, {eps})")
    wide = x
    if (dtype != "f32" and d.maybe(0.8)) or d.maybe(0.05):
        wide = d.say(d.one(f"{x}.float()", f"{x}.to(f32)"))
    if d.maybe(0.12):
        return _by_vector_norm(d, wide, size, eps)
    normed = _normed(d, x, wide, eps)
    return _weighted(d, x, wide, normed, size, dtype)


def _by_vector_norm(d: Draft, x: str, size: int, eps: float) -> str:
    norm = d.one(
        f"F.normalize({x}, dim=-1, eps={d.one(1e-12, 2.0)}) * {math.sqrt(size)}",
        f"{x} / (torch.linalg.vector_norm({x}, dim=-1, keepdim=True) / {math.sqrt(size)} + {eps})",
        f"{x} / torch.linalg.vector_norm({x}, dim=-1, keepdim=True).clamp_min({eps}) * "
        f"{math.sqrt(size)}",
    )
    made = d.say(norm)
    return d.say(f"{made} * {weight_of(d, size, d.dtype_of(made))}") if d.maybe(0.7) else made


def _normed(d: Draft, x: str, wide: str, eps: float) -> tuple[str, str]:
    """(what is multiplied, by what)."""
    size = d.shape(wide)[-1]
    square = d.one(
        "{0}.pow(2)", "{0} * {0}", "{0}.square()", "{0} ** 2", "{0}.abs() ** 2", "torch.pow({0}, 2)"
    )
    mean = d.one(
        f"({square.format(wide)}).mean(-1, keepdim=True)",
        f"({square.format(wide)}).mean(-1, keepdim=True)",
        f"({square.format(wide)}).mean(dim={len(d.shape(wide)) - 1}, keepdim=True)",
        f"({square.format(wide)}).sum(-1, keepdim=True) / {size}",
        f"({square.format(wide)}).mean(-1).unsqueeze(-1)",
        f"torch.einsum('...d,...d->...', {wide}, {wide})[..., None] / {size}",
        f"torch.mean({square.format(wide)}, -1, True)",
    )
    if d.maybe(0.06):  # Near misses: over another dim, or over two.
        mean = d.one(
            f"({square.format(wide)}).mean(-2, keepdim=True)",
            f"({square.format(wide)}).mean((-2, -1), keepdim=True)",
        )
    ms = d.say(mean)
    top = d.one(x, wide)
    inverse = d.one(
        f"torch.rsqrt({ms} + {eps})", f"torch.rsqrt({ms} + {eps})", f"torch.rsqrt({eps} + {ms})",
        f"1 / torch.sqrt({ms} + {eps})", f"({ms} + {eps}) ** -0.5",
        f"torch.rsqrt({ms}.clamp_min({eps}))",
        f"({ms} + {eps}).sqrt().reciprocal()",
    )  # fmt: skip
    if d.maybe(0.2):
        return d.say(f"{top} / torch.sqrt({ms} + {eps})"), ""
    return top, d.say(inverse)


def _weighted(d: Draft, x: str, wide: str, normed: tuple[str, str], size: int, dtype: str) -> str:
    top, inverse = normed
    product = f"({top} * {inverse})" if inverse else top
    if inverse and d.maybe(0.08):  # x is not what the mean is of.
        product = f"({other_of(d, top)} * {inverse})"
    weight = weight_of(d, size, d.one("f32", dtype, dtype))
    form = d.random.randrange(10)
    if form == 0:
        y = d.say(product)
    elif form == 1 and inverse:
        y = d.say(f"({weight} * {inverse}) * {top}")
    elif form == 2 and inverse:
        y = d.say(f"{weight} * {top} * {inverse}")
    elif form == 3:
        y = d.say(f"{product}.to({dtype}) * {weight}")
    elif form == 4:
        y = d.say(f"{product} * (1 + {weight}.float())")
    elif form == 5:
        y = d.say(f"{product} * ({weight} + {d.one(1.0, 0.5)})")
    elif form == 6:
        rounded = d.say(f"{product}.to({d.one('bf16', 'f16', dtype)})")
        y = d.say(f"{weight} * {rounded}")
    else:
        y = d.say(f"{product} * {weight}")
    if d.maybe(0.2):
        y = d.say(d.one(f"{y} + {weight_of(d, size, dtype)}", f"{weight_of(d, size, dtype)} + {y}"))
    return d.say(f"{y}.to({dtype})") if d.dtype_of(y) != dtype and d.maybe(0.7) else y


def layer_norm(d: Draft, x: str) -> str:
    """A LayerNorm of x over its last dim, by function or by hand."""
    size, dtype, eps = d.shape(x)[-1], d.dtype_of(x), d.one(*EPSILONS)
    affine = d.one(("", ""), ("w", ""), ("w", "b"))
    weight = weight_of(d, size, dtype) if affine[0] else "None"
    bias = weight_of(d, size, dtype, 0.0) if affine[1] else "None"
    if d.maybe(0.7):
        if dtype != "f32" and d.maybe(0.4):
            y = d.say(f"F.layer_norm({x}.float(), ({size},), eps={eps})")
            return d.say(f"{y}.to({dtype})") if d.maybe(0.7) else y
        return d.say(f"F.layer_norm({x}, ({size},), {weight}, {bias}, {eps})")
    if d.maybe(0.5):
        var = d.one("unbiased=False", "correction=0", "unbiased=False", "unbiased=True")
        y = d.say(
            f"({x} - {x}.mean(-1, keepdim=True)) / torch.sqrt({x}.var(-1, keepdim=True, {var}) + "
            f"{eps})"
        )
    else:
        centred = d.say(f"{x} - {x}.mean(-1, keepdim=True)")
        y = d.say(f"{centred} * torch.rsqrt({centred}.pow(2).mean(-1, keepdim=True) + {eps})")
    y = d.say(f"{y} * {weight}") if affine[0] else y
    return d.say(f"{y} + {bias}") if affine[1] else y


def any_norm(d: Draft, x: str) -> str:
    return d.one(rms_norm, layer_norm)(d, x)


def chain(d: Draft, x: str) -> str:
    """Residual, norm, modulation: each may be missing, read elsewhere, or fed with values of the
    chain itself.
    """
    summed = residual(d, x) if d.maybe(0.65) else x
    normed = any_norm(d, summed)
    y = normed
    for _ in range(d.one(1, 1, 1, 2)):
        made = modulated(d, normed, summed)
        if made is not None:
            y = made
    if d.maybe(0.2):
        other = d.one(summed, x, other_of(d, y))
        y = d.attempt(lambda: d.say(d.one(f"{y} + {other}", f"{other} + {y}"))) or y
    return y


def residual(d: Draft, x: str) -> str:
    """x + gate * branch, the branch perhaps normed."""
    branch = other_of(d, x)
    if d.maybe(0.25):
        branch = rms_norm(d, branch)
        if d.shape(branch) != d.shape(x):
            raise Unfit("the branch has another shape")
    if d.maybe(0.65):
        gate = table(d, x)
        gate = f"torch.tanh({gate})" if d.maybe(0.15) else gate
        product = d.one(f"{gate} * {branch}", f"{branch} * {gate}")
        if d.maybe(0.12):
            cast = d.one("i32", "f8", "bf16", "f16", "f32")
            product = f"({product}).to({cast})" + (".float()" if cast == "f8" else "")
        branch = d.say(product)
    if d.maybe(0.08):
        return d.say(d.one(f"{x} - {branch}", f"torch.add({x}, {branch}, alpha=2)"))
    return d.say(d.one(f"{x} + {branch}", f"{branch} + {x}"))


def modulated(d: Draft, n: str, summed: str) -> str | None:
    """n * (1 + scale) + shift, or None where these shapes do not fit."""
    scale, shift = table(d, n), table(d, n)
    if d.maybe(0.15):
        scale = d.one(n, summed, f"{summed}.mean(-2, keepdim=True)")
    if d.maybe(0.15):
        shift = d.one(n, summed, f"{summed}.mean(-2, keepdim=True)")
    if d.maybe(0.2) and d.dtype_of(n) != "f32":
        scale = f"{scale}.float()"
    one = d.one("(1 + {})", "(1 + {})", "({} + 1)", "(1.0 + {})", "{}", "(0.5 + {})").format(scale)

    if (d.seed + len(d.statements)) % 6 == 0:
        # Its own view: the operator then reads the factor whole.
        one = f"{one}.unsqueeze(0).squeeze(0)"

    def write() -> str:
        product = d.one(f"{n} * {one}", f"{one} * {n}")
        if d.maybe(0.15):
            product = f"({product}).to({d.one('bf16', 'f16', 'f32')})"
        y = d.say(product) if d.maybe(0.5) else f"({product})"
        if d.maybe(0.85):
            return d.say(d.one(f"{y} + {shift}", f"{shift} + {y}"))
        return y if y[0] == "v" else d.say(y)

    return d.attempt(write)


def table(d: Draft, x: str) -> str:
    """Something that broadcasts to x: a new input, a chunk of a shared one, or a value that there
    is.
    """
    shape = d.shape(x)
    shared = [n for n in d.inputs if _broadcasts(d.shape(n), shape) and d.dtype_of(n)]
    if shared and d.maybe(0.3):
        return d.one(*shared)
    rows = [*shape]
    form = d.random.randrange(9)
    if len(rows) >= 2 and form < 3:
        rows[-2] = 1
    elif form == 3:
        rows = [1] * (len(rows) - 1) + [shape[-1]]
    elif form == 4:
        rows = [shape[-1]]
    elif form == 5:
        rows[-1] = 1
    elif form == 6 and len(rows) >= 2:
        rows = [*rows[:-2], 1, 1]
    if form == 7 and len(rows) >= 2:
        six = d.tensor([*rows[:-2], 1, 3 * shape[-1]], scale=0.5)
        return d.say(f"{six}.chunk(3, -1)[{d.random.randrange(3)}]")
    if form == 8 and len(rows) >= 3:
        flat = d.tensor([rows[0], shape[-1]], scale=0.5)
        return d.say(f"{flat}" + "[:, None]" * (len(rows) - 2))
    return d.tensor(rows, d.one(d.dtype, d.dtype, "f32"), scale=0.5)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    tail = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(s in (1, t) for s, t in zip(shape, tail, strict=True))


def weight_of(d: Draft, size: int, dtype: str, around: float = 1.0) -> str:
    """A vector of that many elements; now and then one that is used already, or one of rows
    of 1.
    """
    used = [n for n in d.inputs if d.shape(n) == (size,) and d.dtype_of(n) == dtype]
    if used and d.maybe(0.4):
        return d.one(*used)
    shape = [1] * d.one(0, 0, 0, 0, 1, 2) + [size]
    return d.tensor(shape, dtype, scale=0.5, add=around)


def other_of(d: Draft, x: str) -> str:
    """Another value of x's shape: one there is, or a new input."""
    same = [n for n in d.floats() if d.shape(n) == d.shape(x) and n != x]
    return (
        d.one(*same[-4:]) if same and d.maybe(0.5) else d.tensor(d.shape(x), d.dtype_of(x) or "f32")
    )

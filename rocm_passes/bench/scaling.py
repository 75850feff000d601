"""What more GPUs change, on paper: bytes per rank of the rewritten sites vs. bytes of collectives.

    python -m rocm_passes.bench.scaling [--docs docs/scaling.md]

Nothing is measured here. Bytes follow from production shapes; times are bytes over published peak
rates, so they are lower bounds, of use for proportions alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BYTES = 2  # of bfloat16 and float16


@dataclass(frozen=True)
class Model:
    """One denoiser at one size. tokens: of a forward, text included where it is in the attention.

    chains: norms of hidden states in a block, each with the residual in front and the modulation
    behind where they have them. weights: of a block, in millions. Both are means where a model has
    blocks of two kinds.
    """

    name: str
    tokens: int
    hidden: int
    heads: int
    blocks: int
    chains: float
    weights: float

    @property
    def tensor(self) -> int:
        """Bytes of one hidden tensor."""
        return self.tokens * self.hidden * BYTES


MODELS = (
    Model("Wan 14B, 1280x720, 81 frames", 75600, 5120, 40, 40, 3, 351),
    Model("Wan 1.3B, 832x480, 81 frames", 32760, 1536, 12, 30, 3, 46),
    Model("HunyuanVideo, 1280x720, 129 frames", 119056, 3072, 24, 60, 1.33, 208),
    Model("Qwen-Image, 1328x1328", 7401, 3072, 24, 60, 2, 340),
    Model("FLUX.1, 1024x1024", 4608, 3072, 24, 57, 1.33, 208),
    Model("FLUX.2, 1024x1024", 4608, 6144, 48, 56, 1.14, 560),
)


@dataclass(frozen=True)
class Machine:
    """Published peak rates in bytes a second, each way: memory, a GPU's links to one other GPU of
    its node and to all together, and its network.
    """

    name: str
    memory: float
    to_one: float
    to_all: float
    network: float

    def links(self, ranks: int) -> float:
        """To the other ranks of a node, all at once."""
        return min(self.to_all, self.to_one * (ranks - 1))


#: MI300X: a link of 64 GB/s each way to each other GPU (AMD's data sheet). H100 SXM: NVLink 4 over
#: switches. Network: 400 Gb/s.
MI300X = Machine("8 x MI300X", 5.3e12, 64e9, 7 * 64e9, 50e9)
H100 = Machine("8 x H100", 3.35e12, 450e9, 450e9, 50e9)
MACHINES = (MI300X, H100)

#: (Ulysses degree within a node, ring degree between nodes).
SPLITS = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4))


def rotation_bytes(model: Model, ranks: int) -> float:
    """Of a block's q and k with norms and rotations: each read once and written once."""
    return 4 * model.tensor / ranks


def chain_bytes(model: Model, ranks: int) -> float:
    """Of a block's residual chains: hidden states and branch read, sum and result written."""
    return 4 * model.chains * model.tensor / ranks


def ulysses_bytes(model: Model, ulysses: int, ring: int = 1) -> float:
    """That a rank sends in a block: q, k, v and the result, all but its own share of each."""
    return 4 * model.tensor / (ulysses * ring) * (ulysses - 1) / ulysses


def ring_bytes(model: Model, ulysses: int, ring: int) -> float:
    """That a rank sends in a block: its k and v to each of the other ranks of the ring."""
    return 2 * model.tensor / (ulysses * ring) * (ring - 1)


def tensor_parallel_bytes(model: Model, ranks: int) -> float:
    """That a rank sends in a block: two sums over ranks, scattered and gathered."""
    return 2 * 2 * model.tensor * (ranks - 1) / ranks


def fsdp_bytes(model: Model, ranks: int) -> float:
    """That a rank receives in a block: the other ranks' shards of its weights."""
    return model.weights * 1e6 * BYTES * (ranks - 1) / ranks


@dataclass(frozen=True)
class Step:
    """A block on one rank: bytes, and milliseconds at peak rates."""

    ulysses: int
    ring: int
    rotations: float
    chains: float
    exchanged: float
    between_nodes: float

    def sites_ms(self, machine: Machine) -> float:
        return 1e3 * (self.rotations + self.chains) / machine.memory

    def collectives_ms(self, machine: Machine) -> float:
        within = self.exchanged / machine.links(self.ulysses) if self.exchanged else 0.0
        return 1e3 * (within + self.between_nodes / machine.network)


def step(model: Model, ulysses: int, ring: int) -> Step | None:
    """None where the heads can't be dealt out evenly."""
    if model.heads % ulysses:
        return None
    ranks = ulysses * ring
    return Step(
        ulysses, ring, rotation_bytes(model, ranks), chain_bytes(model, ranks),
        ulysses_bytes(model, ulysses, ring), ring_bytes(model, ulysses, ring),
    )  # fmt: skip


CONTEXT_HEAD = (
    "model", "Ulysses x ring", "tokens a rank", "MB a tensor", "q, k sites MB", "chains MB",
    "all-to-all MB", "ring MB", "MI300X sites ms", "collectives ms", "H100 sites ms",
    "collectives ms",
)  # fmt: skip


def context_rows() -> Iterable[Sequence[str]]:
    for model in MODELS:
        for ulysses, ring in SPLITS:
            found = step(model, ulysses, ring)
            name = f"{ulysses} x {ring}"
            if found is None:
                heads = f"{model.heads} heads can't be dealt out to {ulysses}"
                yield (model.name, name, heads, *[""] * (len(CONTEXT_HEAD) - 3))
                continue
            ranks = ulysses * ring
            times = [
                f"{ms:.3f}"
                for machine in MACHINES
                for ms in (found.sites_ms(machine), found.collectives_ms(machine))
            ]
            sizes = (model.tensor / ranks, found.rotations, found.chains)
            sent = (found.exchanged, found.between_nodes)
            yield (
                model.name, name, str(-(-model.tokens // ranks)), *map(_mb, (*sizes, *sent)), *times
            )  # fmt: skip


WEIGHTS_HEAD = (
    "model", "weights of a block MB", "FSDP, 8 ranks: gathered MB",
    "tensor parallel, 8 ranks: sums MB", "Ulysses, 8 ranks: all-to-all MB",
    "chains, tensor parallel MB", "chains, sequence or context parallel MB",
)  # fmt: skip


def weights_rows() -> Iterable[Sequence[str]]:
    for model in MODELS:
        ulysses = "-" if model.heads % 8 else _mb(ulysses_bytes(model, 8))
        chains = (chain_bytes(model, 1), chain_bytes(model, 8))
        yield (
            model.name, _mb(model.weights * 1e6 * BYTES), _mb(fsdp_bytes(model, 8)),
            _mb(tensor_parallel_bytes(model, 8)), ulysses, *map(_mb, chains),
        )  # fmt: skip


@dataclass(frozen=True)
class Convolution:
    """A 3x3x3 convolution of a video decoder: channels, frames of a chunk, rows and columns."""

    name: str
    channels: int
    frames: int
    rows: int
    columns: int

    def bytes(self, frames: int, rows: float) -> float:
        return self.channels * frames * rows * self.columns * BYTES


CONVOLUTIONS = (
    Convolution("Wan decode 1280x720, 384 channels", 384, 1, 90, 160),
    Convolution("Wan decode 1280x720, 192 channels", 192, 4, 360, 640),
    Convolution("Wan decode 1280x720, 96 channels", 96, 4, 720, 1280),
)
HALO_HEAD = (
    "convolution", "ranks", "own rows", "input MB", "two rows sent MB", "share", "joined copy MB",
    "two frames in front MB",
)  # fmt: skip


def halo_rows() -> Iterable[Sequence[str]]:
    """Split by rows: a row to each neighbour, and a copy of what is joined. Split by frames: two
    frames from the rank before, which no lowering copies.
    """
    for conv in CONVOLUTIONS:
        for ranks in (2, 4, 8):
            rows = conv.rows / ranks
            own, sent = conv.bytes(conv.frames + 2, rows), conv.bytes(conv.frames + 2, 2)
            yield (
                conv.name, str(ranks), f"{rows:g}", _mb(own), _mb(sent), f"{sent / own:.1%}",
                _mb(2 * (own + sent)), _mb(conv.bytes(2, conv.rows)),
            )  # fmt: skip


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def tables() -> dict[str, str]:
    """By the name of the part of the document."""
    return {
        "context parallel": markdown(CONTEXT_HEAD, context_rows()),
        "weights": markdown(WEIGHTS_HEAD, weights_rows()),
        "halo": markdown(HALO_HEAD, halo_rows()),
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])


def filled(text: str) -> str:
    """The document with its tables as they are computed now."""
    for name, table in tables().items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, help="fill in the tables of this document")
    given = parser.parse_args()
    if given.docs is None:
        print("\n\n".join(tables().values()))
    else:
        given.docs.write_text(filled(given.docs.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

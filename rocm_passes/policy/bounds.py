"""Numbers that decide what is measured, what passes take and how a pipeline is compiled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A number, what it decides, and where it comes from. command: what measured it."""

    name: str
    value: float
    unit: str
    meaning: str
    evidence: str
    command: str = ""


CONV3D_CHOICES = "python -m rocm_passes.bench.conv3d --all"
VAE = "python -m rocm_passes.bench.vae"

WORTH_MEASURING = Bound(
    "WORTH_MEASURING",
    1e9,
    "floating-point operations",
    "a convolution with less work, and fewer bytes than WORTH_MEASURING_MIB, is not measured",
    "such a call takes some microseconds on an H200, where lowerings differ by noise",
)
WORTH_MEASURING_MIB = Bound(
    "WORTH_MEASURING_MIB",
    8,
    "MiB of input and result",
    "a convolution with fewer bytes, and less work than WORTH_MEASURING, is not measured",
    "such a call takes some microseconds on an H200, where lowerings differ by noise",
)
NOISE = Bound(
    "NOISE",
    0.02,
    "of the time",
    "within this the lowering with less memory is taken; a lowering is faster only beyond it",
    "with it 234 of 236 choices on an H200 lay within AGREEMENT (docs/conv3d.md)",
    CONV3D_CHOICES,
)
AGREEMENT = Bound(
    "AGREEMENT",
    0.03,
    "of the time",
    "the benchmark calls a choice right within this of the best lowering of a second measurement",
    "NOISE, and what cuDNN's conv3d moves between two measurements on an H200 (docs/tuning.md)",
    CONV3D_CHOICES,
)
SEARCH_SHARE = Bound(
    "SEARCH_SHARE",
    0.25,
    "of tune_seconds",
    "a first call that takes longer is not repeated: a library was searching for kernels",
    "not measured; MIOpen's find takes minutes for a shape (ROCm/rocm-libraries#3553)",
)
RANK_ZERO_SECONDS = Bound(
    "RANK_ZERO_SECONDS",
    10,
    "s",
    "a rank of a process group waits as long, once, for rank 0's measured choices",
    "not measured: ranks of one program compile their first graph within some seconds",
)
RANK_SHARE = Bound(
    "RANK_SHARE",
    0.5,
    "of tune_seconds",
    "a rank waits as long, at most, for another rank's measurement of one call; then rules decide",
    "twice SEARCH_SHARE, which a first run takes at most before it is said to be a search",
)
POLL_SECONDS = Bound(
    "POLL_SECONDS",
    0.02,
    "s",
    "as long a rank sleeps between two looks for another rank's measurement",
    "not measured: a measurement takes some tenths of a second",
)
USUAL_MIB = Bound(
    "USUAL_MIB",
    512,
    "MiB",
    "the largest convolution of a graph may need as much memory beside its tensors",
    "Wan's decode on an H200 took no longer with the bound, and 0.5 GiB less",
    VAE,
)
USUAL_SHARE = Bound(
    "USUAL_SHARE",
    0.75,
    "of input and result",
    "the same, where that is more: a sum over three taps holds three results at once",
    "Wan's decode on an H200 took no longer with the bound, and 0.5 GiB less",
    VAE,
)

ROUNDS = Bound(
    "ROUNDS",
    11,
    "rounds",
    "as often each candidate of a measurement is timed",
    "not measured: an odd number has one median",
)
HOST_ROUNDS = Bound(
    "HOST_ROUNDS",
    11,
    "rounds",
    "as often the host's time of each candidate of a site is taken",
    "not measured: an odd number has one median",
)
SITE_SHARE = Bound(
    "SITE_SHARE",
    0.5,
    "of tune_seconds",
    "sites are measured so long, convolutions included, where nobody asked for it",
    "SDXL on an H200: its first call took 141 s with convolutions measured, Inductor's 154; with "
    "half of 60 s more it is 1.11 of that (docs/measured/pipelines.md)",
    "python -m rocm_passes.bench.pipelines --only sdxl",
)
FASTEST_MATRIX_RATE = Bound(
    "FASTEST_MATRIX_RATE",
    1e15,
    "floating-point operations a second",
    "a device that takes longer at this rate than the host (CALL_HOST_SECONDS) hides the host",
    "above what a large bf16 product reached on an H100 and an H200 (0.8e15), and above an MI300X",
)
CALL_HOST_SECONDS = Bound(
    "CALL_HOST_SECONDS",
    7.5e-5,
    "s for each matrix product, convolution and attention",
    "so long the host launches such a call and the pointwise code around it, at most",
    "SDXL's UNet on three machines: 37 to 72 ms a forward for 950 of them (docs/measured/blocks.md "
    "has blocks that this takes for bound by the device)",
    "python -m rocm_passes.bench.pipelines --only sdxl; python -m rocm_passes.bench.blocks",
)
MOST_SETS = Bound(
    "MOST_SETS",
    64,
    "sets of buffers",
    "a site is measured over no more of them, however small they are",
    "not measured: many small ones take long to draw",
)
FEWEST_ROUNDS = Bound(
    "FEWEST_ROUNDS",
    3,
    "rounds",
    "before this no candidate is dropped, however long it takes",
    "not measured: the fewest that have a median",
)
HOPELESS = Bound(
    "HOPELESS",
    1.15,
    "of the fastest time",
    "a slower candidate is measured no further",
    "not measured; cuDNN's conv3d moves by 8 % under lasting load on an H200 (docs/tuning.md)",
)
BURST_SECONDS = Bound(
    "BURST_SECONDS",
    0.7e-3,
    "s",
    "short calls are repeated until a burst takes as long",
    "far above an event's resolution of half a microsecond",
)
ROUND_SECONDS = Bound(
    "ROUND_SECONDS",
    0.25,
    "s",
    "after this no further round is begun: the noise of long calls is less",
    "measuring takes 0.3 s a call on an H200 (docs/tuning.md)",
    CONV3D_CHOICES,
)
WARM_SECONDS = Bound(
    "WARM_SECONDS",
    0.1,
    "s",
    "as long the GPU is kept busy before anything counts",
    "a conv3d of cuDNN that took 0.74 ms at first took 0.79 on, on an H200",
    CONV3D_CHOICES,
)
HOST_SECONDS = Bound(
    "HOST_SECONDS",
    50e-6,
    "s",
    "what the host takes to enqueue a convolution, at most",
    "not measured here; a burst waits so long behind a copy",
)

NEIGHBOURS = Bound(
    "NEIGHBOURS",
    300,
    "nodes",
    "a site with more nodes in its neighbourhood is not measured: rules decide",
    "not measured: a transformer block's neighbourhoods have 10 to 80 nodes",
)
WORTH_MEASURING_SITE_MIB = Bound(
    "WORTH_MEASURING_SITE_MIB",
    2,
    "MiB that enter and leave",
    "a site whose neighbourhood moves fewer bytes is not measured: rules decide",
    "such a neighbourhood takes a microsecond of memory traffic on an H200, less than a launch",
)
SITE_MEMORY_SHARE = Bound(
    "SITE_MEMORY_SHARE",
    0.25,
    "of the free memory",
    "the buffers of one measurement of a site take no more than this",
    "not measured: the model's own tensors stay where they are",
)
INFINITY_CACHE_MIB = Bound(
    "INFINITY_CACHE_MIB",
    256,
    "MiB",
    "the last cache of an AMD GPU, which torch does not report; buffers that rotate are larger",
    "an MI300X's Infinity Cache, by AMD's data sheet; others have less",
)

PAIRED_WITHIN = Bound(
    "PAIRED_WITHIN",
    8,
    "rotations",
    "the rotations of q and k are paired where no more rotations stand between them",
    "by construction: a block rotates eight at most (LTX-2's)",
)
NODES_PER_CONVOLUTION = Bound(
    "NODES_PER_CONVOLUTION",
    300,
    "nodes",
    "a graph with as many nodes for each convolution keeps its memory format",
    "as Inductor's own layout optimisation has it (torch/_inductor/graph.py)",
)
LEAST_REPETITION = Bound(
    "LEAST_REPETITION",
    2,
    "pixels of the input for each pixel that it is made of",
    "with fewer, upsampled_conv and gather_in_norm leave the graph as it is",
    "not measured: the gather costs what the products save",
)
LEAST_RUN = Bound(
    "LEAST_RUN",
    32,
    "channels",
    "sort_depth_to_space leaves a depth-to-space that moves fewer channels at a time",
    "64 bytes in a 16-bit dtype; LTX-Video's decode 36.9 vs. 37.9 ms on an H200, write_into_cat "
    "included",
    VAE,
)
ATTENTION_MIB = Bound(
    "ATTENTION_MIB",
    256,
    "MiB beside q, k, v and the result",
    "attention in tiles keeps to it; a graph that holds more scores at once is computed so on AMD",
    "by construction: tiles of 4096 queries and 8192 keys with heads of 512 take 216 MiB",
)
CHECKED_PLACES = Bound(
    "CHECKED_PLACES",
    64,
    "places of a convolution's result",
    "so many are computed again in float64 where lowerings are measured, and two corners",
    "follows from the work: 64 places of 512 channels take less than one convolution",
)
CHECKED_FACTOR = Bound(
    "CHECKED_FACTOR",
    2,
    "times the error of ATen's convolution",
    "a measured lowering with a larger error is never chosen",
    "as verify allows (docs/verify.md): another order of sums moves the largest error",
)
CHECKED_LIBRARY = Bound(
    "CHECKED_LIBRARY",
    8,
    "times the error of ATen's convolution of single places",
    "the library's own algorithm may be less exact by so much, and others with it",
    "not measured; Winograd's transforms cost about 3 bits",
)
VERIFIED_FACTOR = Bound(
    "VERIFIED_FACTOR",
    2,
    "times the original's largest error",
    "verify puts back a site whose error against float64 is larger, VERIFIED_UNITS added",
    "not measured: another order of sums moves the largest error",
)
VERIFIED_UNITS = Bound(
    "VERIFIED_UNITS",
    1,
    "units in the last place",
    "verify adds them to VERIFIED_FACTOR's bound: a result is rounded once more",
    "by construction: one rounding is half a unit, on either side",
)
RECOMPILE_LIMIT = Bound(
    "RECOMPILE_LIMIT",
    64,
    "graphs",
    "a module that compile_pipeline compiles for static shapes may have as many",
    "by construction: the decoder of a video VAE has three a resolution, and as many a tile's size",
)
WARM_STEPS = Bound(
    "WARM_STEPS",
    2,
    "steps",
    "a warm run of a pipeline takes as many",
    "by construction: two denoisers, for high and for low noise, then both run",
)
NEARLY_ALL = Bound(
    "NEARLY_ALL",
    0.9,
    "of a denoiser's weights",
    "blocks that hold as much are compiled one by one; with less the denoiser is compiled whole",
    "of diffusers 0.42: transformers 0.92 to 0.999, UNets 0.29 (SD 1.5) to 0.85 (SDXL). SDXL, 8 "
    "steps, on an H100, Inductor: blocks 744 ms, whole 544 (docs/measured/pipelines.md)",
    "python -m rocm_passes.bench.pipelines --only sdxl",
)
HOST_BOUND = Bound(
    "HOST_BOUND",
    0.9,
    "of a forward's time",
    "where the host takes as long to enqueue a forward, compile_pipeline(tune=) tries CUDA graphs",
    "SDXL whole, 8 steps, on an H100: 544 ms, with CUDA graphs 341; the device needed 287 in both "
    "(docs/measured/pipelines.md)",
    "python -m rocm_passes.bench.pipelines --only sdxl",
)

#: Every bound of this file, in order.
BOUNDS = tuple(found for found in list(globals().values()) if isinstance(found, Bound))

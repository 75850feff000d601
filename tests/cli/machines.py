"""Machines as data, for the doctor: healthy ones, from which each test takes something away."""

from __future__ import annotations

from rocm_passes.cli.doctor.machine import (
    Aiter,
    DeviceNode,
    Gpu,
    Library,
    LoweringRow,
    Machine,
    Miopen,
)

NODES = (
    DeviceNode("/dev/kfd", "usable", "render"),
    DeviceNode("/dev/dri/renderD128", "usable", "render"),
)
LIBRARIES = {
    "diffusers": Library("0.42.1"),
    "transformers": Library("5.23.0"),
    "accelerate": Library("1.15.0"),
}
MI300X_GPU = Gpu("amd", "gfx942", "AMD Instinct MI300X", 192.0)
IGPU = Gpu("amd", "gfx1036", "AMD Radeon Graphics", 16.0)
RX7900 = Gpu("amd", "gfx1100", "AMD Radeon RX 7900 XTX", 24.0)

MI300X = Machine(
    rocm_passes="0.1.0",
    python=(3, 12, 3),
    torch=Library("2.13.0+rocm7.2"),
    hip="7.2.26015",
    gpus=(MI300X_GPU,),
    kernel_archs=("gfx942",),
    nodes=NODES,
    groups=("render", "user", "video"),
    rocm="7.2.0",
    miopen=Miopen((3, 5, 2), "/home/user/.config/miopen", "/home/user/.cache/miopen"),
    triton=Library("3.7.1"),
    aiter=Aiter("usable", "0.1.22", "aiter 0.1.22 at /opt/aiter"),
    libraries=LIBRARIES,
    lowerings=(
        LoweringRow("rms_norm", "triton", None),
        LoweringRow("pad", "reference", "it is slower"),
    ),
)
CPU = Machine(
    rocm_passes="0.1.0",
    python=(3, 12, 3),
    torch=Library("2.13.0+cpu"),
    triton=Library("3.7.1"),
    libraries=LIBRARIES,
)

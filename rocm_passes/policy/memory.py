"""How much memory a convolution may need where the user has given no bound."""

from __future__ import annotations

from rocm_passes.ops.conv3d import Conv3d
from rocm_passes.policy import bounds


def usual_memory_mib(call: Conv3d) -> float:
    """MiB beside the call's tensors.

    A sum over three taps holds three results at once: as much as input and result of Wan's last
    block. A smaller call may need more beside its tensors, as much as the largest one with its own.
    """
    own = call.tensors_mib()
    largest = max(own, call.largest_mib)
    return max(bounds.USUAL_MIB.value, (1 + bounds.USUAL_SHARE.value) * largest - own)

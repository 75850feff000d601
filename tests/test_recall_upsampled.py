"""CogVideoX's decoder: every convolution of an upsampled latent is found, moved before it, and read
by index.
"""

from __future__ import annotations

import pytest

from tests.zoo.decoded import cogvideox

#: Of 34 such convolutions, the 16 of the middle and the first block see no upsampling; each norm
#: has two.
SMALL, LARGE = 16, 18

pytestmark = pytest.mark.model("vae_cogvideox")


def test_every_convolution_of_an_upsampled_latent_is_moved() -> None:
    ledgers = cogvideox().ledgers
    assert len(ledgers) == 2
    for ledger in ledgers:
        moved = [e for e in ledger.entries if e.idiom == "upsampled_conv"]
        assert [e.outcome for e in moved] == ["rewritten"] * LARGE
        left = [c for e in ledger.entries if e.idiom == "conv3d" for c in e.considered]
        assert len(left) == SMALL
        assert all("the input has only 1 times the pixels" in reason for reason in left)


def test_their_norms_read_them_by_index() -> None:
    for ledger, frames in zip(cogvideox().ledgers, (3, 2), strict=True):
        norms = [e.parameters for e in ledger.entries if e.idiom == "group_norm"]
        assert all(p["spatial"] for p in norms)
        by_index = [p["source_pixels"] for p in norms if "source_pixels" in p]
        assert by_index == [frames * 4 * 4] * (LARGE // 2)


def test_the_result_is_as_exact_as_eager() -> None:
    assert cogvideox().is_as_exact_as_eager()

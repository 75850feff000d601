"""Every padded convolution that a model's eager run has is in the ledger, exactly once, for every
VAE of the zoo.
"""

from __future__ import annotations

import pytest
import torch

from tests.test_recall_norms import ledgers_of
from tests.zoo.fast import chosen
from tests.zoo.traced import ledgers, live
from tests.zoo.vaes import VAES


@pytest.mark.parametrize("name", chosen(c.name for c in VAES))
def test_every_pad_has_an_entry(name: str) -> None:
    found = ledgers(name, torch.bfloat16, select="always")
    assert sum(e.covers.get("pad", 0) for g in found for e in g.entries) == live(name)["pad"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [c.name for c in VAES])
def test_every_pad_has_an_entry_where_nothing_is_rewritten(name: str) -> None:
    found = ledgers_of(name, torch.bfloat16, {"select": "off"})
    assert sum(e.covers.get("pad", 0) for g in found for e in g.entries) == live(name)["pad"]


PADDED = {"vae_hunyuan_video", "vae_hunyuan_video15", "vae_ltx2", "vae_mochi", "vae_magvit"}


@pytest.mark.parametrize("name", chosen(c.name for c in VAES))
def test_some_have_them(name: str) -> None:
    assert (live(name)["pad"] > 0) == (name in PADDED)

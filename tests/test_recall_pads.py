"""Every padded convolution that a model's eager run has is in the ledger, exactly once, for every
VAE of the zoo.
"""

from __future__ import annotations

import pytest
import torch

from tests.test_recall_norms import ledgers_of
from tests.zoo import case
from tests.zoo.vaes import VAES


@pytest.mark.parametrize("name", [c.name for c in VAES])
def test_every_pad_has_an_entry(name: str) -> None:
    zoo = case(name)
    model = zoo.build(torch.bfloat16)
    for select in ("off", "always"):
        entries = [e for g in ledgers_of(zoo, model, {"select": select}) for e in g.entries]
        assert sum(e.covers.get("pad", 0) for e in entries) == zoo.live(model)["pad"], select


def test_some_have_them() -> None:
    counts = {c.name: c.live(c.build())["pad"] for c in VAES}
    padded = {"vae_hunyuan_video", "vae_hunyuan_video15", "vae_ltx2", "vae_mochi", "vae_magvit"}
    assert {name for name, count in counts.items() if count} == padded

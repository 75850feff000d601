"""Scaling on paper: the arithmetic by hand, and a document that is not stale."""

from __future__ import annotations

import pytest

from rocm_passes.bench import scaling
from rocm_passes.bench.scaling import H100, MI300X, MODELS, step
from tests.cli.running import REPOSITORY

WAN = MODELS[0]
DOCUMENT = REPOSITORY / "docs" / "scaling.md"


def test_the_document_has_the_tables_as_computed() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert scaling.filled(text) == text, (
        "python -m rocm_passes.bench.scaling --docs docs/scaling.md"
    )


def test_a_block_of_wan_on_eight_ranks_by_hand() -> None:
    found = step(WAN, 8, 1)
    assert found is not None
    tensor = 75600 * 5120 * 2 / 8
    assert found.rotations == 4 * tensor
    assert found.chains == 3 * 4 * tensor
    assert found.exchanged == 4 * tensor * 7 / 8
    assert found.between_nodes == 0
    assert found.sites_ms(MI300X) == pytest.approx(1e3 * 16 * tensor / 5.3e12)
    assert found.collectives_ms(MI300X) == pytest.approx(1e3 * 3.5 * tensor / 448e9)


def test_two_mi300x_have_one_link_between_them() -> None:
    assert (MI300X.links(2), MI300X.links(8), H100.links(2)) == (64e9, 448e9, 450e9)


def test_a_ring_between_nodes_sends_k_and_v_to_each_other_node() -> None:
    found = step(WAN, 8, 4)
    assert found is not None
    assert found.between_nodes == 2 * 3 * 75600 * 5120 * 2 / 32


def test_heads_that_cannot_be_dealt_out_are_said() -> None:
    assert step(MODELS[1], 8, 1) is None
    assert any("12 heads can't be dealt out to 8" in row for row in scaling.context_rows())


def test_sums_over_ranks_do_not_shrink() -> None:
    sent = [scaling.tensor_parallel_bytes(WAN, ranks) for ranks in (2, 8)]
    assert sent[0] < sent[1] < 4 * WAN.tensor

"""Causal video decoders: norms write behind the frames that stand in front of them, and the decode
is as exact.
"""

from __future__ import annotations

from collections import Counter

import pytest

from rocm_passes.report.ledger import Ledger
from tests.zoo import tensors_in
from tests.zoo.decoded import Decoded, cogvideox, decode
from tests.zoo.traced import exact, passed, results

#: In each graph of a decode, how many norms stand behind how many frames. CogVideoX: all of them,
#: behind the first frame twice, then behind two cached ones. Wan: nothing but zeros stands before
#: the first chunk, one cached frame before the second, two before all others. Where the second has
#: one frame itself, the new cache is the same cat once more: a norm that goes into two is left
#: alone.
DECODES: dict[str, list[dict[int, int]]] = {
    "vae_cogvideox": [{2: 17}, {2: 17}],
    "vae_wan": [{}, {1: 8}, {2: 21}],
}


#: Fast: the convolutions of Wan's second chunk are sums of two taps, which spell the cat behind the
#: norm.
WAN = {"select": "auto", "lowering": {"channel_norm": "triton"}, "rewrite_numerics": "fast"}


def decoded(name: str) -> Decoded:
    return cogvideox() if name == "vae_cogvideox" else decode(name, (1, 4, 3, 4, 4), WAN)


def front_frames(ledger: Ledger) -> Counter[int]:
    frames = [e.parameters.get("front_frames") for e in ledger.entries]
    return Counter(n for n in frames if n is not None)


#: Of Wan the fast suite takes the decode whose chunks are one graph, which the zoo has traced.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive if n == "vae_wan" else ()) for n in DECODES],
)
def test_norms_stand_behind_their_frames(name: str) -> None:
    made = decoded(name)
    assert [front_frames(ledger) for ledger in made.ledgers] == DECODES[name]
    assert made.is_as_exact_as_eager()


@pytest.mark.model("vae_wan")
def test_in_one_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_passes.ops.operator.triton_is_interpreted", lambda: False)
    seen = passed("vae_wan", runs=True, **WAN)
    (ledger,) = seen.ledgers
    # All 8 of the second chunk, and 13 of the third chunk's 21, which the decoder alone has.
    assert front_frames(ledger) == {1: 8, 2: 13}
    made = Decoded(
        seen.ledgers, exact("vae_wan")[0], results("vae_wan")[0], tensors_in(seen.result)[0]
    )
    assert made.is_as_exact_as_eager()

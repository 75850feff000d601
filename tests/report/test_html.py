"""The ledger's page as a document: groups, tabs, reasons, drawings, bars and links."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from rocm_passes.report import html as report_html
from rocm_passes.report import ledger, links
from rocm_passes.report.ledger import LEFT, Entry, Ledger, LoweringVerdict, summary
from rocm_passes.report.svg import svg

SAID = (
    LoweringVerdict("triton", "not_faster", "slower here; by 3 µs"),
    LoweringVerdict("aiter", "unavailable", "not installed"),
)
TIMED = (
    LoweringVerdict("unfold", "taken", "measured", {"ms": 0.5, "mib": 3.0}),
    LoweringVerdict("direct", "able", "", {"ms": 2.0, "mib": 1.0}),
)
BEFORE = [
    {"label": "x", "value": "bfloat16[2, 16]", "inputs": [], "kind": "input"},
    {"label": "to float32", "value": "float32[2, 16]", "inputs": [0], "kind": "step"},
    {"label": "pow 2", "value": "float32[2, 16]", "inputs": [1], "kind": "step"},
    {"label": "mul", "value": "float32[2, 16]", "inputs": [1, 2], "kind": "output"},
]
AFTER = [
    {"label": "x", "value": "bfloat16[2, 16]", "inputs": [], "kind": "input"},
    {"label": "rocm_passes.rms_norm", "value": "", "inputs": [0], "kind": "output"},
]
VOID = frozenset({"meta", "input", "br", "path", "rect"})


def entry(**changes: Any) -> Entry:
    about: dict[str, Any] = {
        "idiom": "rms_norm",
        "covers": {"rms_norm": 1},
        "outcome": "kept",
        "lowering": None,
        "reason": LEFT + summary(SAID),
        "verdicts": SAID,
        "location": "diffusers/models/wan.py:95",
        "module": "blocks.0.norm",
        "parameters": {"eps": 1e-6},
        "inputs": ({"name": "x", "shape": [2, 16], "stride": [16, 1], "dtype": "bfloat16"},),
        "component": "transformer_wan",
        "bytes": 2048,
        "drawing": {"before": BEFORE},
    }
    return Entry(**{**about, **changes})


@pytest.fixture
def ledgers() -> list[Ledger]:
    first, second = Ledger("graph0"), Ledger("graph1")
    first.add(entry())
    first.add(entry(module="blocks.1.norm", location="project/model.py:99"))
    second.add(
        entry(
            idiom="conv3d",
            covers={"conv3d": 1},
            outcome="rewritten",
            lowering="unfold",
            reason="measured on this machine: 0.5 ms against direct 2 ms",
            verdicts=TIMED,
            notes=("the sum is not rounded",),
            component="autoencoder_kl_wan",
            verification={
                "status": "held",
                "contract": "close",
                "error": 0.25,
                "original_error": 0.5,
            },
            drawing={"before": BEFORE, "after": AFTER},
        )
    )
    second.add(
        entry(
            outcome="refused",
            reason="its <rsqrt> & weight are used elsewhere",
            verdicts=(),
            location="",
            considered=("add_rms_norm: the sum is used 3 times",),
            drawing={},
        )
    )
    return [first, second]


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.found.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def those(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and attributes.items() <= a.items()]


ENVIRONMENT = {"torch": "2.13", "diffusers": "0.42.1", "transformers": None,
               "copy_bytes_per_second": 4e12}  # fmt: skip


def page(ledgers: list[Ledger], **more: Any) -> str:
    return report_html.page({**ledger.to_dict(ledgers, ENVIRONMENT), **more}, "A <ledger>")


def group(text: str, idiom: str, outcome: str) -> str:
    """The HTML of one group."""
    head = rf'<details class="group" id="g\d+" data-idiom="{idiom}" data-outcome="{outcome}"'
    (found,) = re.findall(rf"{head}.*?</ul></details>", text, re.DOTALL)
    return str(found)


def test_like_sites_are_one_group_with_their_sites_inside(ledgers: list[Ledger]) -> None:
    text = page(ledgers)
    parsed = Page(text)
    assert parsed.open == [], "every tag is closed"
    found = [
        (g["data-outcome"], g["data-count"]) for g in parsed.those("details", **{"class": "group"})
    ]
    assert found == [("refused", "1"), ("kept", "2"), ("rewritten", "1")]
    assert group(text, "rms_norm", "kept").count("<li data-tab") == 2
    assert "its <rsqrt> & weight are used elsewhere" in parsed.text
    assert "A <ledger>" in parsed.text
    assert "add_rms_norm: the sum is used 3 times" in parsed.text


def test_reasons_stand_beneath_the_head_one_line_for_each_lowering(ledgers: list[Ledger]) -> None:
    shown = group(page(ledgers), "rms_norm", "kept")
    reason = re.search(r'<p class="reason">(.*?)</p>', shown)
    assert reason is not None
    assert re.findall(r"<span>(.*?)</span>", reason[1]) == [
        LEFT,
        "triton: slower here; by 3 µs",
        "aiter: not installed",
    ]


def test_a_tab_for_each_component(ledgers: list[Ledger]) -> None:
    tabs = [t["data-tab"] for t in Page(page(ledgers)).those("button", role="tab")]
    assert tabs == ["overview", "", "transformer_wan", "autoencoder_kl_wan"]
    document = ledger.to_dict(ledgers)
    document["sites"] = [{"model": f"Model{i % 2}", **s} for i, s in enumerate(document["sites"])]
    document["models"] = [{"model": "Model0", "graph_breaks": 0}]
    text = report_html.page(document, "title")
    # Groups order the components: a refused site, of the second model, comes first.
    assert [t["data-tab"] for t in Page(text).those("button", role="tab")][2:] == [
        "Model1",
        "Model0",
    ]
    assert "graph breaks" in text and 'class="models"' in text
    assert 'class="models"' not in page(ledgers)


def test_it_opens_on_what_was_refused_and_on_what_gained(ledgers: list[Ledger]) -> None:
    left, gained = (
        page(ledgers)
        .split('<section class="overview">')[1]
        .split("</section>")[0]
        .split("Gained most")
    )
    assert re.findall(r'<span class="(\w+)">', left) == ["count", "refused", "count", "kept"]
    assert "triton: slower here" in left and "not installed" not in left, (
        "lowerings that cannot run there are left to the group itself"
    )
    assert "1.5 ms saved" in gained and "By measured time" in gained
    ledgers[1].entries[0] = entry(outcome="rewritten", lowering="triton", reason="by rule")
    assert "No time was measured here" in page(ledgers) and "2 KiB" in page(ledgers)


def test_bars_of_bytes_times_floor_and_errors(ledgers: list[Ledger]) -> None:
    shown = group(page(ledgers), "conv3d", "rewritten")
    bars = re.findall(r"<dt>([^<]*)</dt><dd><i class=\"(\w+)\" style=\"width:([\d.]+)%\"></i>"
                      r"<span>([^<]*)</span>", shown)  # fmt: skip
    assert bars == [
        ("1 site", "measure", "70.0", "2 KiB"),
        ("unfold (taken)", "measure", "17.5", "0.5"),
        ("direct", "measure", "70.0", "2"),
        ("machine&#x27;s floor", "floor", "0.0", "5.12e-07"),
        ("rewritten", "measure", "35.0", "0.25"),
        ("original", "measure", "70.0", "0.5"),
    ]
    assert "machine&#x27;s floor" not in group(page(ledgers), "rms_norm", "kept")


def test_the_worst_verified_site_of_a_group_is_shown() -> None:
    errors = ((1.0, 2.0), (3.0, 2.0), (0.1, 0.2))
    entries = [
        entry(verification={"status": "held", "error": e, "original_error": o}) for e, o in errors
    ]
    shown = page([Ledger("graph0", entries)])
    assert (
        "worst of 3 sites" in shown and "<span>3</span>" in shown and "<span>1</span>" not in shown
    )


def test_each_distinct_graph_is_drawn_once_before_and_after(ledgers: list[Ledger]) -> None:
    text = page(ledgers)
    kept, rewritten = group(text, "rms_norm", "kept"), group(text, "conv3d", "rewritten")
    assert kept.count("<svg") == 1 and "graph of 2 sites" in kept
    assert re.findall("<figcaption>(.*?)</figcaption>", rewritten) == ["before", "after"]
    assert 'class="ours"' in rewritten and "rocm_passes.rms_norm" in rewritten
    assert "<svg" not in group(text, "rms_norm", "refused")
    drawings = ledger.to_dict(ledgers)["drawings"]
    assert drawings == [{"before": BEFORE}, {"before": BEFORE, "after": AFTER}]


def test_a_drawing_has_a_box_for_each_step_and_an_edge_for_each_input() -> None:
    drawn = svg(BEFORE, "a <graph>")
    assert drawn.count("<rect") == 4 and drawn.count("<path") == 4
    assert 'aria-label="a &lt;graph&gt;"' in drawn
    tops = [float(y) for y in re.findall(r'<rect x="[\d.-]+" y="([\d.]+)"', drawn)]
    assert tops == sorted(tops) and len(set(tops)) == 4, "data flows downwards"
    assert svg([], "nothing") == ""


def test_source_lines_are_links_where_they_have_an_address(ledgers: list[Ledger]) -> None:
    shown = group(page(ledgers), "rms_norm", "kept")
    assert re.findall(r'href="([^"]+)"', shown) == [
        "https://github.com/huggingface/diffusers/blob/v0.42.1/src/diffusers/models/wan.py#L95"
    ]
    assert "project/model.py:99" in shown
    for location in ("torch/nn.py:3", "/abs/model.py:1", "transformers/x.py:1", ""):
        assert links.address(location, ENVIRONMENT) is None, location
    assert links.address("diffusers/a.py:1", {"diffusers": "0.43.0.dev0"}) is None


def test_page_loads_nothing(ledgers: list[Ledger]) -> None:
    text = page(ledgers)
    for tag, attributes in Page(text).found:
        assert not {"src", "srcset", "action", "data"} & attributes.keys(), tag
        if "href" in attributes:
            # Where a reader may go; nothing is fetched for the page.
            assert tag == "a" and str(attributes["href"]).startswith(("#", "https://github.com/"))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\s*\(", text)


def test_page_of_no_sites() -> None:
    assert "<output>0 sites<" in page([])
    assert "No site was found" in page([]) and "No site was rewritten" in page([])
    assert "no graph went through the passes" in page([]), "it says why"
    assert "none computes a known idiom" in page([Ledger("graph0")])
    done = page([Ledger("graph0", [entry(outcome="rewritten", lowering="triton", reason="r")])])
    assert "Every site was rewritten" in done and 'class="empty"' not in done
    assert "<output>1 site<" in page([Ledger("graph0", [entry()])])


def test_ledgers_written_before_drawings_were_there_still_have_a_page(
    ledgers: list[Ledger],
) -> None:
    document = ledger.to_dict(ledgers)
    del document["drawings"]
    for site in document["sites"]:
        for field in ("drawing", "bytes", "component"):
            del site[field]
        for verdict in site["verdicts"]:
            del verdict["measured"]
    text = report_html.page(document, "old")
    assert Page(text).open == [] and text.count('class="group"') == 3


def test_a_frame_holds_the_whole_page(ledgers: list[Ledger]) -> None:
    document = ledger.to_dict(ledgers, ENVIRONMENT)
    (frame,) = Page(report_html.framed(document, "A <ledger>")).those("iframe")
    assert frame["srcdoc"] == report_html.page(document, "A <ledger>")

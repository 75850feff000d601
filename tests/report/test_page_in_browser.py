"""The ledger's page in a real browser: its structure, not its pixels.

Skipped where no Chromium is installed (`apt-get install chromium`). Screenshots of the documents
are taken by tests/report/screenshots.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rocm_passes.report import html as report_html
from rocm_passes.report import ledger
from rocm_passes.report.ledger import Ledger
from tests.report.browser import Browser, browser, command
from tests.report.test_html import AFTER, BEFORE, ENVIRONMENT, TIMED, entry

pytestmark = pytest.mark.skipif(command() is None, reason="no Chromium is installed")

WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
LONG = "the weight of a site " * 20 + "a" * 300
VISIBLE = "[...document.querySelectorAll('details.group')].filter(g => g.checkVisibility())"
#: The page's elements with their classes, two levels deep in each section.
OUTLINE = """(() => {
  const name = (e) => e.tagName.toLowerCase() + (e.className ? '.' + e.classList[0] : '');
  const walk = (e, depth) => [name(e), ...(depth ? [...e.children].map((c) => walk(c, depth - 1))
    : [])];
  return [...document.body.children].map((e) => walk(e, 2));
})()"""


def ledgers(sites: int = 4) -> list[Ledger]:
    graph = Ledger("graph0")
    for i in range(sites):
        rewritten = i % 4 == 3
        graph.add(
            entry(
                outcome="rewritten" if rewritten else ("refused", "kept")[i % 2],
                lowering="unfold" if rewritten else None,
                reason="measured" if rewritten else f"{LONG} {i % 40}",
                verdicts=TIMED if rewritten else (),
                component=("transformer_wan", "autoencoder_kl_wan")[i % 2],
                module=f"blocks.{i}.norm",
                drawing={"before": BEFORE, "after": AFTER if rewritten else []},
            )
        )
    return [graph]


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page") / "ledger.html", ledgers())


def written(path: Path, graphs: list[Ledger]) -> Path:
    document = ledger.to_dict(graphs, ENVIRONMENT)
    path.write_text(report_html.page(document, "A ledger"), encoding="utf-8")
    return path


def shown(tab: Browser) -> int:
    count = tab.evaluate(f"{VISIBLE}.length")
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fits_both_widths_and_schemes(
    tab: Browser, file: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    tab.open(file, width, scheme)
    open_all = "select(''); document.querySelectorAll('details').forEach(d => d.open = true)"
    for step in ("0", open_all):
        tab.evaluate(f"{step}; 0")
        across = tab.evaluate("document.documentElement.scrollWidth")
        assert across <= width, "nothing is off the screen"
    page, text = (
        tab.evaluate(f"getComputedStyle(document.body).{p}.match(/\\d+/g).map(Number)")
        for p in ("backgroundColor", "color")
    )
    assert (sum(page[:3]) < sum(text[:3])) == (scheme == "dark")
    shot = tmp_path / "shot.png"
    tab.screenshot(shot)
    assert shot.read_bytes().startswith(b"\x89PNG") and shot.stat().st_size > 5_000


def test_the_structure_is_the_same_at_both_widths_and_as_agreed(tab: Browser, file: Path) -> None:
    outlines = []
    for width in WIDTHS:
        tab.open(file, width)
        outlines.append(tab.evaluate(OUTLINE))
    assert outlines[0] == outlines[1]
    panel = ["div.panel", ["h2"], ["p"], ["ol"]]
    group = ["details.group", ["summary"], ["div.figures"], ["details.drawing"], ["ul.sites"]]
    assert outlines[0][:5] == [
        ["h1"],
        ["p.environment", *[["b"]] * 3],
        ["div.totals", ["div.total", ["b"], ["div.bar"], ["small"]]],
        ["nav.tabs", ["button"], *[["button", ["small"]]] * 3],
        ["section.overview", ["div.panel", ["h2"], ["ol"]], panel],
    ]
    assert [e[0] for e in outlines[0][5:]] == ["form.filters", "section.groups", "script"]
    groups = outlines[0][6][1:]
    assert groups[0] == group and len(groups) == 4


def test_tabs_search_and_links_lead_to_sites(tab: Browser, file: Path) -> None:
    tab.open(file, 1280)
    assert shown(tab) == 0 and tab.evaluate(
        "document.querySelector('.overview').checkVisibility()"
    ), "it opens on the overview"
    tab.evaluate("document.querySelector('[data-tab=autoencoder_kl_wan]').click()")
    assert shown(tab) == 2
    assert tab.evaluate("document.querySelector('output').textContent") == "2 of 4 sites"
    tab.evaluate("document.querySelector('[data-tab=\"\"]').click()")
    tab.evaluate(
        "(i => { i.value = 'Blocks.2'; i.dispatchEvent(new Event('input', {bubbles: true})) })"
        "(document.querySelector('input[type=search]'))"
    )
    assert shown(tab) == 1
    tab.open(file, 1280)
    tab.evaluate("document.querySelector('.panel li a').click()")
    tab.evaluate("new Promise(r => setTimeout(r, 50))")
    assert tab.evaluate(f"{VISIBLE}.filter(g => g.open).length") == 1


def test_groups_can_be_sorted(tab: Browser, file: Path) -> None:
    tab.open(file, 1280)
    chosen = (
        "(s => { s.value = 'saved'; s.dispatchEvent(new Event('input', {bubbles: true})) })"
        "(document.querySelector('select[data-sort]'))"
    )
    tab.evaluate(f"select(''); {chosen}")
    assert tab.evaluate(f"{VISIBLE}.map(g => g.dataset.saved)") == ["1.5", "0", "0", "0"]


def test_without_scripts_everything_is_there(tab: Browser, file: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(file, 400)
        assert shown(tab) == 4
        assert not tab.evaluate("document.querySelector('nav.tabs').checkVisibility()")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_two_thousand_sites_do_not_lag(tab: Browser, tmp_path: Path) -> None:
    """Times are of the page's own work: a tab, a letter of a search. A person notices 100 ms; the
    bound leaves room for a machine under load.
    """
    tab.open(written(tmp_path / "large.html", ledgers(2000)), 1280)
    timed = (
        "(f => { const t = performance.now(); f(); document.body.offsetHeight;"
        " return performance.now() - t })"
    )
    for act in ("() => select('')", "() => select('transformer_wan')", "filter", "sort"):
        times = sorted(tab.evaluate(f"{timed}({act})") for _ in range(3))
        assert times[0] < 400, (act, times)
    assert tab.evaluate("document.querySelector('output').textContent") == "1000 of 2000 sites"

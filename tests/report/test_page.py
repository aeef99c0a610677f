"""The HTML page of a diff in a real browser, and what is in it.

The browser is Debian's `chromium` (or Chrome); where none is installed these tests are skipped.
"""

import json
import math
import re
import shutil

import numpy as np
import pytest

import vcjax
from vcjax import report
from vcjax.diffing import LeafChange
from vcjax.tree import LeafSpec

from ..subprocesses import PATIENCE

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

needs_browser = pytest.mark.skipif(
    BROWSER is None,
    reason=f"no browser: none of {', '.join(BROWSERS)} is installed (apt-get install chromium)",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers forbid Chromium's own sandbox, and the pages are ours.
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def shown(browser, tmp_path):
    """Opens the page of a diff; errors, messages and requests but for the file itself fail."""
    contexts, wrong = [], []

    def show(diff, scheme="light", scripts=True, **options):
        path = tmp_path / "page.html"
        diff.to_html(path, **options)
        context = browser.new_context(
            color_scheme=scheme,
            java_script_enabled=scripts,
            offline=True,
            viewport={"width": 1280, "height": 900},
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url == path.as_uri() or wrong.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert not wrong


def model(seed=0):
    rng = np.random.default_rng(seed)
    layers = {
        f"layers_{i}": {
            "attention": {"kernel": rng.normal(size=(8, 8)), "bias": np.zeros(8)},
            "norm": {"scale": np.ones(8)},
        }
        for i in range(12)
    }
    return {"params": {"embed": {"embedding": rng.normal(size=(20, 8))}, **layers}}


@pytest.fixture(scope="module")
def diff():
    old, new = model(), model()
    for i in range(12):
        new["params"][f"layers_{i}"]["attention"]["kernel"] *= 1 + 0.001 * (i + 1)
    new["params"]["layers_3"]["attention"]["bias"] = np.ones(8)
    new["params"]["table"] = new["params"].pop("embed")
    new["params"]["extra<b>&"] = {"</script><i>": np.ones(3)}
    del new["params"]["layers_5"]["norm"]
    return vcjax.diff(old, new)


def cells(page, column):
    """The texts of a column of the table, by its heading."""
    heads = [text.rstrip(" ↑↓") for text in page.locator("#heads th").all_inner_texts()]
    place = heads.index(column) + 1
    return page.locator(f"#rows tr:not(.detail) > :nth-child({place})").all_inner_texts()


def paths(page):
    rows = page.locator("#rows tr.leaf")
    return rows.evaluate_all("rows => rows.map(row => row.dataset.path)")


@needs_browser
def test_counts_tree_and_search(shown, diff):
    page = shown(diff, title="Fine-tuned", old="main", new="task")
    assert page.title() == "Fine-tuned"
    assert "13 changed" in page.locator(".counts").inner_text()
    assert page.locator("#shown").inner_text() == "16 of 38 leaves"
    names = [name.strip("›").strip() for name in cells(page, "leaf")]
    assert names[0] == "params"
    assert names.index("layers_9") < names.index("layers_10")
    page.get_by_role("button", name="Collapse all").click()
    assert page.locator("#rows tr").count() == 1
    page.get_by_role("searchbox").fill("layers_3 kernel")
    assert paths(page) == ["params/layers_3/attention/kernel"]
    assert page.locator("#shown").inner_text() == "1 of 38 leaves"
    page.get_by_role("searchbox").fill("nothing")
    assert page.locator("#rows tr").count() == 0
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="params").click()
    toggle = page.get_by_role("button", name="params", exact=True)
    assert toggle.get_attribute("aria-expanded") == "true"
    assert toggle.evaluate("button => button === document.activeElement")


@needs_browser
def test_sorting(shown, diff):
    page = shown(diff)
    page.get_by_role("radio", name="list").check()
    page.get_by_role("button", name="relative").click()
    head = page.locator("#heads th", has_text="relative")
    assert head.get_attribute("aria-sort") == "descending"
    kernels = [path for path in paths(page) if path.endswith("kernel")]
    assert kernels == [f"params/layers_{i}/attention/kernel" for i in range(11, -1, -1)]
    assert paths(page)[0] == "params/layers_3/attention/bias"  # from 0
    page.get_by_role("button", name="relative").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert paths(page)[0] == "params/layers_0/attention/kernel"
    page.get_by_role("button", name="relative").click()
    assert head.get_attribute("aria-sort") is None
    page.get_by_role("button", name="leaf").click()
    assert paths(page)[1:4] == [f"params/layers_{i}/attention/kernel" for i in range(3)]


@needs_browser
def test_statuses(shown, diff):
    page = shown(diff)
    page.get_by_role("radio", name="list").check()
    for status in ("changed", "added", "removed"):
        page.get_by_role("checkbox", name=status, exact=True).uncheck()
    assert paths(page) == ["params/table/embedding"]
    assert "← params/embed/embedding" in cells(page, "leaf")[0]
    page.get_by_role("checkbox", name="unchanged").check()
    assert len(paths(page)) == 23


@needs_browser
def test_the_heat_map_leads_to_the_leaf(shown, diff):
    page = shown(diff)
    rows = page.locator("#heat-map tbody th").all_inner_texts()
    assert rows[1:5] == [f"params/layers_{i}" for i in range(4)]
    cell = page.locator('#heat-map td[data-leaf="params/layers_7/attention/kernel"]')
    assert cell.get_attribute("aria-label") == "0.80 %"
    shade = [
        page.locator(f'#heat-map td[data-leaf="params/layers_{i}/attention/kernel"]').evaluate(
            "cell => Number(cell.style.getPropertyValue('--h'))"
        )
        for i in range(12)
    ]
    assert shade == sorted(shade)
    assert (shade[0], shade[-1]) == (0, 100)
    page.get_by_role("button", name="Collapse all").click()
    cell.click()
    row = page.locator("tr.found")
    assert row.get_attribute("data-path") == "params/layers_7/attention/kernel"
    assert "relative l2" in page.locator("tr.detail").inner_text()


@needs_browser
def test_the_heat_map_is_one_stop_for_the_keyboard(shown, diff):
    page = shown(diff)
    assert page.locator('#heat-map td[tabindex="0"]').count() == 1
    page.locator('#heat-map td[tabindex="0"]').focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    path = page.evaluate("document.activeElement.dataset.leaf")
    page.keyboard.press("Enter")
    assert page.locator("tr.found").get_attribute("data-path") == path


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(shown, diff, scheme):
    """Contrast of text of at least 4.5 (WCAG 2.2, 1.4.3)."""
    page = shown(diff, scheme)

    def luminance(selector, what):
        colour = page.locator(selector).first.evaluate(f"x => getComputedStyle(x).{what}")
        # sRGB 0 to 255, or `color(srgb …)` from 0 to 1
        scale = 1 if colour.startswith("color") else 255
        parts = [float(x) / scale for x in re.findall(r"[\d.]+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    paper = luminance("body", "backgroundColor")
    assert (paper > 0.8) == (scheme == "light")
    panel = luminance(".scroll.table", "backgroundColor")
    page.get_by_role("radio", name="list").check()
    statuses = [f".status.{name}" for name in ("changed", "added", "removed", "moved")]
    for selector in ("h1", ".note", ".counts", *statuses):
        text = luminance(selector, "color")
        for behind in (paper, panel):
            low, high = sorted((text, behind))
            assert (high + 0.05) / (low + 0.05) >= 4.5, selector


@needs_browser
def test_names_are_text_and_nothing_else(shown):
    evil = '</script><img src=x onerror="document.title=1">'
    page = shown(vcjax.diff({}, {evil: {evil: np.ones(2)}}), title=evil, old=evil)
    page.get_by_role("radio", name="list").check()
    escaped = evil.replace("/", "%2F")
    assert paths(page) == [f"{escaped}/{escaped}"]
    assert page.title() == evil
    assert page.locator("img").count() == 0


@needs_browser
def test_without_scripts_the_leaves_are_listed(shown, diff):
    page = shown(diff, scripts=False)
    rows = page.locator("noscript tbody tr")
    assert rows.count() == 38
    assert "13 changed" in page.locator(".counts").inner_text()


def large(leaves=2000):
    """A diff of as many leaves, without the arrays."""
    spec = LeafSpec("float32", (64, 64))
    [change] = vcjax.diff({"w": np.ones((8, 8))}, {"w": np.full((8, 8), 2.0)}).changes
    assert change.stats is not None
    changes = []
    for i in range(leaves):
        layer, kind = divmod(i, 20)
        size = math.exp(math.sin(i))
        stats = {**change.stats, "relative_l2": size, "l2": size}
        path = f"params/layers_{layer}/block_{kind // 4}/{'abcd'[kind % 4]}"
        changes.append(LeafChange(path, "changed", spec, spec, stats))
    return vcjax.TreeDiff(tuple(changes))


@needs_browser
def test_it_is_usable_with_2000_leaves(shown):
    page = shown(large())
    assert page.locator("#shown").inner_text() == "2,000 of 2,000 leaves"
    assert page.locator("#heat-map tbody tr").count() == 100
    page.locator("#expand").click()
    page.get_by_role("button", name="l2", exact=True).click()
    page.get_by_role("searchbox").fill("layers_99")
    assert len(paths(page)) == 20
    page.get_by_role("searchbox").fill("")
    page.get_by_role("radio", name="list").check()
    assert 100 < len(paths(page)) < 1000  # as many as are looked at, and some more
    drawn = len(paths(page))
    page.locator(".scroll.table").scroll_into_view_if_needed()
    page.locator(".scroll.table").evaluate("part => part.scrollTop = part.scrollHeight")
    page.locator("#rows tr.leaf").nth(drawn).wait_for(state="attached")
    page.locator('#heat-map td[data-leaf="params/layers_70/block_1/a"]').dispatch_event("click")
    assert page.locator("tr.found").get_attribute("data-path") == "params/layers_70/block_1/a"


# -- without a browser ---------------------------------------------------------


def page_of(diff, tmp_path, **options):
    diff.to_html(tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text()


def test_the_page_asks_for_nothing(diff, tmp_path):
    page = page_of(diff, tmp_path)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.findall(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src 'none'" in page


def test_the_data_in_the_page_are_those_of_the_diff(diff, tmp_path):
    page = page_of(diff, tmp_path)
    [text] = re.findall(r'id="data">(.*?)</script>', page, re.S)
    data = json.loads(text)
    assert [leaf["path"] for leaf in data["leaves"]] == [c.path for c in diff.changes]
    by_path = {leaf["path"]: leaf for leaf in data["leaves"]}
    for change in diff.changes:
        if change.stats is not None:
            stats = by_path[change.path]["stats"]
            assert stats["l2"] == pytest.approx(change.stats["l2"], rel=1e-5)
    assert by_path["params/layers_3/attention/bias"]["stats"]["relative_l2"] == "Infinity"


@pytest.mark.parametrize("trees", [({}, {}), ({"w": 1}, {"w": 1}), (np.ones(2), np.zeros(2))])
def test_pages_of_small_diffs(trees, tmp_path):
    page = page_of(vcjax.diff(*trees), tmp_path)
    assert "<h1>What changed</h1>" in page


def test_a_page_that_cannot_be_written(diff, tmp_path):
    with pytest.raises(vcjax.VcjaxError, match="cannot write"):
        diff.to_html(tmp_path / "nowhere" / "page.html")


def test_an_unknown_report():
    from vcjax.diffing.renderers import render

    with pytest.raises(vcjax.VcjaxError) as caught:
        render("hologram", vcjax.diff({}, {}))
    assert "html, markdown, notebook" in str(caught.value.hint)


def test_the_notebook(diff):
    shown = diff._repr_html_()
    assert "13 changed" in shown
    assert shown.count("<tr>") == 17
    assert "&lt;/script&gt;" not in shown  # "/" in a key is %2F
    assert "&lt;%2Fscript&gt;" in shown
    assert "1975 more" in large()._repr_html_()


def test_markdown(diff):
    text = diff.to_markdown("A | B")
    assert text.startswith(
        "## A \\| B\n\n**1 added, 1 removed, 13 changed, 1 moved, 22 unchanged**"
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5, 8}
    modules = [row for row in rows if "`params/layers_" in row and "unchanged" in row]
    assert len(modules) == 12
    assert "| `params/layers_11/attention/kernel` | changed | float64\\[8,8\\] | 1.20 % |" in text
    assert "<details>" not in text
    folded = large(600).to_markdown()
    assert "480 more leaves" in folded
    assert "100 further leaves are not listed." in folded


def test_sorted_and_chosen_leaves(diff):
    listed = [change.path for change in report.arranged(diff, "relative", ["changed"])]
    assert listed[0] == "params/layers_3/attention/bias"
    assert listed[1:] == [f"params/layers_{i}/attention/kernel" for i in range(11, -1, -1)]
    assert {c.status for c in report.arranged(diff)} == {"added", "removed", "changed", "moved"}
    assert next(c.path for c in report.arranged(diff, "path", ["unchanged"])).endswith("bias")


def test_modules_with_bars(diff):
    lines = [report.plain(line) for line in report.module_lines(diff, 2, sort="l2")]
    assert lines[0].split() == ["module", "leaves", "relative", "l2", "max", "elements", "cosine"]
    assert lines[1].startswith("params/layers_3 ")
    assert lines[2].startswith("params/layers_11 ")
    bars = [line.count("~") for line in lines[2:13]]
    assert bars == sorted(bars, reverse=True)
    assert lines[-1] == "1 added, 1 removed, 13 changed, 1 moved, 22 unchanged"

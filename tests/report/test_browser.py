"""The page in a real browser, headless Chromium: it draws, answers mouse and keyboard, and complains of nothing."""

import itertools
import re
import shutil

import pytest

from nrt_jax.report import write_report
from tests.report.runs import HOSTILE, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install -e '.[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

CONTROLS = {"button", "link", "textbox", "searchbox", "combobox", "slider", "checkbox", "listbox", "option", "image"}


COUNT_ELEMENTS = """
window.numBuilt = 0;
for (const name of ["createElement", "createElementNS", "cloneNode"]) {
  const owner = name === "cloneNode" ? Node.prototype : Document.prototype, build = owner[name];
  owner[name] = function (...args) { window.numBuilt += 1; return build.apply(this, args); };
}
"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages: one run of hostile text, two runs, and a run of 1,000 traces."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = write_run(folder / "hostile", steps=12, text=HOSTILE)
    two = [write_run(folder / name, steps=12) for name in ("first", "second")]
    large = write_run(folder / "large", steps=125, traces=8)
    for name, runs in {"hostile": [hostile], "two": two, "large": [large]}.items():
        write_report(runs, folder / f"{name}.html")
    return folder


@pytest.fixture
def open_page(browser, files):
    """Opens a page in a fresh context, and at the end fails if it said anything or asked for anything."""
    said, contexts = [], []

    def open_page(name, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(3_000)
        page.add_init_script(COUNT_ELEMENTS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or said.append(request.url))
        page.goto(f"file://{files}/{name}.html")
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def test_curves_follow_the_slider_and_the_mouse(open_page):
    page = open_page("two")
    entropy = page.locator("[data-metric=entropy]")
    assert entropy.locator("path.line").count() == 2
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert "0.5" in entropy.locator(".readout").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#step-value").inner_text() == "2" and "0.25" in entropy.locator(".readout").inner_text()
    area = entropy.get_by_role("img")
    area.hover(position={"x": area.bounding_box()["width"] - 16, "y": 30})
    assert page.locator("#step-value").inner_text() == "12"
    page.get_by_label("Smooth").check()
    assert entropy.locator("path.faint").count() == 2


def test_groups_are_searched_filtered_and_paged(open_page):
    page = open_page("two")
    assert "24 questions, page 1 of 5" in page.locator("#count").inner_text()
    page.get_by_role("button", name="Next").click()
    assert "page 2 of 5" in page.locator("#count").inner_text()
    page.get_by_label("Search").fill("what is 7")
    assert page.locator("article h3").all_inner_texts() == ["What is 7 plus 3?"] * 2
    page.locator("#run").select_option("second")
    assert page.locator("article").count() == 1
    page.get_by_label("Show").select_option("equal")
    assert "0 questions, page 1 of 1" in page.locator("#count").inner_text()


def test_tokens_are_coloured_and_read_by_hover_and_by_keyboard(open_page):
    page = open_page("two")
    article = page.locator("article").first
    assert article.locator("summary .numbers").all_inner_texts()[0].startswith("#1  advantage +1  reward 0.9")
    tokens = article.get_by_role("option")
    styles = [re.search(r"(up|down|level)-\d", tokens.nth(i).get_attribute("class"))[0] for i in range(5)]
    assert styles == ["level-0", "down-3", "up-4", "level-0", "level-0"]
    tokens.nth(2).hover()
    expected = 'token " 4": 0.95 with the trace, 0.1 without, difference +0.85'
    assert article.locator(".tokens-readout").inner_text() == expected
    tokens.nth(2).focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").endswith("difference \N{MINUS SIGN}0.3")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == "<eos>"
    article.get_by_text("Numbers of all tokens").first.click()
    assert article.locator("table tbody tr").nth(2).inner_text().split("\t") == ['" 4"', "0.95", "0.1", "+0.85"]


def test_a_trace_opens_by_keyboard(open_page):
    page = open_page("two")
    second = page.locator("article").first.locator("details.trace").nth(1)
    assert second.get_by_role("option").count() == 0  # Built when it is opened.
    second.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert second.get_by_role("option").count() == 5 and "cut at the limit" in second.inner_text()


def test_hostile_text_is_shown_as_it_is(open_page):
    page = open_page("hostile")
    assert page.locator("article h3").first.text_content() == HOSTILE
    assert page.title().startswith("hostile") and page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["hostile", "two"])
def test_a_phone_needs_no_scrolling_sideways_and_text_has_contrast(open_page, tmp_path, name, scheme):
    page = open_page(name, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    for _ in range(2):  # What opens may hold more to open.
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
        page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    colours = page.evaluate(
        "[...document.querySelectorAll('body, .muted, .token, .alarm, .tick')].map(node => {"
        " let box = node; while (getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)') box = box.parentElement;"
        " const style = getComputedStyle(node);"
        " return [node.closest('svg') ? style.fill : style.color, getComputedStyle(box).backgroundColor] })"
    )
    worst = min(contrast(*pair) for pair in set(map(tuple, colours)))
    assert worst >= 4.5
    assert len(page.screenshot(path=tmp_path / "phone.png", full_page=True)) > 10_000


def contrast(*colours: str) -> float:
    """The contrast ratio of WCAG 2 between two colours, `rgb(r, g, b)` each."""

    def luminance(colour):
        linear = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in linear)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_every_control_and_picture_has_a_name(open_page):
    page = open_page("two")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    found = [(role, name) for role, name in roles if role in CONTROLS]
    assert {"button", "link", "searchbox", "combobox", "slider", "checkbox", "listbox", "image"} <= {
        r for r, _ in found
    }
    assert [role for role, name in found if not name.strip()] == []
    levels = [int(node.evaluate("n => n.tagName[1]")) for node in page.locator("h1, h2, h3, h4, h5").all()]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_thousand_traces_are_there_soon(open_page, browser, files):
    """In what other processes do not change: bytes, elements ever built, and CPU seconds from a new page on."""

    def cpu_seconds():
        processes = devtools.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(process["cpuTime"] for process in processes)

    devtools = browser.new_browser_cdp_session()
    before = cpu_seconds()
    page = open_page("large")
    spent, wall = cpu_seconds() - before, page.evaluate("performance.now()") / 1000
    built, size = page.evaluate("window.numBuilt"), (files / "large.html").stat().st_size
    print(f"1,000 traces: ready within {wall:.2f} s; {spent:.2f} s of CPU, {built} elements, {size} bytes")
    assert "125 questions" in page.locator("#count").inner_text()
    assert size < 1_000_000
    assert 500 < built < 3000  # What is not on the screen is not built.
    assert spent < 3


def test_differences_of_config_come_first(open_page):
    page = open_page("two")
    rows = page.locator("#config-body table").first.locator("tbody tr").all_inner_texts()
    assert rows == ['reward.mode\t"first"\t"second"']

"""The page in a real browser: light and dark, wide and narrow, on paper, by keyboard and for a screen reader."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from pypdf import PdfReader

from browser import watched_page
from cluster.waiting import wait_until
from distillchain_api.failures import FailureClass
from distillchain_api.wire.records import HISTORY_FILE, PREDICTIONS_FILE
from distillchain_report.load import WantedStage
from distillchain_report.model import Report
from distillchain_report.render import render_html
from report.controlled import a_controlled_plan, commit_controlled, report_on
from report.stores import MARKUP, a_report, digest_of

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

FAILED = WantedStage(
    "femto",
    digest_of("femto"),
    phase="Failed",
    message="student femto: accuracy 0.6123 is below spec.stages[2].gate.minMetric 0.79; train longer or lower the gate",
    failure_class=FailureClass.GATE_NOT_MET,
)
RUNNING = WantedStage("femto", digest_of("femto"), phase="Running", message="Train 300/900")
TEN = {
    "names": [f"student-{number}" for number in range(1, 11)],
    "accuracies": [0.93, 0.93, 0.92, 0.92, 0.91, 0.9, 0.9, 0.88, 0.86, 0.83, 0.79],
}
LONG = (
    "it is a truth universally acknowledged that a film in possession of a good fortune must be in want of a plot, " * 4
)
TOPICS = [
    "politics and government", "science/technology", "sport", "business", "health", "entertainment", "travel",
    "education", "environment", "food and drink", "fashion", "automotive industry",
]  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "three stages": {},
    "one stage": {"names": ["femto"], "accuracies": [0.93, 0.88]},
    "ten stages": TEN,
    "ten stages, long texts, eight classes": {
        **TEN, "text": LONG, "labels": [f"a longer class name {number}" for number in range(8)], "metric": "macroF1",
    },
    "fine-tuned teacher": {"fine_tuned": True},
    "failed": {"names": ["mini", "tiny"], "accuracies": [0.93, 0.92, 0.89], "waiting": [FAILED]},
    "half done": {"names": ["mini"], "accuracies": [0.93, 0.92], "waiting": [RUNNING, WantedStage("nano", "f" * 64)]},
    "nothing committed": {"names": [], "accuracies": [0.93], "waiting": [FAILED]},
    "names with markup": {
        "labels": [MARKUP, f"{MARKUP} too"], "chain": MARKUP, "text": MARKUP, "device": MARKUP,
        "names": ["m" * 32, "tiny"], "accuracies": [0.93, 0.9, 0.8],
    },
    "six classes": {"labels": TOPICS[:6], "rows": 5000, "metric": "macroF1"},
    "twelve classes": {"labels": TOPICS, "rows": 5000},
    "many classes": {"labels": [f"class {number}" for number in range(150)]},
    "doubtful, with warnings": {
        "labels": TOPICS[:6], "never": {"sport": "health"}, "latency": (1.234, 148.2),
        "warnings": {name: [LONG, f"a warning of {name}"] for name in ("mini", "tiny", "femto")},
        "doubt": "accuracy 0.2 on 872 validation rows could be luck",
    },
    "only the students' predictions": {"files": [PREDICTIONS_FILE]},
    "no predictions": {"files": [HISTORY_FILE]},
    "controls": {},
}  # fmt: skip

Open = Callable[..., Page]


def report_of(case: str, folder: Path) -> Report:
    """The report of a case, from a store that is written to `folder`."""
    if case == "controls":
        plan = a_controlled_plan()
        return report_on(commit_controlled(folder, plan, chain=0.9, from_root=0.88, direct=0.8, spread=0.01), plan)
    return a_report(folder, **CASES[case])


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a case; each is written once."""
    folder = tmp_path_factory.mktemp("pages")

    def page_of(case: str) -> Path:
        path = folder / f"{list(CASES).index(case)}.html"
        if not path.exists():
            path.write_text(render_html(report_of(case, path.with_suffix(""))), encoding="utf-8")
        return path

    return page_of


@pytest.fixture
def open_page(browser: Browser, pages: Callable[[str], Path]) -> Iterator[Open]:
    """Opens a case's file. The test fails if the page loads something or writes to the console."""
    with ExitStack() as opened:

        def open_case(case: str, *, dark: bool = False, width: int = 1200) -> Page:
            address = pages(case).as_uri()
            looks = {"color_scheme": "dark" if dark else "light", "viewport": {"width": width, "height": 900}}
            page = opened.enter_context(
                watched_page(browser, lambda asked: asked in (address, "data:,"), offline=True, **looks)
            )
            page.goto(address)
            return page

        yield open_case


@pytest.mark.parametrize("dark", [pytest.param(False, id="light"), pytest.param(True, id="dark")])
@pytest.mark.parametrize("case", CASES)
def test_no_accessibility_rule_is_broken(open_page: Open, case: str, dark: bool):
    # A dark page differs in its colours alone, so only the rule about colours can give another answer there.
    options = {"runOnly": ["color-contrast"]} if dark else {"resultTypes": ["violations"]}

    found = Axe().run(open_page(case, dark=dark), options=options)

    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > (0 if dark else 20), "axe has checked something"


@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("case", CASES)
def test_only_tables_scroll_sideways(open_page: Open, case: str, width: int):
    page = open_page(case, width=width)

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_cell_covers_the_one_beside_it(open_page: Open):
    page = open_page("names with markup")

    assert page.evaluate(
        """[...document.querySelectorAll("th, td")].filter(cell => cell.scrollWidth > cell.clientWidth + 1)
             .map(cell => cell.textContent)"""
    ) == []  # fmt: skip


@pytest.mark.parametrize("paper", ["A4", "Letter"])
@pytest.mark.parametrize("case", CASES)
def test_it_prints_on_two_pages(open_page: Open, case: str, paper: str):
    page = open_page(case, dark=True)

    printed = PdfReader(io.BytesIO(page.pdf(format=paper)))

    assert len(printed.pages) <= 2


@pytest.mark.parametrize("width", [1200, 1920])
@pytest.mark.parametrize("case", ["six classes", "twelve classes", "ten stages, long texts, eight classes"])
def test_a_confusion_matrix_fits_a_screen(open_page: Open, case: str, width: int):
    page = open_page(case, width=width)

    region = page.get_by_role("region", name="Confusion matrix")

    assert region.evaluate("found => found.scrollWidth <= found.clientWidth")
    assert region.get_by_role("columnheader", name="recall", exact=True).count() == 1


def test_a_confusion_matrix_that_does_not_fit_has_a_visible_scroll_bar(open_page: Open):
    region = open_page("twelve classes", width=390).get_by_role("region", name="Confusion matrix")

    assert region.evaluate("found => found.scrollWidth > found.clientWidth")
    bar = region.evaluate("found => getComputedStyle(found, '::-webkit-scrollbar').height")
    assert bar == "9.6px", "a bar with a style of its own is always drawn; Playwright itself hides it"


@pytest.mark.parametrize("paper_px", [pytest.param(718, id="A4"), pytest.param(740, id="Letter")])
@pytest.mark.parametrize("case", ["six classes", "twelve classes", "ten stages, long texts, eight classes"])
def test_a_confusion_matrix_is_printed_whole(open_page: Open, case: str, paper_px: int):
    """The widths are those of the papers within the page's margins, at 96 pixels an inch."""
    page = open_page(case, width=paper_px)

    page.emulate_media(media="print")

    right = page.locator("table.matrix").evaluate("found => found.getBoundingClientRect().right")
    assert right <= paper_px
    printed = " ".join(found.extract_text() for found in PdfReader(io.BytesIO(page.pdf(format="A4"))).pages)
    for score in page.locator("table.matrix .score .range").all_text_contents():
        assert score in printed


def test_the_badge_of_a_doubtful_result_is_not_green(open_page: Open):
    def colour(case: str, words: str) -> str:
        found: str = open_page(case).get_by_text(words, exact=True).evaluate("found => getComputedStyle(found).color")
        return found

    assert colour("three stages", "Succeeded") == "rgb(20, 108, 55)"
    assert colour("doubtful, with warnings", "Succeeded, doubtful") == "rgb(122, 88, 0)"
    assert colour("doubtful, with warnings", "4 warnings") == "rgb(122, 88, 0)"


def test_the_printed_words_are_words(open_page: Open):
    printed = PdfReader(io.BytesIO(open_page("three stages").pdf(format="A4")))

    text = " ".join(" ".join(page.extract_text().split()) for page in printed.pages)
    text = unicodedata.normalize("NFKC", text)  # ligatures

    for words in (
        "femto keeps 89.3 %",
        "times fewer parameters than the teacher",
        "Where teacher and femto differ most",
    ):
        assert words in text


def test_figures_follow_the_page_from_light_to_dark(open_page: Open):
    def colours(page: Page) -> set[str]:
        found: list[str] = page.evaluate(
            "[...document.querySelectorAll('svg text')].map(word => getComputedStyle(word).fill)"
        )
        return set(found)

    light, dark = colours(open_page("three stages")), colours(open_page("three stages", dark=True))

    assert light == {"rgb(28, 33, 40)", "rgb(89, 99, 110)"}
    assert dark == {"rgb(232, 235, 239)", "rgb(163, 173, 184)"}


OUTSIDE = """[...document.querySelectorAll("svg")].flatMap(figure => {
    const place = figure.getBoundingClientRect();
    return [...figure.querySelectorAll("text")].filter(text => {
        const own = text.getBoundingClientRect();
        return own.left < place.left - 1 || own.right > place.right + 1;
    }).map(text => text.textContent);
})"""


def test_no_word_of_a_figure_is_cut_off(browser: Browser, tmp_path: Path):
    report = report_of("three stages", tmp_path)
    metric = report.metric.model_copy(update={"display_name": "token cross-entropy", "higher_is_better": False})
    page = tmp_path / "report.html"
    page.write_text(render_html(report.model_copy(update={"metric": metric})), encoding="utf-8")

    with watched_page(browser, lambda _: True) as opened:
        opened.goto(page.as_uri())
        assert opened.locator("svg text").count() > 20
        assert opened.evaluate(OUTSIDE) == []


def test_the_names_of_models_of_about_the_same_size_do_not_lie_on_each_other(browser: Browser, tmp_path: Path):
    report = a_report(tmp_path, names=["mini"], accuracies=[0.93, 0.93])
    (mini,) = report.stages
    assert mini.model is not None
    mini = mini.model_copy(update={"model": mini.model.model_copy(update={"compression": 1.05})})
    page = tmp_path / "report.html"
    page.write_text(render_html(report.model_copy(update={"stages": [mini]})), encoding="utf-8")

    with watched_page(browser, lambda _: True) as opened:
        opened.goto(page.as_uri())
        teacher, student = (
            opened.locator("svg").first.get_by_text(name, exact=True).bounding_box() for name in ("teacher", "mini")
        )

    assert teacher is not None
    assert student is not None
    assert teacher["y"] + teacher["height"] <= student["y"]


def test_every_figure_has_a_description_for_screen_readers(open_page: Open):
    page = open_page("three stages")

    figures = page.get_by_role("img")

    assert figures.count() == page.locator("svg").count() == 4
    assert page.get_by_role("img", name="Share of the teacher’s accuracy kept, against compression").count() == 1
    assert page.get_by_role("img", name="Training of femto").count() == 1
    description = page.locator("#quality-description").text_content()
    assert description is not None
    assert "femto: 89.3 % at 74× fewer parameters" in description


def test_the_page_can_be_used_by_keyboard(open_page: Open):
    page = open_page("three stages", width=390)

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "it is visible while it has the focus"  # type: ignore[index]  # it is on the page
    regions = []
    for _ in range(5):
        page.keyboard.press("Tab")
        regions.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert regions == ["Step by step", "Confusion matrix", "Rows that differ most", "Time", "Lineage"]
    page.get_by_role("region", name="Lineage").focus()
    page.keyboard.press("ArrowRight")
    wait_until("the table to scroll", lambda: page.evaluate("document.activeElement.scrollLeft") > 0, deadline_s=10)


def test_headings_go_down_one_level_at_a_time(open_page: Open):
    page = open_page("failed")

    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(heading => Number(heading.tagName[1]))")

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_markup_in_names_is_shown_as_text(open_page: Open):
    page = open_page("names with markup")

    assert page.get_by_text(MARKUP, exact=True).count() >= 2
    assert page.locator("img, script").count() == 0

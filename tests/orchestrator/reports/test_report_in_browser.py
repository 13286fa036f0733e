"""The HTML reports in a real browser: nothing leaves the file, nothing complains, nothing runs over the edge."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from jobs.experiment import Plan
from orchestrator.reports import experiment_report
from orchestrator.workloads.sweep import report as sweep_report
from tests.orchestrator import tables_sample
from tests.orchestrator.chromium import Tab, chromium, program
from tests.orchestrator.reports.test_experiment_report import RUN, half_done
from tests.orchestrator.reports.test_verdict_sections import measured_plan
from tests.orchestrator.workloads.sweep.test_report import row, sweep_of
from workers.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

PHONE, DESK = 390, 1280
WIDTHS = (360, PHONE, 600, 900, 1440)
SAMPLE = Path(__file__).resolve().parents[3] / "docs" / "sample" / "report.html"
HEIGHTS = {390: 844, 1440: 900}
"""The first screen of a phone and of a desk."""
WIDEST = """
    [...document.querySelectorAll('body *')].filter(one => !one.closest('.scroller') || one.matches('.scroller'))
        .map(one => one.getBoundingClientRect().right).reduce((a, b) => Math.max(a, b), 0)
"""
"""The right edge of whatever does not stand in a box of its own."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    executable = program()
    if executable is None:
        pytest.skip("no chromium; apt-get install chromium provides it")
    with chromium(executable, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of tables, that of a half-done experiment, one with a verdict, that of a sweep, and the sample."""
    folder = tmp_path_factory.mktemp("pages")
    tables = tables_sample.write(folder / "tables", scale="paper")
    store = Store.open(folder / "store")
    plan, _ = half_done(store)
    run = experiment_report.write(folder / "run", plan, store, RUN)
    judged_store = Store.open(folder / "judged-store")
    judged = experiment_report.write(folder / "judged", measured_plan(judged_store), judged_store, RUN)
    trials = [row(1, 40.0, stages=1, ipc=1), row(2, 41.5, stages=2, ipc=2), row(3, 30.0, "stopped", stages=1, ipc=2)]
    sweep = sweep_report.write(folder / "sweep", sweep_of(), trials, [], Plan(), store, RUN)
    files = {"tables": tables, "run": run, "verdict": judged, "sweep": sweep}
    written = {kind: next(path for path in paths if path.suffix == ".html") for kind, paths in files.items()}
    return {**written, "sample": SAMPLE}


@pytest.fixture(params=["tables", "run", "verdict", "sweep", "sample"])
def page(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    return pages[request.param]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_request_leaves_the_file_and_the_console_stays_empty(tab: Tab, page: Path, width: int, scheme: str) -> None:
    tab.open(page, width, media={"prefers-color-scheme": scheme})
    assert [url for url in tab.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert tab.complaints() == []
    assert tab.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, *WIDTHS])
def test_nothing_runs_over_the_edge_even_with_all_folds_open(tab: Tab, page: Path, width: int, scheme: str) -> None:
    tab.open(page, width, media={"prefers-color-scheme": scheme})
    tab.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert tab.value("document.documentElement.scrollWidth") <= tab.value("innerWidth") == width
    assert tab.value(WIDEST) <= width + 0.5


def test_on_a_phone_the_column_that_stays_in_sight_leaves_room_for_the_others(tab: Tab, page: Path) -> None:
    tab.open(page, PHONE)
    tab.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    widths = "[...document.querySelectorAll('tbody th')].map(one => one.getBoundingClientRect().width)"
    assert max(tab.value(widths)) < PHONE / 2


@pytest.mark.parametrize("width", WIDTHS)
def test_the_name_of_a_row_is_never_broken_letter_by_letter(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width)
    tab.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    short = 0 if width <= 600 else 3  # letters of a name that needs no more room, where nothing presses on it
    narrow = f"""[...document.querySelectorAll('tbody th')]
        .filter(one => one.getBoundingClientRect().width <= 3 * parseFloat(getComputedStyle(one).fontSize))
        .map(one => one.textContent).filter(name => name.length > {short})"""
    assert tab.value(narrow) == []
    names = tab.value("document.querySelectorAll('tbody th').length")
    assert names > 0


@pytest.mark.parametrize("width", HEIGHTS)
def test_the_verdict_stands_on_the_first_screen(tab: Tab, pages: dict[str, Path], width: int) -> None:
    tab.open(pages["verdict"], width)
    assert "significantly better than MTT" in tab.value("document.querySelector('.verdict p').textContent")
    assert tab.value("document.querySelector('.verdict p').getBoundingClientRect().bottom") < HEIGHTS[width]
    assert tab.value("document.querySelector('.verdict').getBoundingClientRect().top") > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", HEIGHTS)
def test_the_verdict_is_read_in_either_scheme(tab: Tab, pages: dict[str, Path], width: int, scheme: str) -> None:
    tab.open(pages["verdict"], width, media={"prefers-color-scheme": scheme})
    assert tab.value("document.querySelector('.verdict p').getBoundingClientRect().bottom") < HEIGHTS[width]
    words = brightness(tab.value("getComputedStyle(document.querySelector('.verdict p')).color"))
    ground = brightness(tab.value("getComputedStyle(document.querySelector('.verdict')).backgroundColor"))
    assert (max(ground, words) + 0.05) / (min(ground, words) + 0.05) > 7


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_rows_of_an_image_grid_are_named_in_text_beside_their_images(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width)
    grids = tab.value("document.querySelectorAll('.labelled').length")
    places = """[...document.querySelectorAll('.labelled')].map(one => {
        const image = one.querySelector('img').getBoundingClientRect(), names = [...one.querySelectorAll('li')]
        return names.map((name, row) => {
            const box = name.getBoundingClientRect()
            const middle = image.top + (row + 0.5) * image.height / names.length
            return [Math.abs((box.top + box.bottom) / 2 - middle), box.right - image.left]
        })
    }).flat()"""
    assert (grids > 0) == bool(tab.value(places))
    assert all(off < 12 and past < 1 for off, past in tab.value(places))


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_screenshot_shows_a_margin_free_of_ink(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width)
    with Image.open(io.BytesIO(tab.screenshot())) as shot:
        assert shot.width == width
        right = shot.convert("RGB").crop((width - 12, 0, width, shot.height))
        assert right.getcolors() is not None and len(right.getcolors() or []) == 1
        assert len(shot.convert("RGB").getcolors(1 << 24) or []) > 50


def test_the_dark_scheme_is_dark_and_its_words_can_be_read(tab: Tab, page: Path) -> None:
    for scheme in ("light", "dark"):
        tab.open(page, DESK, media={"prefers-color-scheme": scheme})
        ground = brightness(tab.value("getComputedStyle(document.body).backgroundColor"))
        words = brightness(tab.value("getComputedStyle(document.body).color"))
        assert (ground < 0.1) == (scheme == "dark")
        assert (max(ground, words) + 0.05) / (min(ground, words) + 0.05) > 7


def brightness(colour: str) -> float:
    """The relative luminance (WCAG) of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_keyboard_skips_to_the_content_and_sees_where_it_is(tab: Tab, page: Path) -> None:
    tab.open(page, DESK)
    tab.press("Tab")
    assert tab.value("document.activeElement.textContent") == "Skip to the content"
    assert tab.value("document.activeElement.getBoundingClientRect().top") >= 0
    assert tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter")
    assert tab.value("document.activeElement.id") == "content"
    tab.press("Tab")
    assert tab.value("document.activeElement.closest('main') !== null")


def test_every_anchor_leads_somewhere_that_can_be_seen(tab: Tab, page: Path) -> None:
    tab.open(page, PHONE)
    lost = """[...document.querySelectorAll('a[href]')].map(one => one.getAttribute('href'))
        .filter(href => !href.startsWith('#') || !document.getElementById(href.slice(1)))"""
    assert tab.value(lost) == []


def test_the_page_prints(tab: Tab, page: Path) -> None:
    tab.open(page, DESK, media={"prefers-color-scheme": "dark"})
    printed = tab.pdf()
    assert printed.startswith(b"%PDF") and len(printed) > 5000
    tab.ask("Emulation.setEmulatedMedia", media="print")
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"

"""The HTML page of a model in headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.report.page import html, results, sections
from pipeline.workflow.runner import Store
from tests.pipeline.report.page.test_page import with_all_fields, with_confusion, with_hostile_texts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TELEPHONE, DESK, PAPER = 360, 1280, 700
LIGHT, DARK = "light", "dark"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    pytest.importorskip("playwright", reason="needs pip install '.[browser]'")
    pytest.importorskip("axe_playwright_python", reason="needs pip install '.[browser]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Its sandbox does not work for root, which tests often are.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module", params=["complete", "hostile", "half"])
def file(request: pytest.FixtureRequest, built: Store, tmp_path_factory: Any) -> Path:
    """Pages of a complete model, of one with texts that are markup, and of one half made."""
    folder = tmp_path_factory.mktemp("page")
    store = built
    if request.param == "half":
        store = Store(folder / "artifacts", folder / "dist")
        shutil.copytree(built.root / "lenet", store.root / "lenet")
        shutil.rmtree(store.root / "lenet/fp32/pytorch")
        (store.root / "lenet/fp32/bench.json").unlink()
    known = with_all_fields(with_confusion(results.collect("lenet", (), store)))
    if request.param == "hostile":
        known = with_hostile_texts(known)
    path: Path = folder / "page.html"
    page = sections.page(known, store.place)
    path.write_text(html.text(page, known, store.root), encoding="utf-8")
    return path


def opened(browser: "Browser", file: Path, width: int, scheme: str) -> "Page":
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(file.as_uri())
    return page


def unfold(page: "Page") -> None:
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")


def test_no_message_and_no_request(browser: "Browser", file: Path) -> None:
    messages: list[str] = []
    requests: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    unfold(page)
    page.wait_for_timeout(200)
    assert messages == []
    assert requests == [file.as_uri()]


@pytest.mark.parametrize("width", [TELEPHONE, DESK])
def test_nothing_is_wider_than_the_screen(browser: "Browser", file: Path, width: int) -> None:
    page = opened(browser, file, width, LIGHT)
    for folded in (True, False):
        if not folded:
            unfold(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # Except inside of what scrolls by itself.
        wide = page.evaluate(
            """width => [...document.querySelectorAll('body *')]
                .filter(e => !e.closest('.scroll *') && !e.closest('svg *'))
                .filter(e => e.getBoundingClientRect().right > width + 0.5)
                .map(e => e.outerHTML.slice(0, 80))""",
            width,
        )
        assert wide == []


@pytest.mark.parametrize("width", [TELEPHONE, DESK])
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_axe_has_nothing_serious(browser: "Browser", file: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(browser, file, width, scheme)
    unfold(page)
    violations = Axe().run(page).response["violations"]
    serious = [entry for entry in violations if entry["impact"] in ("serious", "critical")]
    assert [(entry["id"], entry["nodes"][0]["html"]) for entry in serious] == []


def test_the_schemes_differ_and_plots_follow(browser: "Browser", file: Path) -> None:
    colours = []
    for scheme in (LIGHT, DARK):
        page = opened(browser, file, DESK, scheme)
        colours.append(
            page.evaluate(
                """() => [getComputedStyle(document.body).backgroundColor,
                    getComputedStyle(document.body).color,
                    ...[...document.querySelectorAll('svg text')].slice(0, 1)
                        .map(e => getComputedStyle(e).fill)]"""
            )
        )
    light, dark = colours
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert light[1] == light[2]
    assert dark[1] == dark[2]


def test_paper_has_everything_in_black_on_white(browser: "Browser", file: Path) -> None:
    page = opened(browser, file, PAPER, DARK)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    hidden = page.evaluate(
        """[...document.querySelectorAll('table')]
            .filter(e => !e.checkVisibility({contentVisibilityAuto: true}) || !e.clientHeight)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert hidden == []
    assert page.evaluate("document.documentElement.scrollWidth") == PAPER
    assert page.pdf(format="A4").startswith(b"%PDF")

"""A build's page in a real browser: on a phone, and with the network cut off."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from slmops.testing.sample_build import sample_build
from slmops.workshop.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESK = 380, 1280

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    heat = {(layer, "attn_q"): 0.001 * (1 + layer) for layer in range(30)}
    files = write_report(
        sample_build(), tmp_path_factory.mktemp("report"), sensitivity=heat
    )
    return Path(files["page"]).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


def opened(browser: Browser, address: str, width: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(address)
    page.wait_for_selector("#chart.vega-embed svg")
    page.wait_for_selector("#heat.vega-embed svg")
    assert [one for one in problems if one != address] == []
    return page


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_is_never_wider_than_the_screen(
    browser: Browser, address: str, width: int
) -> None:
    page = opened(browser, address, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The script has drawn the chart anew: nothing of it may spill either.
    for figure in page.locator("figure .scroll").all():
        box = figure.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width
    page.close()


def test_on_a_phone_the_chart_stays_readable_and_scrolls_in_its_own_box(
    browser: Browser, address: str
) -> None:
    page = opened(browser, address, PHONE)
    chart = page.locator("#chart svg").bounding_box()
    assert chart is not None
    assert chart["width"] >= 700
    scrolled = page.locator("figure .scroll").first.evaluate(
        "box => { box.scrollLeft = 200; return box.scrollLeft; }"
    )
    assert scrolled == 200
    page.close()

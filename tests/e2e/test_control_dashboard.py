"""The dashboard in a real browser, against a real control plane."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from slmops.domain.blueprint import WavePlan
from slmops.domain.device import DeviceFacts
from slmops.testing.control_in_process import QUICK_POLICY, quick_release
from slmops.testing.control_process import ControlProcess
from slmops.testing.sample_release import publish_sample
from slmops.testing.scripted_device import ScriptedDevice

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

_EVIL = "<img src=x onerror=document.body.dataset.owned=1>"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlProcess]:
    policy = replace(
        QUICK_POLICY, waves=(WavePlan(count=2), WavePlan(share=1.0)), alpha=0.3
    )
    releases = [quick_release(1, policy=policy), quick_release(2, policy=policy)]
    publish_sample(tmp_path, releases, now=time.time())
    server = ControlProcess(workspace=tmp_path)
    server.start()
    yield server
    server.kill_if_running()


@pytest.fixture
def page(server: ControlProcess) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: (
                problems.append(message.text) if message.type == "error" else None
            ),
        )
        yield page
        browser.close()
    # A wrong token and a restart are part of the stories told here.
    expected = ("403", "ERR_")
    assert [
        problem for problem in problems if not any(one in problem for one in expected)
    ] == []


def operator_token(server: ControlProcess) -> str:
    path = server.workspace / "control" / "operator-token"
    return path.read_text(encoding="ascii").strip()


def enrol(server: ControlProcess, count: int) -> list[ScriptedDevice]:
    fleet = []
    with server.operator() as operator:
        for index in range(count):
            device = ScriptedDevice(
                name=f"till-{index}",
                facts=DeviceFacts(
                    memory_mib=512, disk_mib=900, cpu_count=1, architecture="x86_64"
                ),
                bad_releases={"sample-2": f"answers differ {_EVIL}"},
                steps=(),
            )
            device.enrol(operator, operator.post("/v1/tokens").json()["token"])
            fleet.append(device)
    return fleet


def play(server: ControlProcess, fleet: list[ScriptedDevice], rollout: str) -> None:
    with server.operator() as operator:
        for _ in range(100):
            for device in fleet:
                device.sync(operator)
            if operator.get(f"/v1/rollouts/{rollout}").json()["state"] != "running":
                return
            time.sleep(0.05)
    raise AssertionError("the rollout never ended")


def test_it_asks_for_the_token_and_says_when_it_is_wrong(
    server: ControlProcess, page: Page
) -> None:
    page.goto(server.url)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("not this control plane").wait_for()
    page.get_by_label("Token").fill(operator_token(server))
    page.get_by_role("button", name="Open").click()
    page.get_by_text("No device has enrolled yet").wait_for()
    page.reload()
    page.get_by_text("No device has enrolled yet").wait_for()


def test_the_link_that_serve_prints_opens_it_and_leaves_the_address_clean(
    server: ControlProcess, page: Page
) -> None:
    page.goto(f"{server.url}/#token={operator_token(server)}")
    page.get_by_text("live", exact=True).wait_for()
    assert page.url == f"{server.url}/"


def test_it_follows_a_rollout_to_its_halt_without_a_reload(
    server: ControlProcess, page: Page
) -> None:
    page.goto(f"{server.url}/#token={operator_token(server)}")
    page.get_by_text("No device has enrolled yet").wait_for()
    fleet = enrol(server, 5)
    page.get_by_role("cell", name="till-4").wait_for()
    page.get_by_text("slmops rollout start sample-2").wait_for()
    with server.operator() as operator:
        operator.post("/v1/rollouts", json={"release": "sample-1"}).raise_for_status()
    page.locator(".pill.busy", has_text="running").wait_for()
    play(server, fleet, "r-1")
    page.locator(".rollout .pill.good", has_text="done").wait_for()
    assert page.locator(".strip .dot.succeeded").count() == 5
    with server.operator() as operator:
        operator.post("/v1/rollouts", json={"release": "sample-2"}).raise_for_status()
    play(server, fleet, "r-2")
    banner = page.get_by_role("alert").filter(has_text="halted by itself")
    banner.wait_for()
    assert "answers differ" in banner.inner_text()
    assert page.title().startswith("✕ halted")
    fails = page.locator("#verdicts li.fail")
    assert "answers differ" in fails.first.inner_text()
    # What a device says is shown, never run.
    assert _EVIL in banner.inner_text()
    assert page.evaluate("document.body.dataset.owned") is None


def test_it_finds_the_control_plane_again_after_a_restart(
    server: ControlProcess, page: Page
) -> None:
    page.goto(f"{server.url}/#token={operator_token(server)}")
    page.get_by_text("live", exact=True).wait_for()
    server.kill_if_running()
    page.get_by_text("connection lost, trying again").wait_for()
    server.start()
    page.get_by_text("live", exact=True).wait_for(timeout=20_000)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_phone_and_a_desktop(
    server: ControlProcess, page: Page, width: int
) -> None:
    enrol(server, 3)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{server.url}/#token={operator_token(server)}")
    page.get_by_text("till-2").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_retired_device_is_on_the_page_no_more(
    server: ControlProcess, page: Page
) -> None:
    enrol(server, 3)
    page.goto(f"{server.url}/#token={operator_token(server)}")
    page.get_by_role("cell", name="till-1").wait_for()
    with server.operator() as operator:
        operator.post("/v1/devices/till-1/retire").raise_for_status()
    page.get_by_role("cell", name="till-1").wait_for(state="detached")
    assert page.get_by_role("cell", name="till-2").count() == 1
    assert "device.retire" in page.locator("#audit").inner_text()


@pytest.mark.parametrize("width", [380, 1400])
def test_the_main_release_stays_on_one_line(
    server: ControlProcess, page: Page, width: int
) -> None:
    fleet = enrol(server, 2)
    with server.operator() as operator:
        operator.post("/v1/rollouts", json={"release": "sample-1"}).raise_for_status()
    play(server, fleet, "r-1")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{server.url}/#token={operator_token(server)}")
    label = page.locator("#totals .label")
    label.wait_for()
    assert label.get_attribute("title") == "sample-1"
    one = label.evaluate("e => e.clientHeight")
    longer = """e => {
        const name = e.querySelector("span");
        const cut = () => name.scrollWidth > name.clientWidth;
        const before = cut();
        name.textContent = name.textContent.repeat(9);
        const version = document.createRange();
        version.selectNode(name.nextSibling);
        const inside = version.getBoundingClientRect().right
            <= e.getBoundingClientRect().right + 1;
        return [e.clientHeight, before, cut(), inside];
    }"""
    assert label.evaluate(longer) == [one, False, True, True]
    assert page.evaluate("document.documentElement.scrollWidth") <= width

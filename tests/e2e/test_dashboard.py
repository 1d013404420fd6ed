"""The dashboard in a real browser: the answer is seen, a choice moves the link, nothing leaves."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, expect, sync_playwright

from planner.ui.main import VIEWS

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 120_000
# not Playwright's 5 s: Streamlit fetches an element's code when it first draws one
expect.set_options(timeout=WAIT_MS)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


APP = "app.py"  # both main files are started, and every page reached from either
only_app = pytest.mark.parametrize("port", [APP], indirect=True)


@pytest.fixture(scope="module", params=[APP, "planner/ui/app_main.py"])
def port(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """A server of the dashboard on this machine only, with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    chosen = free_port()
    server = subprocess.Popen(
        [
            sys.executable, "-m", "streamlit", "run", str(ROOT / request.param),
            "--server.port", str(chosen), "--server.headless", "true",
        ],
        cwd=ROOT if request.param == APP else folder,
        env={**os.environ, "ATTN_STORE": str(folder / "store.db")},
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_until_healthy(chosen, server, folder / "log")
        yield chosen
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_healthy(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if get(port, "/_stcore/health") == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server did not answer: {log.read_text()}")


def test_the_first_start_on_a_fresh_account_asks_nothing_and_ends_when_told(
    tmp_path: Path,
) -> None:
    """As the README starts it, with no settings of Streamlit's own and nobody to answer; then as
    `kill` or a service manager ends it: no server is left on the port."""
    chosen = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    server = subprocess.Popen(
        [sys.executable, "-m", "planner.cli", "app", "--port", str(chosen)],
        env={**environment, "HOME": str(tmp_path), "ATTN_STORE": str(tmp_path / "store.db")},
        stdin=subprocess.DEVNULL,
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_until_healthy(chosen, server, tmp_path / "log")
        server.terminate()
        server.wait(10)
        with pytest.raises(OSError):
            get(chosen, "/_stcore/health")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)
    assert "mail" not in (tmp_path / "log").read_text()


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    return connection.getresponse().status


@dataclass
class Seen:
    """What the browser complained about, and what it asked of others."""

    errors: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)


@pytest.fixture
def browser_page(port: int) -> Iterator[tuple[Page, Seen, str]]:
    home, seen = f"http://127.0.0.1:{port}", Seen()

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            seen.errors.append(f"{message.text} {message.location.get('url', '')}")

    def on_request(request: Request) -> None:
        own = (home, home.replace("http", "ws"), "data:", "blob:")
        if not request.url.startswith(own):
            seen.external.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 2200})
        page.set_default_timeout(WAIT_MS)
        page.on("console", on_console)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", on_request)
        yield page, seen, home
        browser.close()


def choose(page: Page, label: str, option: str) -> None:
    """Picks an option of a selectbox with the keyboard."""
    box = page.get_by_role("combobox", name=label)
    box.click()
    box.fill(option)
    box.press("Enter")


def settled(page: Page) -> None:
    """Waits for the end of a run that has begun, as something it drew has shown.

    Before the end, figures of the last run may still stand, or none.
    """
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")


@only_app
def test_the_answer_is_seen_and_a_choice_moves_the_link(
    browser_page: tuple[Page, Seen, str], tmp_path: Path
) -> None:
    page, seen, home = browser_page
    page.goto(home)
    expect(page.get_by_text("Accuracy kept", exact=True)).to_be_visible()
    expect(page.get_by_text("decided by")).to_be_visible()
    expect(page.get_by_role("heading", name="Cost against accuracy")).to_be_visible()
    layers_and_frontier = page.locator("svg.marks, canvas.marks")
    expect(layers_and_frontier.nth(1)).to_be_visible()

    choose(page, "Use case", "summarization")
    expect(page.get_by_role("heading", name="book-length")).to_be_visible()
    page.wait_for_url("**/?*use_case=summarization*")

    choose(page, "Prompt length", "64k")
    page.wait_for_url("**/?*prompt=64k*")
    expect(page.get_by_text("64k prompt +")).to_be_visible()
    settled(page)
    card = page.get_by_test_id("stMetricValue").all_inner_texts()
    assert card

    page.goto(page.url)
    expect(page.get_by_text("64k prompt +")).to_be_visible()
    expect(page.get_by_role("heading", name="Take it along")).to_be_visible()
    settled(page)
    expect(page.get_by_test_id("stMetricValue")).to_have_text(card)

    with page.expect_download() as download:
        page.get_by_role("button", name="Report, Markdown").click()
    report = tmp_path / "report.md"
    download.value.save_as(report)
    assert report.read_text().startswith("# Which mixer for summaries")

    assert seen.errors == []
    assert seen.external == []


HEADINGS = {
    "Cost": "What does",
    "Crossover": "When does",
    "Measurements": "Measurements",
    "Evidence": "Evidence",
    "Claims": "Claims",
    "Calibration": "How wrong has it been?",
}


def test_every_page_is_reached_from_the_navigation(browser_page: tuple[Page, Seen, str]) -> None:
    page, seen, home = browser_page
    page.goto(f"{home}/?use_case=general&floor=90")
    expect(page.get_by_text("Accuracy kept", exact=True)).to_be_visible()
    for name, heading in HEADINGS.items():
        page.get_by_test_id("stTopNav").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(page.get_by_text("nothing leaves it")).to_be_visible()
        settled(page)
        expect(page.get_by_test_id("stException")).to_have_count(0)
    page.get_by_test_id("stTopNav").get_by_role("link", name="Recommend").click()
    expect(page.get_by_text("Accuracy kept", exact=True)).to_be_visible()
    page.wait_for_url("**/?*use_case=general*")
    assert set(HEADINGS) | {"Recommend"} == {view.title for view in VIEWS}
    assert "floor=90" in page.url, "the scenario outlives the visit to other pages"
    assert seen.errors == []
    assert seen.external == []


@only_app
def test_the_recommendation_opens_its_cost_in_dollars(
    browser_page: tuple[Page, Seen, str],
) -> None:
    page, seen, home = browser_page
    page.goto(f"{home}/?use_case=streaming&hardware=h200-sxm")
    link = page.get_by_role("link", name="In dollars")
    expect(link).to_be_visible()
    settled(page)
    assert seen.errors == []
    link.click()
    cost = page
    expect(cost.get_by_role("heading", name="What does Llama 3.1 8B cost?")).to_be_visible()
    cost.wait_for_url("**/cost?*prompt=16k*")
    prices_parts_memory_fits = cost.locator("svg.marks, canvas.marks")
    expect(prices_parts_memory_fits.nth(5)).to_be_visible()
    settled(cost)
    card = cost.get_by_test_id("stMetricValue").all_inner_texts()
    choose(cost, "Ratio", "7:1")
    cost.wait_for_url("**/cost?*ratio=7*")
    expect(cost.get_by_role("heading", name="7:1 gated_deltanet")).to_be_visible()
    settled(cost)
    assert cost.get_by_test_id("stMetricValue").all_inner_texts() != card
    assert page.context.pages == [page], "the link stays in its tab"
    # A page opened by its own address: Streamlit looks for its server below it, then at the root.
    assert {error.rsplit(" ", 1)[-1] for error in seen.errors} == {
        f"{home}/cost/_stcore/{name}" for name in ("health", "host-config")
    }
    assert seen.external == []


def handshake(port: int, host: str) -> int:
    """The status of a WebSocket opened by a page of `host`, as a browser would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {
        "Host": f"{host}:{port}",
        "Origin": f"http://{host}:{port}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    connection.request("GET", "/_stcore/stream", headers=headers)
    return connection.getresponse().status


def test_a_page_of_another_host_cannot_talk_to_the_server(port: int) -> None:
    """A name that a stranger points at 127.0.0.1 (DNS rebinding) gets no session."""
    assert handshake(port, "127.0.0.1") == 101
    assert handshake(port, "evil.example") == 403

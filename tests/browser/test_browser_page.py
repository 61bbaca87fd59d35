"""The model server's own pages in Chromium: what a person sees at its address."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from browser_pages import TIMEOUT_MS, Tabs
from model_server import ANSWER, CONFIG, ModelServer
from project_keys import ONE
from scripted_detector import WAIT_S, ScriptedDetector
from spica.errors import MediaError, WeightsError
from spica.server.run import ModelServer as RunningServer
from spica.settings import Settings

pytestmark = pytest.mark.browser

WIDE_URL = "ftp://fields.example.org/" + "plot-0123456789" * 12 + ".jpg"
"""An address without a place to break it."""


def open_page(tabs: Tabs, server: ModelServer, *, width: int = 1280, dark: bool = False) -> Page:
    """The server's page in a tab."""
    page = tabs.open(width=width, dark=dark)
    page.goto(str(server.client.base_url))
    return page


def state(page: Page) -> Locator:
    """The word beside the heading Model."""
    return page.locator(".state")


def card(page: Page, heading: str) -> Locator:
    """The part of the page under a heading."""
    return page.locator("section", has=page.get_by_role("heading", name=re.compile(f"^{heading}")))


def make_failures(server: ModelServer) -> None:
    """One project that is served, one that can't be, and three tasks that failed."""
    server.setup()
    body = {"project": "2.1700000000", "schema": CONFIG.replace("spike", "panicle")}
    server.client.post("/setup", json=body).raise_for_status()
    (server.root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    server.predict(server.photograph("a.png"), "/data/local-files/?d=broken.png", "/data/local-files/?d=../x.png")
    server.predict(WIDE_URL)


def test_the_page_tells_model_project_and_failures(tabs: Tabs, server: ModelServer) -> None:
    """The page names the weights, the version, its state, the projects with what can't be met, and each failed task."""
    make_failures(server)
    page = open_page(tabs, server)
    expect(state(page)).to_have_text("ready", timeout=TIMEOUT_MS)
    model, projects, failures = (card(page, heading) for heading in ("Model", "Projects", "Tasks that failed"))
    expect(model).to_contain_text("gwhd.pth")
    expect(model).to_contain_text("test-0001")
    expect(model).to_contain_text("1 image computed")
    expect(projects.get_by_role("listitem").filter(has_text="panicle")).to_contain_text("spike")
    expect(failures.get_by_role("listitem")).to_have_count(3)
    expect(failures.get_by_role("listitem").filter(has_text="broken.png")).to_contain_text("can't be read")
    assert tabs.errors == []


def test_the_page_follows_the_server_without_a_reload(tabs: Tabs, make_server: Callable[..., ModelServer]) -> None:
    """Loading becomes ready, a new failure appears, a lost server is lost and found: all in the page once opened."""
    loaded = threading.Event()

    def load() -> ScriptedDetector:
        assert loaded.wait(WAIT_S)
        return ScriptedDetector(ANSWER)

    service = make_server(load=load).service
    with RunningServer(service, Settings(), host="127.0.0.1", port=0) as first:
        page = tabs.open()
        page.goto(first.url)
        expect(state(page)).to_have_text("loading", timeout=TIMEOUT_MS)
        page.evaluate("window.openedOnce = true")
        loaded.set()
        expect(state(page)).to_have_text("ready", timeout=TIMEOUT_MS)
        service.note_failures(ONE, [(7, MediaError("there is no such file", where="missing.png"))])
        expect(page.get_by_role("listitem").filter(has_text="missing.png")).to_have_count(1, timeout=TIMEOUT_MS)
    expect(state(page)).to_have_text("no answer", timeout=TIMEOUT_MS)
    with RunningServer(make_server().service, Settings(), host="127.0.0.1", port=first.port):
        expect(state(page)).to_have_text("ready", timeout=TIMEOUT_MS)
    assert page.evaluate("window.openedOnce")


def test_the_page_says_why_a_model_could_not_be_loaded(tabs: Tabs, make_server: Callable[..., ModelServer]) -> None:
    """The reason stands under the state, with what to do."""

    def load() -> ScriptedDetector:
        raise WeightsError("the weights are truncated", where="gwhd.pth", hint="copy the file again")

    page = open_page(tabs, make_server(load=load))
    expect(state(page)).to_have_text("failed", timeout=TIMEOUT_MS)
    expect(page.locator("p.problem")).to_contain_text("the weights are truncated")
    expect(page.locator("p.problem")).to_contain_text("copy the file again", ignore_case=True)


def test_an_address_from_outside_is_text_and_no_markup(tabs: Tabs, server: ModelServer) -> None:
    """What a task says of its image is shown as it is, and never run."""
    server.predict("<img src=x onerror=\"document.title='run'\">")
    page = open_page(tabs, server)
    expect(page.get_by_role("listitem").filter(has_text="<img src=x")).to_have_count(1, timeout=TIMEOUT_MS)
    assert page.title() == "Spica – gwhd.pth"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "telephone"])
def test_the_page_fits_the_window(tabs: Tabs, server: ModelServer, width: int, dark: bool) -> None:
    """Nothing has to be scrolled sideways, however long an address is, and text stands out from its ground."""
    make_failures(server)
    page = open_page(tabs, server, width=width, dark=dark)
    expect(card(page, "Tasks that failed").get_by_role("listitem")).to_have_count(3, timeout=TIMEOUT_MS)
    wider = page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('section, ul, form')]"
        ".filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.outerHTML.slice(0, 80))"
    )
    assert wider == []
    low = page.evaluate(_LOW_CONTRAST)
    assert low == []


_LOW_CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } };
  const opacity = e => e ? Number(getComputedStyle(e).opacity) * opacity(e.parentElement) : 1;
  return [...document.querySelectorAll('body *')].filter(e => e.innerText && !e.children.length).flatMap(e => {
    const below = ground(e), share = opacity(e);
    const ink = parse(getComputedStyle(e).color).slice(0, 3).map((v, i) => v * share + below[i] * (1 - share));
    const [high, low] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    return ratio < 4.5 ? [`${e.innerText.slice(0, 30)}: ${ratio.toFixed(2)}`] : [];
  });
}"""
"""Texts with a contrast below 4.5, what WCAG 2.2 asks for (1.4.3, with its formula)."""


def test_the_routes_are_shown_without_the_internet(tabs: Tabs, server: ModelServer) -> None:
    """/docs lists the routes although nothing outside this machine can be reached."""
    page = tabs.open()
    page.goto(f"{server.client.base_url}/docs".replace("//docs", "/docs"))
    for path in ("/health", "/setup", "/predict", "/webhook", "/versions", "/metrics"):
        expect(page.locator(".opblock-summary-path").filter(has_text=path)).to_be_visible(timeout=TIMEOUT_MS)
    assert tabs.foreign == []
    assert tabs.errors == []

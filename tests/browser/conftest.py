"""A real Chromium, a fresh profile for every test, and no way out to the internet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from browser_pages import CHROMIUM_NAMES, LabelStudioPages, Tabs, chromium_path, launch_chromium
from label_studio_helpers import delete_project
from live_model import folder, model, serve_model
from model_server import make_server, server
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project

__all__ = ["folder", "make_server", "model", "serve_model", "server"]

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image" smart="true"><Label value="spike"/></RectangleLabels></View>'
)


@pytest.fixture(scope="module")  # while it runs, this thread has an event loop: other modules' tests must not see it
def _chromium() -> Iterator[Browser]:
    if chromium_path() is None:
        pytest.skip(f"needs one of {', '.join(CHROMIUM_NAMES)}; `make browser` installs it")
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        yield browser
        browser.close()


@pytest.fixture
def tabs(_chromium: Browser) -> Iterator[Tabs]:
    """Opens tabs; they are closed after the test."""
    yield Tabs(_chromium)
    for context in _chromium.contexts:
        context.close()


@pytest.fixture
def smart_project(client: LabelStudioClient, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A fresh project with the label spike, interactive rectangles allowed, deleted after the test."""
    created = client.create_project(f"test {request.node.name}"[:50], CONFIG)
    yield created
    delete_project(client, created.id)


@pytest.fixture
def open_label_studio(tabs: Tabs, label_studio: LabelStudioProcess) -> Callable[[], LabelStudioPages]:
    """Opens a tab in which somebody is logged in to the Label Studio of this run."""

    def open_pages() -> LabelStudioPages:
        pages = LabelStudioPages(tabs.open(), label_studio.url)
        pages.log_in(label_studio.credentials)
        return pages

    return open_pages

"""A browser's tabs, and Label Studio's pages as a person uses them: what is clicked, and what is then seen.

The selectors are those of Label Studio 1.23.2; nothing else in the tests knows them.
"""

from __future__ import annotations

import io
import math
import re
import shutil
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from playwright.sync_api import Browser, Locator, Page, Playwright, Route, expect

from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.data_folder import Credentials

TIMEOUT_MS = 60_000
"""Label Studio's pages are some ten megabytes of script; a busy machine needs its time."""

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Corners = tuple[float, float, float, float]


def chromium_path() -> str | None:
    """The system's Chromium or Chrome, if there is one."""
    return next((found for found in map(shutil.which, CHROMIUM_NAMES) if found is not None), None)


def launch_chromium(playwright: Playwright) -> Browser:
    """Start the system's Chromium, without a window; the caller closes it."""
    return playwright.chromium.launch(executable_path=chromium_path(), args=_FLAGS)


@dataclass
class Tabs:
    """Opens tabs, each in a profile of its own, and notes what goes wrong in them."""

    browser: Browser
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, *, width: int = 1440, height: int = 800, dark: bool = False) -> Page:
        """A tab with a window of so many pixels."""
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            service_workers="block",  # Label Studio's would answer in place of the server
        )
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.route(lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")), self._refuse)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def _refuse(self, route: Route) -> None:
        self.foreign.append(route.request.url)
        route.abort()


@dataclass(frozen=True)
class Picture:
    """What is seen of a photograph.

    Attributes:
        pixels: uint8 RGB (H, W, 3), of the screen.
        photograph: where the whole photograph lies in them, left, top, right, bottom; a little may be outside.
    """

    pixels: NDArray[np.uint8]
    photograph: Corners

    def around(self, corners_percent: Corners, margin: float) -> NDArray[np.bool_]:
        """Which pixels lie in a rectangle of the photograph grown by ``margin`` pixels, bool (H, W)."""
        left, top, right, bottom = within(corners_percent, self.photograph)
        ys, xs = np.mgrid[: self.pixels.shape[0], : self.pixels.shape[1]]
        across = (xs >= left - margin) & (xs + 1 <= right + margin)
        down = (ys >= top - margin) & (ys + 1 <= bottom + margin)
        return np.asarray(across & down, np.bool_)


def within(corners_percent: Corners, place: Corners) -> Corners:
    """Corners in percent of a place, in the place's own unit."""
    width, height = place[2] - place[0], place[3] - place[1]
    left, top, right, bottom = (share / 100 for share in corners_percent)
    return place[0] + left * width, place[1] + top * height, place[0] + right * width, place[1] + bottom * height


@dataclass(frozen=True)
class LabelStudioPages:
    """A browser's tab on Label Studio at ``url``."""

    page: Page
    url: str

    def log_in(self, credentials: Credentials) -> None:
        """Fill in the login page and wait until it has let us in."""
        self.page.goto(f"{self.url}/user/login/")
        self.page.locator("[name=email]").fill(credentials.email)
        self.page.locator("[name=password]").fill(credentials.password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(lambda url: "/user/login" not in url)

    def open_model_settings(self, project: int) -> None:
        """Open a project and go to Settings > Model."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.page.get_by_text("Settings", exact=True).click()
        self.page.get_by_role("link", name="Model", exact=True).click()

    def connect_model(self, name: str, url: str, *, user: str | None = None, password: str = "") -> None:
        """Fill in Connect Model, interactive preannotations on, extra params empty, and click once."""
        page = self.page
        page.get_by_text("Connect Model", exact=True).click()
        form = page.locator("form:has([name=url])")
        form.locator("[name=title]").fill(name)
        form.locator("[name=url]").fill(url)
        if user is None:
            expect(form.get_by_text("No Authentication", exact=True)).to_be_visible()
        else:
            form.get_by_text("No Authentication", exact=True).click()
            page.get_by_role("option", name="Basic Authentication").click()
            form.locator("[name=basic_auth_user]").fill(user)
            form.locator("[name=basic_auth_pass]").fill(password)
        expect(form.locator("[name=extra_params]")).to_have_value("")
        form.get_by_text("Interactive preannotations").click()
        expect(form.locator("[name=is_interactive]")).to_be_checked()
        form.get_by_text("Validate and Save").click()
        form.wait_for(state="detached")

    @property
    def model_state(self) -> Locator:
        """The word on the model's card: Connected, Disconnected, Error."""
        return self.page.locator(".lsf-ml__status-label")

    def open_data_manager(self, project: int) -> None:
        """Open a project's table of tasks."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.rows.first.wait_for()

    def open_scores(self, client: LabelStudioClient, project: int) -> None:
        """Open the table in a tab of its own that shows the column Prediction score, in its order."""
        data = {
            "title": "scores",
            "ordering": ["tasks:predictions_score"],
            "hiddenColumns": {"explore": ["tasks:data.image"], "labeling": []},
        }
        tab = client.call("POST", "/api/dm/views/", json={"project": project, "data": data})["id"]
        self.page.goto(f"{self.url}/projects/{project}/data?tab={tab}")
        self.rows.first.wait_for()

    def open_task(self, row: int) -> None:
        """Click on a row of the table, counted from 0, and wait until the editor shows its task."""
        with self.page.expect_response(lambda answer: "/api/tasks/" in answer.url):
            self.rows.nth(row).click()

    def open_task_of(self, project: int, task: int) -> None:
        """Open a task by its number, at an address of its own."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")

    def label_next_task(self) -> int:
        """Click on Label All Tasks; the number of the task that Label Studio gives: the next one without annotation."""
        with self.page.expect_response(lambda answer: "id=next_task" in answer.url) as given:
            self.page.get_by_role("button", name=re.compile("^Label .*Tasks?")).click()
        return int(given.value.json()["id"])

    @property
    def rows(self) -> Locator:
        """The rows of the table of tasks."""
        return self.page.get_by_test_id("table-row")

    @property
    def regions(self) -> Locator:
        """The rows of the list Regions, one a box."""
        return self.page.locator(".lsf-outliner-item__title")

    @property
    def scores(self) -> Locator:
        """The scores beside these rows; a box drawn by hand has none."""
        return self.page.locator(".lsf-outliner-item__control_type_score").filter(has_text=".")

    @property
    def dialog(self) -> Locator:
        """Label Studio's dialog for whatever went wrong."""
        return self.page.get_by_text("Runtime error")

    def wait_for_shape(self, *, upright: bool) -> None:
        """Wait until the photograph on the screen is one that is higher than wide, or one that is not."""
        self.page.wait_for_function(
            "upright => { const image = document.querySelector('.lsf-image img');"
            " return image?.complete && (image.naturalHeight > image.naturalWidth) === upright }",
            arg=upright,
        )

    def picture(self) -> Picture:
        """What is seen of the photograph, boxes included."""
        photograph, window = self._places()
        left, top = (math.ceil(max(photograph[edge], window[edge])) for edge in (0, 1))
        right, bottom = (math.floor(min(photograph[edge], window[edge])) for edge in (2, 3))
        shot = self.page.screenshot(
            clip={"x": left, "y": top, "width": right - left, "height": bottom - top}, type="png"
        )
        pixels = np.asarray(PILImage.open(io.BytesIO(shot)).convert("RGB"))
        moved = (photograph[0] - left, photograph[1] - top, photograph[2] - left, photograph[3] - top)
        return Picture(pixels, moved)

    def choose_smart_rectangle(self, label_key: str) -> None:
        """Switch Auto-Annotation on, choose the wand's rectangle, and press the label's key."""
        self.page.get_by_text("Auto-Annotation", exact=True).click()
        self.page.locator(".lsf-toolbar .lsf-tool_smart:visible").last.click()
        self.page.locator(".lsf-toolbar__smart [aria-label=rectangle-tool]").click()
        self.page.keyboard.press(label_key)

    def drag(self, corners_percent: Corners) -> None:
        """Drag the mouse over the photograph: left, top, right, bottom in percent of it."""
        left, top, right, bottom = within(corners_percent, self._places()[0])
        mouse = self.page.mouse
        mouse.move(left, top)
        mouse.down()
        mouse.move((left + right) / 2, (top + bottom) / 2)
        mouse.move(right, bottom)
        mouse.up()

    @property
    def suggestions(self) -> Locator:
        """How many suggestions wait for a yes or no, in words."""
        return self.page.locator(".lsf-auto-accept__info")

    def accept_suggestions(self) -> None:
        """Click on the tick."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()

    def submit(self) -> None:
        """Click on Submit and wait until Label Studio has stored the annotation."""
        with self.page.expect_response(
            lambda answer: answer.request.method == "POST" and "/annotations" in answer.url
        ) as stored:
            self.page.get_by_text("Submit", exact=True).click()
        assert stored.value.status == 201, stored.value.text()

    def _places(self) -> tuple[Corners, Corners]:
        """Where the photograph is, and the frame that shows it (all of it or a little less), once they stand still.

        Corners in pixels of the window. The side panels move the photograph when they appear.
        """
        names = [".lsf-image img", ".konvajs-content canvas"]
        for name in names:
            self.page.locator(name).first.wait_for(state="attached")
        read = (
            "names => names.map(name => { const place = document.querySelector(name).getBoundingClientRect();"
            " return [place.left, place.top, place.right, place.bottom] })"
        )
        later = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))"
        before = None
        while (now := self.page.evaluate(read, names)) != before:
            before = now
            self.page.evaluate(later)
        return tuple(now[0]), tuple(now[1])

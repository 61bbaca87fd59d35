"""Take the README's pictures from the running product: `spica demo` in a child process, Chromium in front of it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from spica.labelstudio.data_folder import LABEL_STUDIO_FOLDER, load_or_create
from spica.labelstudio.launch import free_port
from spica.up import DATA_FOLDER

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 400_000
sys.path.insert(0, str(ROOT / "tests"))

from browser_pages import TIMEOUT_MS, LabelStudioPages, Tabs, launch_chromium  # noqa: E402  # needs the line above


def main() -> None:
    """Write ``docs/images/label-studio.png`` and ``docs/images/page.png``."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="spica-pictures-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port, model_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        with demo(folder, port, model_port), sync_playwright() as playwright:
            browser = launch_chromium(playwright)
            tabs = Tabs(browser)
            write("label-studio.png", label_studio(tabs, folder, f"http://127.0.0.1:{port}"))
            write("page.png", page(tabs, f"http://127.0.0.1:{model_port}"))
            browser.close()


@contextlib.contextmanager
def demo(folder: Path, port: int, model_port: int) -> Iterator[None]:
    """`spica demo`, ready; stopped after the block."""
    command = [sys.executable, "-u", "-m", "spica", "demo", "--no-browser", "--folder", str(folder)]
    command += ["--label-studio-port", str(port), "--port", str(model_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        try:
            if not any("Ctrl-C" in line for line in child.stdout or ()):  # the frame, printed when everything is ready
                raise SystemExit(f"spica demo has ended with status {child.wait()}")
            yield
        finally:
            child.terminate()
            child.communicate()


def label_studio(tabs: Tabs, folder: Path, url: str) -> bytes:
    """A photograph open in Label Studio with its boxes, PNG."""
    pages = LabelStudioPages(tabs.open(width=1280, height=800), url)
    pages.log_in(load_or_create(folder / DATA_FOLDER / LABEL_STUDIO_FOLDER))
    pages.open_data_manager(project=1)
    pages.open_task(0)
    expect(pages.scores).not_to_have_count(0, timeout=TIMEOUT_MS)
    pages.picture()  # waits until the photograph stands still
    pages.page.mouse.move(640, 700)
    return pages.page.screenshot()


def page(tabs: Tabs, url: str) -> bytes:
    """The model server's page, PNG."""
    tab = tabs.open(width=960, height=600)
    tab.goto(url)
    expect(tab.locator(".state").first).to_have_text("ready", timeout=TIMEOUT_MS)
    return tab.screenshot(full_page=True)


def write(name: str, png: bytes) -> None:
    """Store a picture with 256 colours, which more than halves it and can hardly be seen."""
    content = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)  # the median cut loses a logo's rare colours
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(content, "PNG", optimize=True)
    if content.tell() > MAX_BYTES:
        raise SystemExit(f"{name} would have {content.tell()} bytes, more than {MAX_BYTES}")
    (IMAGES / name).write_bytes(content.getvalue())
    print(f"{(IMAGES / name).relative_to(ROOT)}: {image.width} x {image.height}, {content.tell() / 1000:.0f} kB")


if __name__ == "__main__":
    main()

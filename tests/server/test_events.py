"""What open pages are sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from model_server import ModelServer
from scripted_detector import WAIT_S


def first_line(server: ModelServer) -> str:
    """Of a page that is opened."""
    with httpx.stream("GET", f"{server.client.base_url}/events", trust_env=False, timeout=WAIT_S) as events:
        return next(events.iter_lines())


def test_what_takes_long_to_draw_holds_nobody_up(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the page is drawn, once for all who have it open, requests are answered."""
    begun, go, drawn = threading.Event(), threading.Event(), []

    def draw(*_: object) -> str:
        drawn.append("a page")
        begun.set()
        assert go.wait(WAIT_S)
        return "a page"

    monkeypatch.setattr("spica.server.page.Page.render_status", draw)
    with ThreadPoolExecutor(3) as pool:
        try:
            pages = [pool.submit(first_line, server) for _ in range(3)]
            assert begun.wait(WAIT_S)
            assert server.client.get("/health", timeout=WAIT_S / 2).status_code == 200
            assert len(drawn) == 1
        finally:
            go.set()
        assert [page.result() for page in pages] == ["event: page"] * 3

"""The page at ``/``: what is served, in what state, and what failed; its changing part is sent when it changes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from spica import __version__
from spica.classes import class_names
from spica.server.jobs import Jobs
from spica.server.learning import Learning
from spica.server.service import Failure, Service

_RUNS = 6
"""Finished trainings that are shown."""

_EVERY_S = 1.0

_CLOCK = re.compile(r"<p class=.{0,3}when.*", re.DOTALL)
"""The page's last line tells the time; that alone is no change."""


class Page:
    """The page of one server. For one event loop."""

    def __init__(self, service: Service, jobs: Jobs, learning: Learning) -> None:
        self._service = service
        self._jobs = jobs
        self._learning = learning
        self._made: asyncio.Task[str] | None = None
        self._at = 0.0
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._template = environment.get_template("page.html")

    def render(self) -> str:
        """The whole page, HTML. May take its time: not on the event loop."""
        return self._template.render(**self._view())

    def render_status(self) -> str:
        """The part of it that changes, HTML. May take its time too."""
        context = self._template.new_context(self._view())
        return "".join(self._template.blocks["status"](context))

    async def changes(self, is_stopping: Callable[[], bool]) -> AsyncIterator[str]:
        """The changing part, at once and whenever it has changed, until the server ends: that waits for connections."""
        shown: str | None = None
        while not is_stopping():
            html = await self._latest()
            without_time = _CLOCK.sub("", html)
            if shown != without_time:
                shown = without_time
                yield html
            await asyncio.sleep(_EVERY_S)

    async def _latest(self) -> str:
        """Not older than a second; drawn once, off the event loop, for all who have the page open."""
        if self._made is None or (self._made.done() and time.monotonic() - self._at >= _EVERY_S):
            self._at = time.monotonic()
            self._made = asyncio.create_task(asyncio.to_thread(self.render_status))
        return await asyncio.shield(self._made)  # a page that is closed must not take it from the others

    def _view(self) -> dict[str, Any]:
        service, jobs, learning = self._service, self._jobs, self._learning
        engine = service.predictor.engine.status
        return {
            "version": __version__,
            "weights": service.weights,
            "model_id": service.predictor.model_id,
            "classes": class_names(service.predictor.classes),
            "engine": engine,
            "seconds_per_image": engine.seconds / engine.images if engine.images else None,
            "precision": service.precision,
            "projects": service.projects,
            "served": {served.project: served for served in service.served},
            "base_id": service.pool.base_id,
            "running": learning.trainer.current,
            "runs": [run for run in learning.runs if run.is_over][:_RUNS],
            "statuses": {status.project: status for status in learning.statuses},
            "failures": service.failures,
            "jobs": jobs.all,
            "has_token": jobs.has_token,
            "task_url": self._task_url,
            "duration": _duration,
            "started": _clock(service.started),
            "clock": _clock,
            "moment": lambda text: _clock(datetime.fromisoformat(text)),
            "now": _clock(datetime.now(UTC)),
        }

    def _task_url(self, failure: Failure) -> str | None:
        """Where a failed task is opened in Label Studio; None if that is not known."""
        if failure.project is None or failure.task is None:
            return None
        return f"{self._jobs.label_studio_url}/projects/{failure.project}/data?task={failure.task}"


def _duration(seconds: float | None) -> str:
    """Hours and minutes, or minutes and seconds; a dash for None."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _clock(moment: datetime) -> str:
    """Local date and time to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")

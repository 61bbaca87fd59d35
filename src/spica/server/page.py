"""The page at ``/``: what is served, in what state, and what failed."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from spica import __version__
from spica.classes import class_names
from spica.server.jobs import Jobs
from spica.server.learning import Learning
from spica.server.service import Failure, Service

_TEMPLATES = Path(__file__).parent / "templates"

_RUNS = 6
"""So many trainings that are over are shown."""


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(service: Service, jobs: Jobs, learning: Learning) -> str:
    """The whole page, HTML."""
    return _environment().get_template("page.html").render(**_view(service, jobs, learning))


def render_status(service: Service, jobs: Jobs, learning: Learning) -> str:
    """The part of the page that changes, HTML; the page is sent it anew when it has changed."""
    return _environment().get_template("status.html").render(**_view(service, jobs, learning))


def _view(service: Service, jobs: Jobs, learning: Learning) -> dict[str, Any]:
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
        "standings": {standing.project: standing for standing in learning.standings},
        "failures": service.failures,
        "jobs": jobs.all,
        "has_token": jobs.has_token,
        "task_url": functools.partial(_task_url, jobs.label_studio_url),
        "duration": _duration,
        "started": _clock(service.started),
        "clock": _clock,
        "moment": lambda text: _clock(datetime.fromisoformat(text)),
        "now": _clock(datetime.now(UTC)),
    }


def _task_url(label_studio_url: str, failure: Failure) -> str | None:
    """Where a failed task is opened in Label Studio; None if that can't be known."""
    if failure.project is None or failure.task is None:
        return None
    return f"{label_studio_url}/projects/{failure.project}/data?task={failure.task}"


def _duration(seconds: float | None) -> str:
    """Hours and minutes, or minutes and seconds; a dash for what can't be said."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _clock(moment: datetime) -> str:
    """Local date and time to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")

"""The page at ``/``: what is served, in what state, and what failed."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from spica import __version__
from spica.server.service import Service

_TEMPLATES = Path(__file__).parent / "templates"


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(service: Service) -> str:
    """The whole page, HTML."""
    return _environment().get_template("page.html").render(**_view(service))


def render_status(service: Service) -> str:
    """The part of the page that changes, HTML; the page fetches it every two seconds."""
    return _environment().get_template("status.html").render(**_view(service))


def _view(service: Service) -> dict[str, Any]:
    engine = service.predictor.engine.status
    return {
        "version": __version__,
        "weights": service.weights,
        "model_id": service.predictor.model_id,
        "classes": [name or f"class {number}" for number, name in enumerate(service.predictor.classes, start=1)],
        "engine": engine,
        "seconds_per_image": engine.seconds / engine.images if engine.images else None,
        "projects": service.projects,
        "failures": service.failures,
        "started": _clock(service.started),
        "clock": _clock,
        "now": _clock(datetime.now(UTC)),
    }


def _clock(moment: datetime) -> str:
    """Local date and time to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")

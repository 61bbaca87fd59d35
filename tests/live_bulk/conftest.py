"""Fixtures of the tests of the bulk job with a real Label Studio."""

from bulk_live import bulk_project, start_worker
from live_model import folder, model, serve_model

__all__ = ["bulk_project", "folder", "model", "serve_model", "start_worker"]

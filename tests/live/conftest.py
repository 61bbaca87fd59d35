"""Fixtures of the tests with a real Label Studio and a real model server."""

from live_model import folder, model, serve_model
from model_server import make_server, server

__all__ = ["folder", "make_server", "model", "serve_model", "server"]

"""Fixtures of the server's tests."""

from model_server import make_server, server, shared_server

__all__ = ["make_server", "server", "shared_server"]

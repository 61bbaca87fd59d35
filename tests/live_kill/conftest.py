"""Fixtures of the tests that kill a learning server."""

from live_model import folder

__all__ = ["folder"]

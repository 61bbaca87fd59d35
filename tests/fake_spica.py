"""A model server that says it is Spica's, with a state and a password that a test may change while it runs."""

from __future__ import annotations

from typing import Any

from scripted_backend import ScriptedBackend


class FakeSpica(ScriptedBackend):
    """Answers /health and /setup as Spica's model server does.

    Attributes:
        model: what /health says of the model.
        problems: what /setup says of a project.
    """

    def __init__(self, **model: Any) -> None:
        super().__init__("gwhd-0001.abcd")
        self.model = {"id": "gwhd-0001", "weights": "gwhd.pth", "state": "ready", "error": None, **model}
        self.problems: list[str] = []

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Its state, or what a scripted backend answers."""
        status, answer = super().answer(path, body)
        if path == "/health":
            return 200, {"status": "UP", "model_class": "Spica", "model": self.model}
        if path == "/setup":
            return status, {**answer, "classes": ["spike"], "problems": self.problems}
        return status, answer

"""The routes of the learning: what it does, start now, cancel."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from spica.server.learning import Learning
from spica.server.service import Service


class TrainingRequest(BaseModel):
    """``POST /training``.

    Attributes:
        project: its number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    project: int = Field(ge=1)


def add_learning(app: FastAPI, service: Service, learning: Learning) -> None:
    """Add the routes to an application."""

    @app.get("/training")
    def show_training() -> dict[str, Any]:
        """The training under way, the last ones with the gate's verdicts, and what is new in each project."""
        return learning_state(service, learning)

    @app.post("/training", status_code=202)
    async def start_training(body: TrainingRequest) -> dict[str, Any]:
        """Train a project now, with the server's own access to Label Studio; refused if there is nothing to learn."""
        run = await asyncio.get_running_loop().run_in_executor(service.batch_pool, learning.ask, body.project)
        return run.as_json()

    @app.post("/training/{project}/cancel", status_code=202)
    def cancel_training(project: int) -> dict[str, Any]:
        """End the training of a project; what is served is untouched."""
        return learning.cancel(project).as_json()


def learning_state(service: Service, learning: Learning) -> dict[str, Any]:
    """What is shown of the learning, for programs."""
    current = learning.trainer.current
    return {
        "token": learning.has_token,
        "running": current.as_json() if current is not None else None,
        "runs": [run.as_json() for run in learning.runs if run.is_over],
        "projects": [status.as_json() for status in learning.statuses],
        "served": [
            {
                "project": served.project.number,
                "created": served.project.created,
                "version": served.version,
                "model_id": service.pool.predictor(served.project).model_id,
                "why": served.why,
                "wanted": served.wanted,
                "problem": served.problem.as_json()["error"] if served.problem is not None else None,
            }
            for served in service.served
        ],
    }

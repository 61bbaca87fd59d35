"""One action of Label Studio's, taken on the model's port and passed on: delete a project's predictions.

A published tutorial aims this request at the model server's port; there it has to work. Nothing else is forwarded, and
it is forwarded with the caller's own authorization, never with ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
from fastapi.responses import Response

from spica.errors import (
    AuthenticationError,
    LabelStudioRefusedError,
    LabelStudioUnreachableError,
    NotFoundError,
    RequestError,
)
from spica.http import http_client
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.predictions_backup import backup

logger = logging.getLogger(__name__)

ACTION = "delete_tasks_predictions"


class _CallersAuth(httpx.Auth):
    """The authorization that came with the request, as it came."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def auth_flow(self, request: httpx.Request):  # type: ignore[no-untyped-def]
        request.headers["Authorization"] = self._authorization
        yield request


class Forwarder:
    """Passes the action to Label Studio, after a backup of what it deletes.

    Args:
        label_studio_url: where Label Studio is.
        backup_dir: folder of the backups.
    """

    def __init__(self, label_studio_url: str, *, backup_dir: Path) -> None:
        self._url = label_studio_url.rstrip("/")
        self._backup_dir = backup_dir

    def forward(self, query: Mapping[str, str], authorization: str | None, body: bytes) -> Response:
        """Label Studio's own answer to the action.

        What narrows it (``view``, ``query``, the body) goes along, or it would delete more than was asked for.

        Raises:
            RequestError: another action, or no project.
            NotFoundError: no such project.
            AuthenticationError: the caller sent no authorization, or Label Studio refused it.
            LabelStudioUnreachableError: no answer from Label Studio.
        """
        if query.get("id") != ACTION:
            raise RequestError(
                "only one action of Label Studio's is forwarded",
                where="/api/dm/actions",
                expected=f"id={ACTION}",
                got=f"id={query.get('id', '')[:60]}",
                hint=f"send other requests to Label Studio itself, at {self._url}",
            )
        project = query.get("project", "")
        if not project.isdecimal() or len(project) > 18:
            raise RequestError(
                "the project's number is missing",
                where="/api/dm/actions",
                expected="project=N",
                got=f"project={project[:60]}",
            )
        if authorization is None:
            raise AuthenticationError(
                "the request carries no authorization",
                where="/api/dm/actions",
                expected="the header Authorization: Token … of a user of Label Studio",
                hint="copy the access token from Label Studio's page Account & Settings",
            )
        auth = _CallersAuth(authorization)
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        path = self._backup_dir / f"project-{int(project)}-{now}.jsonl"
        with LabelStudioClient(self._url, None, auth=auth) as client:
            _require_project(client, int(project))
            count = backup(client, int(project), None, path)
        logger.info("%d predictions of project %s written to %s before they are deleted", count, project, path)
        return self._post({**query, "project": str(int(project))}, auth, body)

    def _post(self, query: Mapping[str, str], auth: httpx.Auth, body: bytes) -> Response:
        try:
            with http_client(self._url, auth=auth, timeout=300) as http:
                answer = http.post(
                    f"{self._url}/api/dm/actions/",
                    params=query,
                    content=body or b"{}",
                    headers={"Content-Type": "application/json"},
                )
        except httpx.HTTPError as error:
            raise LabelStudioUnreachableError(
                "Label Studio does not answer",
                where=self._url,
                got=type(error).__name__,
                hint="is it running there? Set LABEL_STUDIO_URL where it is not",
            ) from None
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))


def _require_project(client: LabelStudioClient, project: int) -> None:
    try:
        client.project(project)
    except LabelStudioRefusedError as refusal:
        if refusal.http_status != httpx.codes.NOT_FOUND:
            raise
        raise NotFoundError(
            f"there is no project {project}", where="/api/dm/actions", hint="its number is in its address"
        ) from None

"""Register a running model server with a project of Label Studio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from spica.errors import AuthenticationError, LaunchError, SpicaError
from spica.http import CERTIFICATE_HINT, certificate_trouble, http_client, user_and_password
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.label_config import parse_label_config


@dataclass(frozen=True, slots=True)
class Connection:
    """What was connected.

    Attributes:
        url: of the model server.
        version: under which its predictions are stored, and the title of the connected model.
        problems: what can't be met or could not be done, for people.
    """

    url: str
    version: str
    problems: tuple[str, ...]


def connect(
    client: LabelStudioClient,
    project: int,
    *,
    model_url: str,
    basic_auth: str | None = None,
    interactive: bool = True,
) -> Connection:
    """Connect the model server at ``model_url`` with a project, or bring an existing connection up to date.

    Args:
        client: Label Studio.
        project: its number.
        model_url: as Label Studio reaches it.
        basic_auth: ``user:password`` of the model server.
        interactive: whether a drawn rectangle or point asks the model.

    Raises:
        LaunchError: no model server of Spica's answers at ``model_url``.
        LabelConfigError: nothing in the project's configuration that a detector could fill.
        LabelStudioError: Label Studio refused the connection.
    """
    row = client.project(project)
    parse_label_config(row.label_config)
    answer = _ask(model_url, {"project": row.key.stem, "schema": row.label_config}, basic_auth)
    # Label Studio asks /setup itself, with the model's extra params, and the version comes from that.
    backend = client.connect_backend(
        project, url=model_url, is_interactive=interactive, basic_auth=user_and_password(basic_auth)
    )
    problems = [str(problem) for problem in answer.get("problems", [])]
    return Connection(model_url, backend.model_version, (*problems, *backend.warnings))


def _ask(model_url: str, setup: dict[str, Any], basic_auth: str | None) -> dict[str, Any]:
    where = f"{model_url.rstrip('/')}/setup"
    try:
        with http_client(where, auth=user_and_password(basic_auth), timeout=10) as http:
            answer = http.post(where, json=setup)
        body = answer.json()
    except httpx.HTTPError as error:
        raise LaunchError(
            "the model server does not answer",
            where=where,
            got=certificate_trouble(error) or type(error).__name__,
            hint=CERTIFICATE_HINT
            if certificate_trouble(error)
            else "start it with `spica serve --weights FILE`, or give its address with --model-url",
        ) from None
    except ValueError:
        body = None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise AuthenticationError(
            "the model server asks for user and password", where=where, hint="give them with --basic-auth user:password"
        )
    if answer.status_code != httpx.codes.OK or not isinstance(body, dict) or "classes" not in body:
        raise _not_ours(where, answer.status_code, body)
    return body


def _not_ours(where: str, status: int, body: Any) -> SpicaError:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and "code" in error:
        return LaunchError(
            f"the model server refuses: {error.get('message')}",
            where=where,
            expected=error.get("expected"),
            got=f"HTTP {status}",
            hint=error.get("hint"),
        )
    return LaunchError(
        "what answers there is not Spica's model server",
        where=where,
        expected="the version that it serves",
        got=f"HTTP {status}",
        hint="give the model server's address with --model-url",
    )

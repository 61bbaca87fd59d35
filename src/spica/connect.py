"""A running model server, as the commands speak to it; and its registration with a project of Label Studio."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from spica.errors import AuthenticationError, LaunchError, ModelUnavailableError, SpicaError, UsageError
from spica.http import CERTIFICATE_HINT, certificate_trouble, http_client, user_and_password
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.config import parse_label_config
from spica.project import ProjectKey

_GONE_S = 15.0
"""A server that answers nothing for so long is taken to be gone."""


class RemoteError(SpicaError):
    """What a model server answered instead of doing what it was asked.

    Attributes:
        remote_code: the error's ``code``.
    """

    def __init__(self, message: str, *, remote_code: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.remote_code = remote_code


def error_of(body: dict[str, Any]) -> SpicaError:
    """The error that a server sent as JSON, with the exit status of its kind."""
    known = {kind.code: kind for kind in (UsageError, AuthenticationError, ModelUnavailableError)}
    message, code = str(body.get("message")), str(body.get("code"))
    facts = {name: body.get(name) for name in ("where", "expected", "got", "hint")}
    kind = known.get(code)
    return RemoteError(message, remote_code=code, **facts) if kind is None else kind(message, **facts)


class RemoteServer:
    """A model server at an address; used in a ``with`` block.

    Args:
        url: of the server.
        basic_auth: ``user:password`` that it asks for, or None.
    """

    def __init__(self, url: str, basic_auth: str | None) -> None:
        self.url = url.rstrip("/")
        self._http = http_client(self.url, auth=user_and_password(basic_auth), timeout=150)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def state(self) -> dict[str, Any]:
        """Health, jobs, last failures.

        Raises:
            LaunchError: nothing answers there, or something else than Spica's model server.
        """
        return self._first("GET", "/state", lambda body: body.get("model_class") == "Spica")

    def setup(self, project: ProjectKey, label_config: str) -> dict[str, Any]:
        """What it makes of a project's labels: ``model_version``, ``classes``, ``problems``.

        Raises:
            LaunchError: nothing answers there, or something else than Spica's model server.
        """
        body = {"project": project.stem, "schema": label_config}
        return self._first("POST", "/setup", lambda answer: "classes" in answer, json=body)

    def post(self, path: str, body: dict[str, Any], token: SecretStr | None = None) -> dict[str, Any]:
        """Ask for something to be done.

        Raises:
            SpicaError: the server's own, or it does not answer.
        """
        headers = {} if token is None else {"X-Api-Key": token.get_secret_value()}
        return self._ask("POST", path, 0, json=body, headers=headers)

    def get(self, path: str) -> dict[str, Any]:
        """Look at something; a server that is busy is asked again for a while.

        Raises:
            SpicaError: the server's own, or it does not answer.
        """
        return self._ask("GET", path, _GONE_S, timeout=10)

    def _first(self, method: str, path: str, is_ours: Any, **request: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, self.url + path, timeout=10, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            untrusted = certificate_trouble(error)
            start = "start one with `spica serve --weights FILE` or `spica up`, or give its address with --model-url"
            raise LaunchError(
                "no model server answers",
                where=self.url,
                got=untrusted or type(error).__name__,
                hint=CERTIFICATE_HINT if untrusted else start,
            ) from None
        body = self._body(answer)
        if not is_ours(body):
            raise self._not_ours(answer)
        return body

    def _ask(self, method: str, path: str, patience_s: float, **request: Any) -> dict[str, Any]:
        until = time.monotonic() + patience_s
        while True:
            try:
                return self._body(self._http.request(method, self.url + path, **request))
            except httpx.HTTPError as error:
                if time.monotonic() >= until:
                    raise LaunchError(
                        "the model server does not answer any more",
                        where=self.url,
                        got=type(error).__name__,
                        hint="what is stored stays; start it again, and this command goes on where it stopped",
                    ) from None
            time.sleep(0.5)

    def _body(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.is_success and isinstance(body, dict):
            return body
        error = body.get("error") if isinstance(body, dict) else None
        if answer.status_code == httpx.codes.UNAUTHORIZED and "www-authenticate" in answer.headers:
            hint = "give them with --basic-auth user:password"
            raise AuthenticationError("the model server asks for user and password", where=self.url, hint=hint)
        raise error_of(error) if isinstance(error, dict) and "code" in error else self._not_ours(answer)

    def _not_ours(self, answer: httpx.Response) -> LaunchError:
        return LaunchError(
            "what answers there is not Spica's model server",
            where=self.url,
            got=f"HTTP {answer.status_code}",
            hint="give the model server's address with --model-url",
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """What was connected.

    Attributes:
        url: of the model server.
        version: under which its predictions are stored, and the title of the connected model.
        problems: classes without a label, and what could not be done.
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
    with RemoteServer(model_url, basic_auth) as server:
        answer = server.setup(row.key, row.label_config)
    # Label Studio asks /setup itself, with the model's extra params, and the version comes from that.
    backend = client.connect_backend(
        project, url=model_url, is_interactive=interactive, basic_auth=user_and_password(basic_auth)
    )
    problems = [str(problem) for problem in answer.get("problems", [])]
    return Connection(model_url, backend.model_version, (*problems, *backend.warnings))

"""Checks of the model server, and of whether Label Studio may call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spica.doctor.finding import Section
from spica.doctor.reach import Answer, ask
from spica.doctor.remedies import environment, unblock_local_addresses
from spica.errors import LabelStudioRefusedError
from spica.http import CERTIFICATE_HINT, user_and_password
from spica.labelstudio.client import LabelStudioClient, webhook_url
from spica.project import ProjectKey
from spica.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelServer:
    """What is known of the model server.

    Attributes:
        url: as given.
        auth: user and password to ask with, if any.
        usable: whether it is Spica's, and lets us in.
        asks_password: whether it wants user and password.
        blocked: whether Label Studio refuses to call it; None if that could not be tried.
        webhooks_blocked: the same for events.
    """

    url: str
    auth: tuple[str, str] | None
    usable: bool
    asks_password: bool
    blocked: bool | None = None
    webhooks_blocked: bool | None = None

    def setup(self, project: ProjectKey, label_config: str, extra_params: Any) -> Answer:
        """What it answers Label Studio for a project; it notes nothing that Label Studio has not told it too."""
        known = {} if extra_params is None else {"extra_params": extra_params}
        body = {"project": project.stem, "schema": label_config, **known}
        return ask(f"{self.url.rstrip('/')}/setup", json=body, auth=self.auth)


def examine_model_server(
    settings: Settings, model_url: str, client: LabelStudioClient | None, section: Section
) -> ModelServer:
    """Look at the model server, and let Label Studio say whether it would call it."""
    auth = user_and_password(settings.basic_auth)
    asks_password, answer = _health(model_url, auth)
    usable = _check_reachable(model_url, answer, asks_password, auth is not None, section)
    if usable:
        _check_model(answer, section)
    else:
        section.skipped("model-loaded", "the model can't be seen")
    blocked = webhooks_blocked = None
    if client is None:
        section.skipped("model-server-allowed", "Label Studio can't be asked whether it may call the model server")
        section.skipped("webhooks-allowed", "Label Studio can't be asked whether it may send events")
    else:
        allowed = client
        blocked = section.attempt("model-server-allowed", lambda: _check_allowed(allowed, model_url, section))
        webhooks_blocked = section.attempt(
            "webhooks-allowed", lambda: _check_webhooks_allowed(allowed, model_url, section, also=bool(blocked))
        )
    return ModelServer(model_url, auth, usable, asks_password, blocked, webhooks_blocked)


def _health(model_url: str, auth: tuple[str, str] | None) -> tuple[bool, Answer]:
    """Whether it asks for a password, and its answer."""
    where = f"{model_url.rstrip('/')}/health"
    answer = ask(where)
    if answer.status != 401:
        return False, answer
    return True, ask(where, auth=auth) if auth is not None else answer


def _check_reachable(model_url: str, answer: Answer, asks_password: bool, has_password: bool, section: Section) -> bool:
    check = "model-server-reachable"
    if answer.kind == "http" and answer.status == 200 and answer.fields.get("model_class") == "Spica":
        locked = ", with user and password" if asks_password else ""
        section.ok(check, f"Spica's model server answers at {model_url}{locked}")
        return True
    other_port = "give the model server another port (`spica serve --weights FILE --port 8011`), then --model-url"
    told: str | None = answer.told
    if answer.kind == "closed":
        what = "the model server does not run there"
        hint = "spica serve --weights FILE\nor give its address with --model-url"
    elif answer.kind == "untrusted":
        what, hint = "the certificate of the model server is not trusted", CERTIFICATE_HINT
    elif answer.kind == "invalid":
        what, hint = "this is no web address", "give the model server's with --model-url, such as http://127.0.0.1:8010"
    elif answer.kind == "foreign":
        what, hint = "another program has this port: it takes connections, no HTTP comes", other_port
    elif answer.status == 401:
        what = "the model server refuses this user and password" if has_password else "it asks for user and password"
        hint = "set what its --basic-auth says:\n" + environment(SPICA_BASIC_AUTH="<user>:<password>")
    elif answer.status == 200 and "model_class" in answer.fields:
        what, hint = "another model server answers there, not Spica's", other_port
        told = f"model_class {str(answer.fields['model_class'])[:80]}"
    elif isinstance(error := answer.fields.get("error"), dict) and "code" in error:
        what, hint = f"the model server refuses: {error.get('message')}", str(error.get("hint"))
    else:
        what, hint = "what answers there is not a model server of Spica's", other_port
    section.problem(check, what, where=model_url, got=told, hint=hint)
    return False


def _check_model(answer: Answer, section: Section) -> None:
    check = "model-loaded"
    model = answer.fields.get("model")
    model = model if isinstance(model, dict) else {}
    state, name = model.get("state"), f"the model {model.get('id')} ({model.get('weights')})"
    if state == "ready":
        section.ok(check, f"{name} is loaded")
    elif state == "loading":
        section.ok(check, f"{name} is still loading", hint="predictions asked for now wait for it")
    else:
        error = model.get("error")
        error = error if isinstance(error, dict) else {}
        section.problem(
            check,
            f"{name} can't be used: {error.get('message') or state}",
            where=error.get("where"),
            got=error.get("got"),
            hint=error.get("hint") or "start the model server again: spica serve --weights FILE",
        )


def _check_allowed(client: LabelStudioClient, model_url: str, section: Section) -> bool:
    """Whether Label Studio refuses the address."""
    check = "model-server-allowed"
    if address_refused(client, model_url):
        section.problem(
            check, "Label Studio refuses to call the model server", where=model_url, hint=unblock_local_addresses()
        )
        return True
    section.ok(check, "Label Studio may call the model server's address")
    return False


def _check_webhooks_allowed(client: LabelStudioClient, model_url: str, section: Section, *, also: bool) -> bool:
    """Whether Label Studio refuses to send events there."""
    check = "webhooks-allowed"
    # "actions" is no list of actions, so Label Studio stores nothing; the address is judged before that.
    refused = _refuses(client, "/api/webhooks/", {"url": webhook_url(model_url), "actions": ["none"]})
    if not refused:
        section.ok(check, "Label Studio may send events to the model server's address")
    elif also:
        section.skipped(check, "events are refused for the same reason, and the same line mends it")
    else:
        section.problem(
            check,
            "Label Studio refuses to send events to the model server",
            where=webhook_url(model_url),
            hint=unblock_local_addresses(),
        )
    return refused


def address_refused(client: LabelStudioClient, url: str) -> bool:
    """Whether Label Studio refuses to call a model at this address.

    A model without a project can't be connected: Label Studio judges the address, misses the project and stops there.
    It stores nothing and calls nobody (ml/serializers.py, validate_url and validate).
    """
    return _refuses(client, "/api/ml/", {"url": url})


def _refuses(client: LabelStudioClient, path: str, body: dict[str, Any]) -> bool:
    """Whether a request that can't succeed is refused for its address.

    Raises:
        LabelStudioError: Label Studio does not know the host, or this account may not do such things at all.
    """
    status = _status(client, path, body)
    if status == 400:
        return False
    without_address = {key: value for key, value in body.items() if key != "url"}
    if status == 403 and _status(client, path, without_address) == 400:
        return True
    raise LabelStudioRefusedError(
        "Label Studio can't tell whether it may call the model server",
        status,
        where=str(body["url"]),
        got=f"HTTP {status}",
        hint="this account may not connect models"
        if status == 403
        else "Label Studio's machine may not know this host: give an address that it knows with --model-url",
    )


def _status(client: LabelStudioClient, path: str, body: dict[str, Any]) -> int:
    try:
        client.call("POST", path, json=body)
    except LabelStudioRefusedError as refusal:
        return refusal.http_status
    return 201

"""The checks: one table for each thing that is looked at, in order; each check is a function that gives its result."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, urlsplit

import httpx

from spica.doctor import remedies
from spica.doctor.output import Finding
from spica.errors import AuthenticationError, LabelStudioRefusedError, SpicaError
from spica.http import CERTIFICATE_HINT, certificate_trouble, http_client, same_url, user_and_password
from spica.images import decode
from spica.labelstudio.auth import WEBHOOK_HEADER, LabelStudioAuth, token_kind
from spica.labelstudio.client import LabelStudioClient, webhook_url
from spica.labelstudio.config import LabelConfig, parse_label_config
from spica.labelstudio.data_folder import folder_at
from spica.labelstudio.media import media_for
from spica.labelstudio.paths import ConfinedFolder
from spica.labelstudio.protocol import Task, image_places, image_uris
from spica.labelstudio.records import Backend, LocalStorage, Project
from spica.settings import Settings

logger = logging.getLogger(__name__)

TESTED_RELEASE = (1, 23)
"""Major and minor release that Spica is tested with."""

SAMPLES = 3
"""How many tasks are tried: what goes wrong goes wrong for whole folders."""

_ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"


# --- what the checks are made with -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from an address.

    Attributes:
        kind: ``http``; ``closed`` when nobody takes connections there; ``foreign`` when somebody does and sends no
            HTTP; ``untrusted`` when its certificate is refused; ``invalid`` for no web address at all.
        status: of HTTP, 0 without.
        body: the parsed JSON, None without.
        text: what happened.
    """

    kind: Literal["http", "closed", "foreign", "untrusted", "invalid"]
    status: int = 0
    body: Any = None
    text: str = ""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The JSON object in the body, empty if there is none."""
        return self.body if isinstance(self.body, dict) else {}


def ask(url: str, *, json: Any = None, auth: tuple[str, str] | None = None) -> Answer:
    """Ask an address, with POST if there is a body to send; never raises for what may come back."""
    method = "GET" if json is None else "POST"
    try:
        with http_client(url, timeout=10) as http:
            response = http.request(method, url, json=json, auth=auth)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        untrusted = certificate_trouble(error)
        return Answer("untrusted" if untrusted else "closed", text=untrusted or str(error) or type(error).__name__)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        return Answer("invalid", text=str(error))
    except httpx.RequestError as error:
        return Answer("foreign", text=str(error) or type(error).__name__)
    try:
        body = response.json()
    except ValueError:
        body = None
    kind = response.headers.get("content-type", "no content type").partition(";")[0]
    return Answer("http", response.status_code, body, f"HTTP {response.status_code}, {kind}")


@dataclass
class Examination:
    """What is known so far; each check may add to it.

    Attributes:
        passed: names of the checks that found nothing wrong.
        health: what the model server answered.
        blocked: whether Label Studio refuses to call the model server; ``webhooks_blocked`` for events.
        models: connected with the project, the one that Label Studio asks first.
        version: what the model server answers for the project.
        uris: of some images of the project, by task.
        client, project, config: there once ``token``, ``project-exists`` and ``label-config`` have passed.
    """

    settings: Settings
    model_url: str
    passed: set[str] = field(default_factory=set)
    release: str = ""
    health: Answer = field(default_factory=lambda: Answer("closed"))
    asks_password: bool = False
    blocked: bool = False
    webhooks_blocked: bool = False
    models: list[Backend] = field(default_factory=list)
    version: str | None = None
    uris: list[tuple[int, str]] = field(default_factory=list)
    client: LabelStudioClient = field(init=False)
    project: Project = field(init=False)
    config: LabelConfig = field(init=False)

    def of(self, project: Project) -> Examination:
        """The same for a project."""
        part = Examination(self.settings, self.model_url, set(self.passed), asks_password=self.asks_password)
        part.blocked, part.webhooks_blocked = self.blocked, self.webhooks_blocked
        part.client, part.project = self.client, project
        return part

    def page(self, name: str) -> str:
        """Address of a page of the project's settings."""
        return f"{self.client.url}/projects/{self.project.id}/settings/{name}"

    def connect(self, model_url: str | None = None) -> str:
        """The command that connects a model server, by default this one, with the project."""
        return remedies.connect(self.project.id, model_url or self.model_url)

    @property
    def by_up(self) -> bool:
        """Whether `spica up` has started this Label Studio."""
        return folder_at(self.settings.label_studio_url) is not None

    @property
    def auth(self) -> LabelStudioAuth | None:
        """What Label Studio is asked for images with."""
        key = self.settings.label_studio_api_key
        return None if key is None else LabelStudioAuth(self.settings.label_studio_url, key.get_secret_value())

    def is_ours(self, backend: Backend) -> bool:
        """Whether a connected model is the model server that is looked at."""
        return same_url(backend.url, self.model_url)


def _ok(what: str, *, hint: str | None = None) -> Finding:
    return Finding("", "", "ok", what, hint=hint)


def _problem(what: str, *, where: str | None = None, got: str | None = None, hint: str | None = None) -> Finding:
    return Finding("", "", "problem", what, where, got, hint)


def _skipped(why: str, *, hint: str | None = None) -> Finding:
    return Finding("", "", "skipped", why, hint=hint)


def _failure(error: SpicaError, what: str | None = None) -> Finding:
    got = error.got
    if error.expected is not None:
        got = f"{got or 'something else'} (expected: {error.expected})"
    return _problem(what or error.what, where=error.where, got=got, hint=error.hint)


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table.

    Attributes:
        name: stable, for programs.
        run: gives what it found; several findings, or None where there is nothing to say.
        needs: another check that has to have passed.
        otherwise: why it is skipped if that one has not; None says nothing.
    """

    name: str
    run: Callable[[Examination], Finding | list[Finding] | None]
    needs: str | None = None
    otherwise: str | None = None


def run_checks(
    checks: Sequence[Check], examination: Examination, group: str, project: int | None = None
) -> list[Finding]:
    """The findings of some checks, in order; one that fails ends no other."""
    findings = []
    for check in checks:
        found: Finding | list[Finding] | None
        if check.needs is not None and check.needs not in examination.passed:
            found = None if check.otherwise is None else _skipped(check.otherwise)
        else:
            try:
                found = check.run(examination)
            except SpicaError as error:
                found = _failure(error)
            except Exception as error:
                logger.debug("the check %s failed", check.name, exc_info=error)
                text = f"{type(error).__name__}: {error}"[:300]
                found = _problem("this check failed itself; please report it", got=text)
        results = found if isinstance(found, list) else [] if found is None else [found]
        if results and all(finding.status == "ok" for finding in results):
            examination.passed.add(check.name)
        findings += [replace(finding, check=check.name, group=group, project=project) for finding in results]
    return findings


def examine(settings: Settings, *, project: int | None, model_url: str) -> list[Finding]:
    """Look at Label Studio, the model server and projects.

    A check that can't be made because another one failed is skipped, and that other one counts. Where all projects
    are looked at, one without a model counts only if none has one: not every project is about boxes.

    Args:
        settings: addresses, token, folders.
        project: number of the project to look at; None for all.
        model_url: of the model server.

    Returns:
        What was found, in the order of looking. Never raises for what is wrong: that is a finding.
    """
    examination = Examination(settings, model_url)
    with contextlib.ExitStack() as stack:
        findings = run_checks(LABEL_STUDIO, examination, "Label Studio")
        if "token" in examination.passed:
            stack.callback(examination.client.close)
        findings += run_checks(MODEL_SERVER, examination, "Model server")
        heading = "Projects" if project is None else f"Project {project}"
        if "token" not in examination.passed:
            waiting = _skipped("projects can't be looked at before the above is put right")
            return [*findings, replace(waiting, check="project-exists", group=heading, project=project)]
        projects: list[Project] = []

        def find(examination: Examination) -> Finding | None:
            client = examination.client
            projects.extend(client.projects() if project is None else [client.project(project)])
            hint = "spica up photos --weights FILE --labels …"
            return None if projects else _skipped("there are no projects yet", hint=hint)

        findings += run_checks([Check("project-exists", find)], examination, heading, project)
        parts = []
        for row in sorted(projects, key=lambda each: each.id):
            part = examination.of(row)
            parts.append((part, f"Project {row.id} ({row.title})", run_checks(CONNECTED, part, "", row.id)))
        is_wanted = project is not None or not any(part.models for part, _, _ in parts)
        for part, name, first in parts:
            findings += [replace(finding, group=name) for finding in first]
            if len(first) == 1:  # else its models could not be listed
                table = PROJECT if part.models or is_wanted else PASSED_OVER
                findings += run_checks(table, part, name, part.project.id)
    return findings


# --- Label Studio ----------------------------------------------------------------------------------------------------


def _label_studio_reachable(x: Examination) -> Finding:
    url = x.settings.label_studio_url
    address = url.strip().rstrip("/")
    answer = ask(f"{address}/api/version")
    if answer.kind == "http" and answer.status == 200 and "label-studio-os-package" in answer.fields:
        x.release = str(answer.fields.get("release") or "")
        return _ok(f"Label Studio answers at {url}")
    start = (
        "start Label Studio (`spica up` or `label-studio start`), or give its address with --url or LABEL_STUDIO_URL"
    )
    moved = "a Label Studio whose port is taken moves to the next one: its first lines tell which. Give it with --url"
    what, hint = {
        "closed": ("Label Studio can't be reached", start),
        "untrusted": ("the certificate of Label Studio is not trusted", CERTIFICATE_HINT),
        "invalid": ("this is no web address", "give Label Studio's with --url, such as http://127.0.0.1:8080"),
        "foreign": (
            "another program has this port, or a Label Studio that hangs: it takes connections, no HTTP comes",
            moved,
        ),
        "http": (
            "what answers there is not Label Studio",
            f"{moved}; its sub-path, if it has one, belongs to the address",
        ),
    }[answer.kind]
    if answer.status in range(300, 400):
        what, hint = (
            "Label Studio's address leads elsewhere",
            "give the address that the browser shows, up to /projects",
        )
    return _problem(what, where=address, got=answer.text, hint=hint)


def _label_studio_version(x: Examination) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", x.release)
    if numbers is None:
        return _ok("Label Studio does not say its release", hint="Spica is tested with 1.23")
    release = (int(numbers[1]), int(numbers[2]))
    if release == TESTED_RELEASE:
        return _ok(f"release {x.release}, with which Spica is tested")
    age, tested = "older" if release < TESTED_RELEASE else "newer", ".".join(map(str, TESTED_RELEASE))
    install = 'pip install "spica[label-studio]"'
    return _ok(
        f"release {x.release}, {age} than {tested}",
        hint=f"Spica is tested with {tested}; if something fails oddly, try: {install}",
    )


def _token(x: Examination) -> Finding:
    settings = x.settings
    if settings.label_studio_api_key is None:
        searched = "data_dir" in settings.model_fields_set
        elsewhere = "" if searched else "; for a Label Studio of `spica up`, give --data-dir instead"
        return _problem(
            "the access token is missing",
            where="LABEL_STUDIO_API_KEY",
            got=f"no Label Studio of `spica up` in the data folder {settings.data_dir}" if searched else None,
            hint=f"copy it from {settings.label_studio_url.rstrip('/')}/user/account (Personal Access Token), then\n"
            f"{remedies.environment(LABEL_STUDIO_API_KEY='<token>')}\nor give it with --token{elsewhere}",
        )
    token = settings.label_studio_api_key.get_secret_value()
    client = LabelStudioClient(settings.label_studio_url, token)
    try:
        user = client.whoami()
    except AuthenticationError:
        client.close()
        raise
    except SpicaError as error:  # on the way to the answer: it says nothing about the token
        client.close()
        return _failure(error, f"the token could not be tried: {error.what}")
    x.client = client
    kind = token_kind(token)
    short_lived = "an access token ends after five minutes; a personal access token renews itself"
    return _ok(f"the {kind} token of {user.email} works", hint=short_lived if kind == "access" else None)


LABEL_STUDIO = (
    Check("label-studio-reachable", _label_studio_reachable),
    Check("label-studio-version", _label_studio_version, "label-studio-reachable", "the release can't be seen"),
    Check("token", _token, "label-studio-reachable", "the token can't be tried"),
)


# --- the model server, and whether Label Studio may call it ----------------------------------------------------------


def _model_server_reachable(x: Examination) -> Finding:
    where, auth = f"{x.model_url.rstrip('/')}/health", user_and_password(x.settings.basic_auth)
    answer = ask(where)
    if answer.status == 401:
        x.asks_password = True
        answer = answer if auth is None else ask(where, auth=auth)
    x.health = answer
    if answer.kind == "http" and answer.status == 200 and answer.fields.get("model_class") == "Spica":
        locked = ", with user and password" if x.asks_password else ""
        return _ok(f"Spica's model server answers at {x.model_url}{locked}")
    other_port = "give the model server another port (`spica serve --weights FILE --port 8011`), then --model-url"
    start = "spica serve --weights FILE\nor give its address with --model-url"
    got = answer.text
    what, hint = {
        "closed": ("the model server does not run there", start),
        "untrusted": ("the certificate of the model server is not trusted", CERTIFICATE_HINT),
        "invalid": (
            "this is no web address",
            "give the model server's with --model-url, such as http://127.0.0.1:8010",
        ),
        "foreign": ("another program has this port: it takes connections, no HTTP comes", other_port),
        "http": ("what answers there is not a model server of Spica's", other_port),
    }[answer.kind]
    error = answer.fields.get("error")
    if answer.status == 401:
        what = "it asks for user and password" if auth is None else "the model server refuses this user and password"
        hint = "set what its --basic-auth says:\n" + remedies.environment(SPICA_BASIC_AUTH="<user>:<password>")
    elif answer.status == 200 and "model_class" in answer.fields:
        what = "another model server answers there, not Spica's"
        got = f"model_class {str(answer.fields['model_class'])[:80]}"
    elif isinstance(error, dict) and "code" in error:
        what, hint = f"the model server refuses: {error.get('message')}", str(error.get("hint"))
    return _problem(what, where=x.model_url, got=got, hint=hint)


def _model_loaded(x: Examination) -> Finding:
    model = x.health.fields.get("model")
    model = model if isinstance(model, dict) else {}
    state, name = model.get("state"), f"the model {model.get('id')} ({model.get('weights')})"
    if state == "ready":
        return _ok(f"{name} is loaded")
    if state == "loading":
        return _ok(f"{name} is still loading", hint="predictions asked for now wait for it")
    error = model.get("error")
    error = error if isinstance(error, dict) else {}
    return _problem(
        f"{name} can't be used: {error.get('message') or state}",
        where=error.get("where"),
        got=error.get("got"),
        hint=error.get("hint") or "start the model server again: spica serve --weights FILE",
    )


def _model_server_allowed(x: Examination) -> Finding:
    x.blocked = _address_refused(x.client, x.model_url)
    if not x.blocked:
        return _ok("Label Studio may call the model server's address")
    hint = remedies.unblock_local_addresses()
    return _problem("Label Studio refuses to call the model server", where=x.model_url, hint=hint)


def _webhooks_allowed(x: Examination) -> Finding:
    where = webhook_url(x.model_url)
    # "actions" is no list of actions, so Label Studio stores nothing; the address is judged before that.
    x.webhooks_blocked = _refuses(x.client, "/api/webhooks/", {"url": where, "actions": ["none"]})
    if not x.webhooks_blocked:
        return _ok("Label Studio may send events to the model server's address")
    if x.blocked:
        return _skipped("events are refused for the same reason, and the same line helps")
    hint = remedies.unblock_local_addresses()
    return _problem("Label Studio refuses to send events to the model server", where=where, hint=hint)


def _address_refused(client: LabelStudioClient, url: str) -> bool:
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


MODEL_SERVER = (
    Check("model-server-reachable", _model_server_reachable),
    Check("model-loaded", _model_loaded, "model-server-reachable", "the model can't be seen"),
    Check(
        "model-server-allowed",
        _model_server_allowed,
        "token",
        "Label Studio can't be asked whether it may call the model server",
    ),
    Check("webhooks-allowed", _webhooks_allowed, "token", "Label Studio can't be asked whether it may send events"),
)


# --- a project: labels and the connected model -----------------------------------------------------------------------


def _project_exists(x: Examination) -> Finding:
    number = x.project.task_count
    return _ok(f"it has {number} task{'' if number == 1 else 's'}")


def _list_models(x: Examination) -> Finding | None:
    x.models = x.client.backends(x.project.id)
    return None


def _pass_over(x: Examination) -> Finding:
    return _skipped("no model is connected, nothing to look at", hint=f"for one: {x.connect()}")


def _label_config(x: Examination) -> Finding:
    x.config = parse_label_config(x.project.label_config)
    tags = ", ".join(f'"{control.from_name}"' for control in x.config.controls)
    return _ok(f"rectangles can be drawn with {tags}")


def _labels_match(x: Examination) -> Finding | list[Finding]:
    """Which classes have labels; the version that the model server answers is noted on the way."""
    if "model-server-reachable" not in x.passed:
        return _skipped("the model server can't be asked for its classes")
    where = f"{x.model_url.rstrip('/')}/setup"
    extra_params = next((backend.extra_params for backend in x.models if x.is_ours(backend)), None)
    known = {} if extra_params is None else {"extra_params": extra_params}
    # It notes nothing that Label Studio has not sent it too.
    setup = {"project": x.project.key.stem, "schema": x.project.label_config, **known}
    answer = ask(where, json=setup, auth=user_and_password(x.settings.basic_auth))
    version, problems = answer.fields.get("model_version"), answer.fields.get("problems")
    if answer.status != 200 or not isinstance(version, str) or not isinstance(problems, list):
        what = "the model server can't tell what it makes of the labels"
        return _problem(what, where=where, got=answer.text, hint="look into the model server's log")
    x.version = version
    hint = f"change the labels under {x.page('labeling')}, or the model's extra params under {x.page('ml')}"
    classes = ", ".join(str(name) for name in answer.fields.get("classes", []) if name)
    named = f" ({classes})" if classes else ""
    return [_problem(str(text), hint=hint) for text in problems] or _ok(f"every class of the model{named} has a label")


def _model_connected(x: Examination) -> Finding:
    if not x.models:
        return _problem("no model is connected", hint=x.connect())
    backend = x.models[0]
    return _ok(f"the model {backend.title!r} at {backend.url} is connected")


def _one_model(x: Examination) -> Finding:
    if len(x.models) == 1:
        return _ok("it is the only one")
    backends = x.models
    ours = next(filter(x.is_ours, backends), backends[0])
    names = {backend.id: f"{backend.title!r} at {backend.url}" for backend in backends}
    surplus = "; ".join(name for number, name in names.items() if number != ours.id)
    return _problem(
        f"{len(backends)} models are connected, and Label Studio asks only the first, {backends[0].title!r}",
        where=x.page("ml"),
        got="; ".join(names.values()),
        hint=f"delete under {x.page('ml')} (menu ... > Delete): {surplus}",
    )


def _model_address(x: Examination) -> Finding:
    backend = x.models[0]
    if x.is_ours(backend):
        return _ok("it is the model server that was looked at")
    if x.version is not None and backend.is_connected and backend.model_version == x.version:
        return _ok(f"{backend.url} answers as {x.version}, like {x.model_url}")
    return _problem(
        "Label Studio asks another address than that of the model server",
        where=x.page("ml"),
        got=f"{backend.url} (expected: {x.model_url})",
        hint=f"if that is the right one: spica doctor --project {x.project.id} --model-url {backend.url}\n"
        f"if not, delete it under {x.page('ml')}, then\n  {x.connect()}",
    )


def _model_state(x: Examination) -> Finding:
    backend = x.models[0]
    where, ours = backend.url, x.is_ours(backend)
    if backend.is_connected:
        return _ok("Label Studio reaches it")
    if backend.state == "ER":
        return _problem(
            "Label Studio reaches the model, and it answers with an error",
            where=where,
            got=backend.error_message or None,
            hint="look into the model server's log; then open the project's page again",
        )
    if x.blocked if ours else _address_refused(x.client, where):
        hint = "as above, at model-server-allowed" if ours else remedies.unblock_local_addresses()
        return _problem("disconnected: Label Studio refuses to call this address", where=where, hint=hint)
    if not ours:
        hint = "as above, at model-address"
        return _problem("disconnected: nothing answers Label Studio there", where=where, hint=hint)
    if x.asks_password:
        sent = "a wrong one" if backend.basic_auth_user else "none"
        return _problem(
            f"disconnected: the model server asks for user and password, and Label Studio sends {sent}",
            where=where,
            hint=f"{x.connect()} --basic-auth <user>:<password>",
        )
    if "model-server-reachable" not in x.passed:
        return _skipped("disconnected, since the model server does not answer")
    return _problem(
        "disconnected: the model server answers here, but Label Studio does not reach it",
        where=where,
        hint="Label Studio may run in a container or on another machine, where 127.0.0.1 is not this one. "
        "Start the model server with --host 0.0.0.0 --expose, delete this connection under "
        f"{x.page('ml')}, and connect it by an address that Label Studio reaches, such as\n"
        f"  {x.connect('http://host.docker.internal:8010')}",
    )


def _current(x: Examination) -> str:
    backend = x.models[0]
    return x.version if x.version is not None and x.is_ours(backend) else backend.model_version


def _title_is_version(x: Examination) -> Finding:
    backend, version = x.models[0], _current(x)
    if not version:
        return _skipped("the model's version is not known yet")
    if backend.title == version:
        return _ok("its title is its version, so scores are shown and tasks can be ordered by them")
    return _problem(
        "the title of the connected model is not its version, so Label Studio shows no scores",
        where=x.page("ml"),
        got=f"{backend.title!r} (expected: {version!r})",
        hint=x.connect(backend.url),
    )


def _predictions_shown(x: Examination) -> Finding:
    backend, version, selected = x.models[0], _current(x), x.project.model_version
    wrong = []
    if not x.project.show_collab_predictions:
        wrong.append("predictions are not shown to annotators (show_collab_predictions is off)")
    if version and selected not in (version, backend.title):
        wrong.append(f"the project shows predictions of {selected!r}, not of {version!r}")
    if wrong:
        hint = x.connect(backend.url)
        return _problem("; ".join(wrong), where=x.page("annotation"), hint=hint)
    if version and selected != version:
        return _skipped("the project shows the predictions of the model's title, see title-is-version")
    return _ok("the project shows its predictions")


def _webhook(x: Examination) -> Finding:
    backend = x.models[0]
    address, where = webhook_url(backend.url), x.page("webhooks")
    hooks = [hook for hook in x.client.webhooks(x.project.id) if same_url(hook.url, address)]
    active = [hook for hook in hooks if hook.is_active]
    connect = x.connect(backend.url)
    if any(WEBHOOK_HEADER in hook.headers for hook in active):
        return _ok("it is told about submitted annotations")
    if active:
        what = "its webhook carries no secret, so what it tells of submitted annotations is refused"
        return _problem(what, where=where, hint=connect)
    if hooks:
        return _problem(
            "its webhook is switched off, so it is not told about submitted annotations",
            where=where,
            got=f"webhook {hooks[0].id} to {address} is inactive",
            hint=f"switch it on under {where}",
        )
    if x.webhooks_blocked and x.is_ours(backend):
        return _skipped("there is no webhook, since Label Studio refuses events, see webhooks-allowed")
    return _problem(
        "there is no webhook, so the model is not told about submitted annotations",
        where=where,
        got=f"nothing for {address}",
        hint=f"{connect}\n(Label Studio takes no host name without a dot but localhost)",
    )


def _listing_asks_model(x: Examination) -> Finding:
    if not x.project.evaluates_on_listing:
        return _ok("listing tasks does not wait for the model")
    return _problem(
        "each look at the list of tasks asks the model and waits for it",
        where="evaluate_predictions_automatically",
        hint="switch it off:\n"
        f'  curl -X PATCH -H "Authorization: Token <legacy token>" '
        f"-F evaluate_predictions_automatically=false {x.client.url}/api/projects/{x.project.id}/\n"
        "  (in PowerShell, write curl.exe; with a personal token, write Bearer and an access token)",
    )


# --- a project: its images -------------------------------------------------------------------------------------------


def _images_readable(x: Examination) -> Finding:
    """Read and decode a few images as the model server does with these settings."""
    if x.project.evaluates_on_listing:
        return _skipped("listing tasks would ask the model, see listing-asks-model")
    rows = list(islice(x.client.iter_tasks(x.project.id, page_size=SAMPLES), SAMPLES))
    if not rows:
        return _skipped("the project has no tasks yet")
    control, settings = x.config.controls[0], x.settings
    for row in rows:
        task = Task(id=row.id, data=row.data)
        uris = [uri for uri in image_places(task, control) if uri is not None] or image_uris(task, control)
        x.uris += [(row.id, uri) for uri in uris[:1]]
    failures: list[tuple[int, SpicaError]] = []
    with media_for(settings, x.auth) as reader:
        for number, uri in x.uris:
            try:
                decode(reader.read(uri, task_id=number), where=uri[:200], max_pixels=settings.max_pixels)
            except SpicaError as failure:
                failures.append((number, failure))
    if not failures:
        return _ok(f"{len(x.uris)} of its images were read, as a test")
    number, error = failures[0]
    count = f"{len(failures)} of {len(x.uris)} images"
    return _failure(error, f"{count} that were tried can't be read, such as task {number}'s: {error.what}")


def _local_names(x: Examination) -> list[str]:
    """Of the images that come from a local storage, their paths relative to the document root."""
    parts = [urlsplit(uri) for _, uri in x.uris]
    local = [part for part in parts if part.path.rstrip("/").endswith("/data/local-files")]
    return [name for part in local for name in parse_qs(part.query).get("d", [])[-1:]]


def _local_files_served(x: Examination) -> Finding | None:
    """Whether Label Studio serves local images to annotators."""
    names = _local_names(x)
    for name in names:
        where = f"{x.client.url}/data/local-files/?d={quote(name)}"
        status = _served(x, where)
        if status == 403:
            root = x.settings.local_files_document_root
            return _problem(
                "Label Studio does not serve local files, so annotators see no images",
                where=where,
                got="HTTP 403",
                hint=remedies.serve_local_files(str(root) if root is not None else "<folder above the images>"),
            )
        if status == 404:
            return _not_found(x, name, where)
        if status not in (200, 206):
            got = f"HTTP {status}" if status else "no answer"
            return _problem(
                "Label Studio can't serve an image", where=where, got=got, hint="look into Label Studio's log"
            )
    return _ok("Label Studio serves local files to annotators") if names else None


def _served(x: Examination, address: str) -> int:
    """The status with which Label Studio answers for an image, of which only the first byte is fetched; 0 without."""
    with http_client(address, timeout=x.settings.media_timeout_s) as http:
        try:
            with http.stream("GET", address, auth=x.auth, headers={"Range": "bytes=0-0"}) as response:
                return response.status_code
        except httpx.TransportError:
            return 0


def _not_found(x: Examination, name: str, where: str) -> Finding:
    """Label Studio answers 404 both for a file that is not there and for one that no storage covers."""
    page, root = x.page("storage"), x.settings.local_files_document_root
    storages = x.client.local_storages(x.project.id)
    got = f"HTTP 404; the project's local storages: {', '.join(each.path for each in storages) or 'none'}"
    if root is None:
        hint = f"either the file is gone, or no local storage covers its folder: add it under {page} (Local files)"
        return _problem("Label Studio does not find an image", where=where, got=got, hint=hint)
    folder = ConfinedFolder(root, setting=_ROOT)
    path = Path(folder.shown(name))
    if folder.find(name) is None:
        what, got = "an image is not where its task says", f"no such file; {got}"
        hint = f"put it back, or check {_ROOT}: it must be the same as Label Studio's"
        if x.by_up:
            hint = "put it back, or run `spica up` again with the folder that it lies in now"
    elif path.parent == root:
        what = "an image lies in the document root itself, which Label Studio never serves"
        hint = f"move the images into a folder below {root}, add it under {page} (Local files), and sync"
    elif covered(path, storages):
        what = "the image is on this machine, and Label Studio does not find it"
        hint = "Label Studio's document root is another one, or it runs elsewhere. On its machine, "
        hint += remedies.serve_local_files(str(root))
    else:
        what = "no local storage covers the folder of an image, so Label Studio does not serve it"
        hint = (
            f"under {page}, Add Source Storage > Local files, with this absolute local path, and save it "
            f"(syncing is not needed):\n  {path.parent}"
        )
    if x.by_up and folder.find(name) is not None:
        hint = f"this Label Studio takes folders by `spica up` only: run it again with\n  {path.parent}"
    return _problem(what, where=str(path), got=got, hint=hint)


def covered(path: Path, storages: Sequence[LocalStorage]) -> bool:
    """Whether a storage has a file; links are followed, since `spica up` gives Label Studio nothing but links."""
    real = path.resolve()
    return any(
        path.is_relative_to(storage.path) or real.is_relative_to(Path(storage.path).resolve())
        for storage in storages
        if storage.path
    )


def _local_files_root(x: Examination) -> Finding | None:
    """The folder from which the model server reads local files."""
    root = x.settings.local_files_document_root
    if not _local_names(x):
        return None
    advice = "where the model server starts, set the same folder as for Label Studio:\n"
    advice += remedies.environment(LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="<folder>")
    if x.by_up:
        advice = "`spica up` sets it for its own model server; for another one, " + advice
    if root is not None and root.is_dir():
        return _ok(f"local files are read from {root}")
    if root is not None:
        return _problem("the folder of local files does not exist", where=f"{_ROOT}={root}", hint=advice)
    if "images-readable" in x.passed:
        return _ok(f"{_ROOT} is not set here: images come through Label Studio", hint=f"faster: {advice}")
    return _problem("the folder of local files is not set", where=_ROOT, hint=advice)


CONNECTED = (Check("project-exists", _project_exists), Check("model-connected", _list_models))
PASSED_OVER = (Check("model-connected", _pass_over),)
PROJECT = (
    Check("label-config", _label_config),
    Check("labels-match", _labels_match, "label-config", "without labels for rectangles there is nothing to compare"),
    Check("model-connected", _model_connected),
    Check("one-model", _one_model, "model-connected"),
    Check("model-address", _model_address, "model-connected"),
    Check("model-state", _model_state, "model-connected"),
    Check("title-is-version", _title_is_version, "model-connected"),
    Check("predictions-shown", _predictions_shown, "model-connected"),
    Check("webhook", _webhook, "model-connected"),
    Check("listing-asks-model", _listing_asks_model),
    Check(
        "images-readable",
        _images_readable,
        "label-config",
        "without a labelling configuration it is not known which data are images",
    ),
    Check("local-files-served", _local_files_served, "label-config"),
    Check("local-files-root", _local_files_root, "label-config"),
)

"""Checks of one project: its labels, its connected model, and what annotators see of the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spica.doctor import remedies
from spica.doctor.finding import Section
from spica.doctor.model_server import ModelServer, address_refused
from spica.http import same_url
from spica.labelstudio.auth import WEBHOOK_HEADER
from spica.labelstudio.client import LabelStudioClient, webhook_url
from spica.labelstudio.config import LabelConfig, parse_label_config
from spica.labelstudio.records import Backend, Project

_ASKED_S = 120.0
"""Label Studio asks each connected model for its state before it lists them, a dead one for several seconds."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A connected model, with what :class:`Backend` leaves out.

    Attributes:
        backend: the rest.
        extra_params: as given in the model's form.
        has_password: whether Label Studio sends user and password.
    """

    backend: Backend
    extra_params: Any
    has_password: bool


def connected_models(client: LabelStudioClient, project: int) -> list[Connected]:
    """The models connected with a project, the one that Label Studio asks first."""
    bodies = client.call("GET", "/api/ml/", params={"project": project}, timeout_s=_ASKED_S)
    found = [
        Connected(Backend.read(body), body.get("extra_params"), bool(body.get("basic_auth_user"))) for body in bodies
    ]
    return sorted(found, key=lambda each: each.backend.id)


class ProjectExamination:
    """The checks of one project.

    Args:
        client: Label Studio.
        server: the model server.
        project: what is looked at.
        models: connected with it; the first is the one that Label Studio asks.
        section: takes the findings.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        server: ModelServer,
        project: Project,
        models: Sequence[Connected],
        section: Section,
    ) -> None:
        self._client = client
        self._server = server
        self._project = project
        self._models = models
        self._section = section
        self._settings_page = f"{client.url}/projects/{project.id}/settings"

    def run(self) -> LabelConfig | None:
        """All checks, in order; gives the labelling configuration, if a detector could fill it."""
        config = self._label_config()
        version = self._section.attempt("labels-match", lambda: self._labels(config))
        if self._models:
            self._connection(version)
        else:
            command = remedies.connect(self._project.id, self._server.url)
            self._section.problem("model-connected", "no model is connected", hint=command)
        self._listing()
        return config

    def pass_over(self) -> None:
        """Say that no model is connected, where that may be meant."""
        command = remedies.connect(self._project.id, self._server.url)
        self._section.skipped(
            "model-connected", "no model is connected, nothing to look at", hint=f"for one: {command}"
        )

    # --- one check each ----------------------------------------------------------------------------------------------

    def _label_config(self) -> LabelConfig | None:
        config = self._section.attempt("label-config", lambda: parse_label_config(self._project.label_config))
        if config is not None:
            tags = ", ".join(f'"{control.from_name}"' for control in config.controls)
            self._section.ok("label-config", f"rectangles can be drawn with {tags}")
        return config

    def _labels(self, config: LabelConfig | None) -> str | None:
        """The version that the model server answers, after a look at which classes have labels."""
        check = "labels-match"
        if config is None:
            self._section.skipped(check, "without labels for rectangles there is nothing to compare")
            return None
        if not self._server.usable:
            self._section.skipped(check, "the model server can't be asked for its classes")
            return None
        extra_params = next((each.extra_params for each in self._models if self._is_ours(each.backend)), None)
        answer = self._server.setup(self._project.key, self._project.label_config, extra_params)
        version, problems = answer.fields.get("model_version"), answer.fields.get("problems")
        if answer.status != 200 or not isinstance(version, str) or not isinstance(problems, list):
            self._section.problem(
                check,
                "the model server can't tell what it makes of the labels",
                where=f"{self._server.url.rstrip('/')}/setup",
                got=answer.told,
                hint="look into the model server's log",
            )
            return None
        for problem in problems:
            self._section.problem(
                check,
                str(problem),
                hint=f"change the labels under {self._settings_page}/labeling, or the model's extra params under "
                f"{self._settings_page}/ml",
            )
        if not problems:
            classes = [name for name in answer.fields.get("classes", []) if name]
            named = f" ({', '.join(map(str, classes))})" if classes else ""
            self._section.ok(check, f"every class of the model{named} has a label")
        return version

    def _connection(self, version: str | None) -> None:
        backend = self._models[0].backend
        self._section.ok("model-connected", f"the model {backend.title!r} at {backend.url} is connected")
        self._one_model()
        self._address(backend, version)
        self._section.attempt("model-state", lambda: self._state(self._models[0]))
        current = version if version is not None and self._is_ours(backend) else backend.model_version
        self._title(backend, current)
        self._shown(backend, current)
        self._section.attempt("webhook", lambda: self._webhook(backend))

    def _listing(self) -> None:
        check = "listing-asks-model"
        if not self._project.evaluates_on_listing:
            self._section.ok(check, "listing tasks does not wait for the model")
            return
        address = f"{self._client.url}/api/projects/{self._project.id}/"
        self._section.problem(
            check,
            "each look at the list of tasks asks the model and waits for it",
            where="evaluate_predictions_automatically",
            hint="switch it off:\n"
            f'  curl -X PATCH -H "Authorization: Token <legacy token>" '
            f"-F evaluate_predictions_automatically=false {address}\n"
            "  (in PowerShell, write curl.exe; with a personal token, write Bearer and an access token)",
        )

    def _is_ours(self, backend: Backend) -> bool:
        return same_url(backend.url, self._server.url)

    def _one_model(self) -> None:
        check = "one-model"
        if len(self._models) == 1:
            self._section.ok(check, "it is the only one")
            return
        first, *others = [each.backend for each in self._models]
        ours = next((each for each in (first, *others) if self._is_ours(each)), first)
        surplus = "; ".join(f"{each.title!r} at {each.url}" for each in (first, *others) if each is not ours)
        self._section.problem(
            check,
            f"{len(self._models)} models are connected, and Label Studio asks only the first, {first.title!r}",
            where=f"{self._settings_page}/ml",
            got="; ".join(f"{each.title!r} at {each.url}" for each in (first, *others)),
            hint=f"delete under {self._settings_page}/ml (menu ... > Delete): {surplus}",
        )

    def _address(self, backend: Backend, version: str | None) -> None:
        check = "model-address"
        if self._is_ours(backend):
            self._section.ok(check, "it is the model server that was looked at")
        elif version is not None and backend.is_connected and backend.model_version == version:
            self._section.ok(check, f"{backend.url} answers as {version}, like {self._server.url}")
        else:
            self._section.problem(
                check,
                "Label Studio asks another address than that of the model server",
                where=f"{self._settings_page}/ml",
                got=f"{backend.url} (expected: {self._server.url})",
                hint=f"if that is the right one: spica doctor --project {self._project.id} --model-url {backend.url}\n"
                f"if not, delete it under {self._settings_page}/ml, then\n"
                f"  {remedies.connect(self._project.id, self._server.url)}",
            )

    def _state(self, model: Connected) -> None:
        check, backend = "model-state", model.backend
        if backend.is_connected:
            self._section.ok(check, "Label Studio reaches it")
            return
        if backend.state == "ER":
            self._section.problem(
                check,
                "Label Studio reaches the model, and it answers with an error",
                where=backend.url,
                got=backend.error_message or None,
                hint="look into the model server's log; then open the project's page again",
            )
            return
        ours = self._is_ours(backend)
        blocked = self._server.blocked if ours else address_refused(self._client, backend.url)
        where = backend.url
        if blocked:
            self._section.problem(
                check,
                "disconnected: Label Studio refuses to call this address",
                where=where,
                hint="as above, at model-server-allowed" if ours else remedies.unblock_local_addresses(),
            )
        elif not ours:
            self._section.problem(
                check,
                "disconnected: nothing answers Label Studio there",
                where=where,
                hint="as above, at model-address",
            )
        elif self._server.asks_password:
            given = "a wrong one" if model.has_password else "none"
            self._section.problem(
                check,
                f"disconnected: the model server asks for user and password, and Label Studio sends {given}",
                where=where,
                hint=remedies.connect(self._project.id, self._server.url, extra=" --basic-auth <user>:<password>"),
            )
        elif not self._server.usable:
            self._section.skipped(check, "disconnected, since the model server does not answer")
        else:
            self._section.problem(
                check,
                "disconnected: the model server answers here, but Label Studio does not reach it",
                where=where,
                hint="Label Studio may run in a container or on another machine, where 127.0.0.1 is not this one. "
                "Start the model server with --host 0.0.0.0 --expose, delete this connection under "
                f"{self._settings_page}/ml, and connect it by an address that Label Studio reaches, such as\n"
                f"  {remedies.connect(self._project.id, 'http://host.docker.internal:8010')}",
            )

    def _title(self, backend: Backend, version: str) -> None:
        check = "title-is-version"
        if not version:
            self._section.skipped(check, "the model's version is not known yet")
        elif backend.title == version:
            self._section.ok(check, "its title is its version, so scores are shown and tasks can be ordered by them")
        else:
            self._section.problem(
                check,
                "the title of the connected model is not its version, so Label Studio shows no scores",
                where=f"{self._settings_page}/ml",
                got=f"{backend.title!r} (expected: {version!r})",
                hint=remedies.connect(self._project.id, backend.url),
            )

    def _shown(self, backend: Backend, version: str) -> None:
        check = "predictions-shown"
        selected = self._project.model_version
        wrong = []
        if not self._project.show_collab_predictions:
            wrong.append("predictions are not shown to annotators (show_collab_predictions is off)")
        if version and selected != version and selected != backend.title:
            wrong.append(f"the project shows predictions of {selected!r}, not of {version!r}")
        if wrong:
            self._section.problem(
                check,
                "; ".join(wrong),
                where=f"{self._settings_page}/annotation",
                hint=remedies.connect(self._project.id, backend.url),
            )
        elif version and selected != version:
            self._section.skipped(check, "the project shows the predictions of the model's title, see title-is-version")
        else:
            self._section.ok(check, "the project shows its predictions")

    def _webhook(self, backend: Backend) -> None:
        check, address = "webhook", webhook_url(backend.url)
        hooks = [hook for hook in self._client.webhooks(self._project.id) if same_url(hook.url, address)]
        command = remedies.connect(self._project.id, backend.url)
        if any(hook.is_active and WEBHOOK_HEADER in hook.headers for hook in hooks):
            self._section.ok(check, "it is told about submitted annotations")
        elif any(hook.is_active for hook in hooks):
            self._section.problem(
                check,
                "its webhook carries no secret, so what it tells of submitted annotations is refused",
                where=f"{self._settings_page}/webhooks",
                hint=command,
            )
        elif hooks:
            self._section.problem(
                check,
                "its webhook is switched off, so it is not told about submitted annotations",
                where=f"{self._settings_page}/webhooks",
                got=f"webhook {hooks[0].id} to {address} is inactive",
                hint=f"switch it on under {self._settings_page}/webhooks",
            )
        elif self._server.webhooks_blocked and self._is_ours(backend):
            self._section.skipped(check, "there is no webhook, since Label Studio refuses events, see webhooks-allowed")
        else:
            self._section.problem(
                check,
                "there is no webhook, so the model is not told about submitted annotations",
                where=f"{self._settings_page}/webhooks",
                got=f"nothing for {address}",
                hint=f"{command}\n(Label Studio takes no host name without a dot but localhost)",
            )

"""Connected models and the webhooks that tell them about events."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from spica.errors import LabelStudioError, LabelStudioRefusedError
from spica.http import same_url, user_and_password
from spica.labelstudio.api.projects import ProjectsApi
from spica.labelstudio.api.records import Backend, Json, Webhook
from spica.labelstudio.tokens import WEBHOOK_HEADER

UNBLOCK_HINT = (
    "since 1.23.1 Label Studio refuses models on local addresses. Restart it with "
    "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS=false, or with both LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false and "
    "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false, and let it listen on 127.0.0.1 only (--internal-host 127.0.0.1); "
    "`spica up` starts one that is set up so"
)
_ACCEPT_S = 120.0
"""Connecting makes Label Studio ask the model four times, each up to 10 s as we start it."""


class BackendsApi(ProjectsApi):
    """Calls about connected models."""

    def backends(self, project: int) -> list[Backend]:
        """The models connected with a project, oldest first; Label Studio asks each for its state."""
        bodies = self.call("GET", "/api/ml/", params={"project": project}, timeout_s=_ACCEPT_S)
        return sorted((Backend.read(body) for body in bodies), key=lambda backend: backend.id)

    def backend(self, backend: int) -> Backend:
        """One connected model; Label Studio asks it for its state."""
        return Backend.read(self.call("GET", f"/api/ml/{backend}", timeout_s=_ACCEPT_S))

    def webhooks(self, project: int) -> list[Webhook]:
        """The webhooks of a project."""
        return [Webhook.read(body) for body in self.call("GET", "/api/webhooks/", params={"project": project})]

    def test_backend(self, backend: int) -> Json:
        """Let Label Studio ask the model about a random task; nothing is stored.

        Returns:
            Label Studio's account of it: the request, the answer and its status.
        """
        answer = self.call("POST", f"/api/ml/{backend}/predict/test", params={"random": "true"}, timeout_s=_ACCEPT_S)
        return answer if isinstance(answer, dict) else {"response": answer}

    def disconnect_backend(self, backend: Backend) -> None:
        """Remove a connected model and its webhook, which Label Studio itself would leave behind."""
        self._delete_webhooks(backend)
        self.call("DELETE", f"/api/ml/{backend.id}")

    def _delete_webhooks(self, backend: Backend) -> None:
        for hook in self.webhooks(backend.project):
            if same_url(hook.url, webhook_url(backend.url)):
                self.call("DELETE", f"/api/webhooks/{hook.id}/")

    def connect_backend(
        self,
        project: int,
        *,
        url: str,
        title: str | None = None,
        is_interactive: bool = True,
        extra_params: Json | None = None,
        basic_auth: tuple[str, str] | None = None,
        description: str = "",
        moved: Backend | None = None,
    ) -> Backend:
        """Connect a running model with a project; connecting it again changes nothing.

        The title becomes the version that the model answers: only with the two equal does Label Studio show scores
        and order tasks by uncertainty.

        Args:
            project: its number.
            url: of the model as Label Studio reaches it.
            title: by which it is shown until its version is known; the version by default.
            is_interactive: whether it is asked while somebody draws.
            extra_params: sent along with every ``/setup``; None keeps what is stored.
            basic_auth: user and password that the model asks for.
            description: kept with a model that was not connected before.
            moved: this one at its new address; what else is stored of it stays.

        Returns:
            The connected model, with ``warnings`` about what could not be done.

        Raises:
            LabelStudioError: Label Studio refuses local addresses, or does not reach the model.
        """
        wanted: Json = {"url": url, "project": project, "is_interactive": is_interactive, "auth_method": "NONE"}
        if title:
            wanted["title"] = title
        if extra_params is not None:
            wanted["extra_params"] = extra_params
        if basic_auth is not None:
            wanted["auth_method"] = "BASIC_AUTH"
            wanted["basic_auth_user"], wanted["basic_auth_pass"] = basic_auth
        warnings: list[str] = []
        if moved is not None:
            self._delete_webhooks(moved)
            backend = self._patch(moved.id, wanted)
        else:
            backend = self._update_or_create(project, wanted, warnings, description)
        version = backend.model_version
        if version and backend.title != version:
            backend = self._patch(backend.id, {**wanted, "title": version})
        if title and version and title != version:
            warnings.append(f"connected as {version!r}, the version that the model answers, instead of {title!r}")
        self._select(project, backend)
        warnings += self.ensure_webhook(project, url)
        if not backend.is_connected:
            warnings.append(f"Label Studio says: {backend.error_message or 'disconnected'}")
        return replace(backend, warnings=tuple(warnings))

    def show_version(self, project: int, version: str, *, basic_auth: str | None = None) -> tuple[str, ...]:
        """Have Label Studio show a version, whatever else is stored: its boxes, its scores and their order.

        Args:
            project: its number.
            version: what a connected model answers; if none is connected, one that is stored.
            basic_auth: ``user:password`` that the model asks for.

        Returns:
            What people should know.
        """
        rows = self.backends(project)
        ours = next((row for row in rows if row.model_version == version), None)
        now = self.project(project).model_version
        if now == version and (ours is None or ours.title == version):
            return ()
        if ours is not None:
            auth = user_and_password(basic_auth)
            found = self.connect_backend(project, url=ours.url, is_interactive=ours.is_interactive, basic_auth=auth)
            return found.warnings
        if rows:
            return (f"Label Studio goes on showing {now or 'what was stored last'}: a connected model answers that",)
        with contextlib.suppress(LabelStudioRefusedError):  # nothing of the version is stored
            self.update_project(project, model_version=version)
        return ()

    def _update_or_create(self, project: int, wanted: Json, warnings: list[str], description: str) -> Backend:
        url = str(wanted["url"])
        same = [backend for backend in self.backends(project) if same_url(backend.url, url)]
        if same:
            if len(same) > 1:
                others = ", ".join(str(backend.id) for backend in same[1:])
                warnings.append(
                    f"this model is connected {len(same)} times; delete {others} under Settings > Model, "
                    "Label Studio asks only the first"
                )
            return self._patch(same[0].id, wanted)
        try:
            body = {**wanted, "description": description} if description else wanted
            return Backend.read(self.call("POST", "/api/ml/", json=body, timeout_s=_ACCEPT_S))
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != 403:
                raise _explained(refusal, url) from refusal
            # With ML_BLOCK_LOCAL_IP=false alone, refusing the webhook ends the request after the row was stored.
            stored = [backend for backend in self.backends(project) if same_url(backend.url, url)]
            if not stored:
                raise _explained(refusal, url) from refusal
            warnings.append(
                "Label Studio answered 403 although it had connected the model, because it refuses webhooks to local "
                "addresses: predictions work, events do not arrive. " + UNBLOCK_HINT
            )
            return self._patch(stored[0].id, wanted)

    def _patch(self, backend: int, fields: Json) -> Backend:
        # Label Studio 1.23 fails with 500 when a change does not name url and project again.
        try:
            body = self.call("PATCH", f"/api/ml/{backend}", json=fields, repeatable=True, timeout_s=_ACCEPT_S)
        except LabelStudioRefusedError as refusal:
            raise _explained(refusal, str(fields["url"])) from refusal
        return Backend.read(body)

    def _select(self, project: int, backend: Backend) -> None:
        """Let the project's Data Manager show this model's scores."""
        now = self.project(project)
        fields: Json = {}
        if not now.show_collab_predictions:
            fields["show_collab_predictions"] = True
        if backend.title and now.model_version != backend.title:
            fields["model_version"] = backend.title
        if fields:
            self.update_project(project, **fields)

    def ensure_webhook(self, project: int, url: str) -> list[str]:
        """Have Label Studio tell the model at ``url`` about a project's events, each with our secret.

        Label Studio makes the webhook with the connected model, but without a secret, and not everywhere.

        Returns:
            What could not be done, with a remedy.
        """
        address = webhook_url(url)
        secret = {WEBHOOK_HEADER: self.webhook_secret} if self.webhook_secret is not None else {}
        hooks = [hook for hook in self.webhooks(project) if hook.is_active and same_url(hook.url, address)]
        try:
            if not hooks:
                body = {"project": project, "url": address, "send_payload": True, "send_for_all_actions": True}
                self.call("POST", "/api/webhooks/", json={**body, "headers": secret})
            for hook in hooks:
                if not secret.items() <= hook.headers.items():
                    body = {"headers": {**hook.headers, **secret}, "actions": hook.actions}  # absent actions are lost
                    self.call("PATCH", f"/api/webhooks/{hook.id}/", json=body)
        except LabelStudioRefusedError as refusal:
            if hooks:
                return [f"the webhook to {address} did not get its secret, so its events are refused ({refusal.got})"]
            remedy = (
                UNBLOCK_HINT
                if refusal.http_status == 403
                else "give the model an address that is an IP or contains a dot"
            )
            return [f"no webhook to {address}, so events do not arrive ({refusal.got}): {remedy}"]
        return []


def webhook_url(url: str) -> str:
    """Where Label Studio sends the events of a model at ``url``."""
    return url.rstrip("/") + "/webhook"


def _explained(refusal: LabelStudioRefusedError, url: str) -> LabelStudioError:
    if refusal.http_status == 403:
        return LabelStudioRefusedError(
            "Label Studio refuses to connect the model",
            403,
            where=url,
            expected="an address that Label Studio may call",
            got=refusal.got,
            hint=UNBLOCK_HINT,
        )
    return LabelStudioRefusedError(
        "Label Studio could not connect the model",
        refusal.http_status,
        where=url,
        got=refusal.got,
        hint="see that the model server runs, that Label Studio's machine reaches it at this address, and that user "
        "and password are right if it asks for them",
    )

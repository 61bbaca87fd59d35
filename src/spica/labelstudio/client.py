"""The connection to a running Label Studio: everything that Spica asks of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import ntpath
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any, Self

import httpx

from spica.errors import AuthenticationError, LabelStudioError, LabelStudioRefusedError, LabelStudioUnreachableError
from spica.http import CERTIFICATE_HINT, certificate_trouble, http_client, same_url, user_and_password
from spica.labelstudio import tasks_query as query
from spica.labelstudio.auth import WEBHOOK_HEADER, LabelStudioAuth, checked_url, redacted, webhook_secret
from spica.labelstudio.records import (
    AnnotatedTask,
    Backend,
    Json,
    LocalStorage,
    Prediction,
    Project,
    TaskRow,
    User,
    View,
    Webhook,
)
from spica.labelstudio.tasks_query import Narrowing, Page
from spica.project import ProjectKey
from spica.retry import repeat_briefly, retry_after_s

MIN_TITLE = 3
MAX_TITLE = 50
"""Label Studio's limits on a project's title (core/settings/base.py, PROJECT_TITLE_MIN_LEN and _MAX_LEN)."""

SHOWN = ("avif", "bmp", "gif", "jfif", "jpeg", "jpg", "png", "webp")
"""Endings of what a browser, and so Label Studio, draws: a TIFF could be predicted, but nobody would see it."""
IMAGE_REGEX = rf"(?i)[^.].*\.({'|'.join(SHOWN)})$"
"""File names that become tasks. Names that begin with a dot are left out: macOS writes such shadows of images
(``._IMG_1.jpg``) that hold none."""
_REGEX_BEFORE_AVIF = r"(?i)[^.].*\.(jpe?g|jfif|png|gif|bmp|webp)$"

UNBLOCK_HINT = (
    "since 1.23.1 Label Studio refuses models on local addresses. Restart it with "
    "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS=false, or with both LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false and "
    "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false, and let it listen on 127.0.0.1 only (--internal-host 127.0.0.1); "
    "`spica up` starts one that is set up so"
)

_CONNECT_S = 120.0
"""Connecting makes Label Studio ask the model four times, each up to 10 s as we start it."""
_WRITE_S = 600.0
"""Label Studio checks and stores a whole bulk import inside the request."""
_SYNC_S = 3600.0
"""Label Studio scans the folder inside the request."""
_MAX_MESSAGE = 600
_MARKUP = re.compile(r"<[^>]{0,300}>")


class LabelStudioClient:
    """Everything that Spica asks of a Label Studio. Thread-safe; used in a ``with`` block, or closed by :meth:`close`.

    No call makes Label Studio ask a model for predictions, unless the project has the deprecated
    ``evaluate_predictions_automatically`` switched on.

    Args:
        url: of Label Studio, with or without a sub-path and a trailing slash.
        token: legacy or personal access token; None sends none.
        auth: used instead of the token's own, for other ways of logging in.
        timeout_s: seconds to wait for each step of a request, more than 0.
        transport: replaces the network, for tests.

    Raises:
        UsageError: from the constructor, if ``url`` is not a web address.
        AuthenticationError: from any call, if Label Studio does not take the token.
        LabelStudioUnreachableError: from any call, after a few tries where repeating is safe.
        LabelStudioRefusedError: from any call that Label Studio answers with another error status.
        LabelStudioError: from any call, if the answer is not Label Studio's. No error has a token in it.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        auth: httpx.Auth | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = checked_url(url)
        self._secrets = (token,) if token else ()
        self.webhook_secret = webhook_secret(token) if token else None
        self._http = http_client(
            self.url,
            base_url=self.url,
            auth=LabelStudioAuth(self.url, token) if auth is None and token is not None else auth,
            timeout=timeout_s,
            transport=transport,
            headers={"User-Agent": "spica", "Accept": "application/json"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; closing twice is fine."""
        self._http.close()

    def call(
        self, method: str, path: str, *, repeatable: bool | None = None, timeout_s: float | None = None, **body: Any
    ) -> Any:
        """One request and its parsed answer; None when the answer has no body. Errors: see the class.

        ``path`` is below Label Studio's URL; ``repeatable`` says whether sending it twice does no harm (by default only
        GET is repeated); ``body`` is ``params``, ``json`` or ``files``, as httpx takes them.
        """
        options = body if timeout_s is None else {**body, "timeout": timeout_s}
        where = f"{method} {self.url}{path}"

        def send() -> httpx.Response:
            return self._http.request(method, path, **options)

        try:
            response = repeat_briefly(send) if repeatable or (repeatable is None and method == "GET") else send()
        except httpx.TransportError as error:
            raise self._unreachable(where, error) from error
        if not response.is_success:
            raise self._refusal(response, where)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioError(
                "the answer is not Label Studio's",
                where=where,
                expected="JSON",
                got=self._clean(response.headers.get("content-type", "no content type")),
                hint="check the address: it must be Label Studio's own, with its sub-path if it has one",
            ) from error

    def _unreachable(self, where: str, error: httpx.TransportError) -> LabelStudioUnreachableError:
        if isinstance(error, httpx.TimeoutException):
            return LabelStudioUnreachableError(
                "Label Studio did not answer in time",
                where=where,
                got=type(error).__name__,
                hint="it may be busy; try again, and look into its log if that does not help",
            )
        if (trouble := certificate_trouble(error)) is not None:
            return LabelStudioUnreachableError(
                "the certificate of Label Studio is not trusted", where=where, got=trouble, hint=CERTIFICATE_HINT
            )
        return LabelStudioUnreachableError(
            "Label Studio can't be reached",
            where=where,
            got=self._clean(str(error)) or type(error).__name__,
            hint="start Label Studio, or give its address with --url or LABEL_STUDIO_URL",
        )

    def _refusal(self, response: httpx.Response, where: str) -> LabelStudioError | AuthenticationError:
        message = self._clean(message_of(response))
        if response.status_code == 401:  # LabelStudioAuth itself explains a token that is refused
            return AuthenticationError(
                "Label Studio wants to know who asks",
                where=where,
                got=message,
                hint="copy the access token from Label Studio's Account & Settings page and give it with --token or "
                "LABEL_STUDIO_API_KEY",
            )
        if response.is_redirect:
            return LabelStudioError(
                "Label Studio sends to another address",
                where=where,
                got=self._clean(f"{response.status_code} to {response.headers.get('location', 'nowhere')}"),
                hint="give that address (up to the part before /api) with --url or LABEL_STUDIO_URL",
            )
        return LabelStudioRefusedError(
            "Label Studio refused a request",
            response.status_code,
            where=where,
            got=message,
            retry_after_s=retry_after_s(response),
        )

    def _clean(self, text: str) -> str:
        text = redacted(text, *self._secrets)
        return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " …"

    # Account, version, projects

    def whoami(self) -> User:
        """The account that the token belongs to: the cheapest proof that it works."""
        return User.read(self.call("GET", "/api/current-user/whoami"))

    def version(self) -> str:
        """Label Studio's release, such as ``1.23.2``; "" when it does not say."""
        body = self.call("GET", "/api/version")
        return str(body.get("release") or "") if isinstance(body, dict) else ""

    def project(self, project: int) -> Project:
        """One project by its number."""
        try:
            return Project.read(self.call("GET", f"/api/projects/{project}/"))
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != 404:
                raise
            raise LabelStudioRefusedError(
                f"there is no project {project}",
                404,
                where=self.url,
                got=refusal.got,
                hint="the number is in the address of the project's page: /projects/<number>/data",
            ) from refusal

    def known_project(self, key: ProjectKey) -> Project:
        """One project, if it is still the one that is meant; LabelStudioRefusedError (404) if it is another one."""
        project = self.project(key.number)
        if key.created not in (0, project.key.created):
            raise LabelStudioRefusedError(
                f"project {key} is another one here",
                404,
                where=self.url,
                expected=f"the project created {key.date}",
                got=f"one created {project.key.date}: Label Studio was set up anew, or is another one",
                hint="start the model server with the address and token of the Label Studio that is meant",
            )
        return project

    def projects(self, *, page_size: int = 100, **params: str) -> Iterator[Project]:
        """All projects that this account sees, newest first, a page at a time."""
        page, more = 1, True
        while more:
            body = self.call("GET", "/api/projects/", params={"page": page, "page_size": page_size, **params})
            yield from map(Project.read, body["results"])
            page, more = page + 1, bool(body.get("next"))

    def find_project(self, title: str) -> Project | None:
        """The oldest project with exactly this title, or None."""
        rows = self.projects(page_size=1000, include="id,title")
        oldest = min((row.id for row in rows if row.title == title), default=None)
        return self.project(oldest) if oldest is not None else None

    def create_project(self, title: str, label_config: str, **fields: Any) -> Project:
        """A new project whose annotators see stored predictions; ``fields`` by Label Studio's names for them."""
        body = {"title": checked_title(title), "label_config": label_config, "show_collab_predictions": True, **fields}
        return Project.read(self.call("POST", "/api/projects/", json=body))

    def update_project(self, project: int, **fields: Any) -> Project:
        """Change fields of a project, by Label Studio's names for them."""
        return Project.read(self.call("PATCH", f"/api/projects/{project}/", json=fields, repeatable=True))

    # Tasks

    def _task_body(self, project: int, filters: Narrowing, *, after: int, page_size: int, include: str) -> Json:
        """``tasks`` above ``after`` that meet all filters, each once, and the ``total`` of them."""
        params = query.page_params(project, filters, after=after, page_size=page_size, include=include)
        for _ in range(2):  # tasks may be deleted between being counted and being read
            body: Json = self.call("GET", "/api/tasks/", params=params)
            body["is_last"] = len(body["tasks"]) >= int(body["total"])  # Label Studio may cap the page's size
            unique = {int(task["id"]): task for task in body["tasks"]}  # a join on its side may repeat a row
            body["tasks"] = [unique[number] for number in sorted(unique) if number > after]
            if body["tasks"] or body["is_last"]:
                return body
        raise LabelStudioError(
            "Label Studio counts tasks that it does not give",
            where=f"project {project}, behind task {after}",
            expected=f"{body['total']} more tasks",
            got="none",
            hint="try again; look into Label Studio's log if that does not help",
        )

    def _task_bodies(self, project: int, filters: Narrowing, *, page_size: int, include: str) -> Iterator[Json]:
        after, is_last = 0, False
        while not is_last:
            body = self._task_body(project, filters, after=after, page_size=page_size, include=include)
            for task in body["tasks"]:
                after = int(task["id"])
                yield task
            is_last = body["is_last"]

    def _page(self, project: int, filters: Narrowing, *, after: int, page_size: int, include: str) -> tuple[Page, Json]:
        body = self._task_body(project, filters, after=after, page_size=page_size, include=include)
        rows = tuple(map(TaskRow.read, body["tasks"]))
        return Page(rows, rows[-1].id if rows else after, body["is_last"]), body

    def count_tasks(self, project: int, filters: Narrowing = (), *, without_version: str | None = None) -> int:
        """Number of the tasks that meet all filters, and have no prediction of a version that contains this text."""
        if without_version is not None:
            filters = (*filters, query.version_filter("not_contains", without_version))
        return int(self._task_body(project, filters, after=0, page_size=1, include="id")["total"])

    def task_count(self, project: int) -> int:
        """Number of a project's tasks."""
        return self.count_tasks(project)

    def iter_tasks(self, project: int, *, page_size: int = 500) -> Iterator[TaskRow]:
        """All tasks of a project by ascending id; one page is held in memory."""
        return map(TaskRow.read, self._task_bodies(project, (), page_size=page_size, include=query.ROW_FIELDS))

    def existing_tasks(self, project: int, tasks: Iterable[int], filters: Narrowing = ()) -> set[int]:
        """Those of ``tasks`` that the project has, and that meet all filters."""
        return {
            int(task["id"])
            for chunk in query.chunks(tasks)
            for task in self._task_bodies(
                project, (query.tasks_filter(chunk), *filters), page_size=len(chunk) * 4, include="id"
            )
        }

    def view(self, view: int) -> View:
        """One tab of the Data Manager."""
        return View.read(self.call("GET", f"/api/dm/views/{view}/"))

    def views(self, project: int) -> list[View]:
        """The tabs of a project's Data Manager."""
        return [View.read(body) for body in self.call("GET", "/api/dm/views/", params={"project": project})]

    # What a job has to do: tasks without a prediction of its version

    def worklist_page(self, project: int, version: str, filters: Narrowing = (), *, after: int, page_size: int) -> Page:
        """Tasks with an id above ``after`` without a prediction of any version that contains ``version``.

        Projects with versions that contain one another: see :meth:`has_confusable_versions`.
        """
        narrowed = (*filters, query.version_filter("not_contains", version))
        return self._page(project, narrowed, after=after, page_size=page_size, include=query.ROW_FIELDS)[0]

    def confusable_page(self, project: int, version: str, filters: Narrowing = (), *, after: int) -> Page:
        """The same for tasks that have a prediction of a version that contains ``version``, but none of itself."""
        narrowed = (*filters, query.version_filter("contains", version))
        page, body = self._page(project, narrowed, after=after, page_size=50, include=query.ROW_AND_PREDICTIONS)
        having = {
            int(task["id"])
            for task in body["tasks"]
            if any(stored.get("model_version") == version for stored in task["predictions"])
        }
        return Page(tuple(row for row in page.rows if row.id not in having), page.last, page.is_last)

    def has_confusable_versions(self, project: int, version: str) -> bool:
        """Whether another version's name contains this one, so that Label Studio's filter can't tell them apart."""
        return any(query.confusable(version, other) for other in self.prediction_versions(project))

    def having_prediction(
        self, project: int, version: str, tasks: Iterable[int], *, confusable_versions: bool | None = None
    ) -> set[int]:
        """Those of ``tasks`` that have a prediction of exactly this version.

        ``confusable_versions`` is what :meth:`has_confusable_versions` says; it is asked if None.
        """
        if confusable_versions is None:
            confusable_versions = self.has_confusable_versions(project, version)
        having = self.existing_tasks(project, tasks, (query.version_filter("contains", version),))
        if not confusable_versions:
            return having
        return {task for task in having if any(one.model_version == version for one in self.predictions_of_task(task))}

    # Predictions

    def _version_rows(self, project: int) -> list[Json]:
        path = f"/api/projects/{project}/model-versions/"
        rows: list[Json] = self.call("GET", path, params={"extended": "true"})["static"]
        return rows

    def prediction_versions(self, project: int) -> dict[str, int]:
        """Stored predictions per version, latest first; predictions without a version count under ""."""
        counts: Counter[str] = Counter()
        for row in self._version_rows(project):
            counts[row.get("model_version") or ""] += int(row["count"])
        return {version: count for version, count in counts.items() if count}

    def version_times(self, project: int) -> dict[str, datetime]:
        """When the latest prediction of each version was stored, latest first."""
        rows = self._version_rows(project)
        return {row.get("model_version") or "": datetime.fromisoformat(row["latest"]) for row in rows}

    def iter_predictions(
        self, project: int, version: str | None = None, *, page_size: int = 50
    ) -> Iterator[Prediction]:
        """Stored predictions in full, by ascending task and id; of one version, or of all when it is None."""
        filters = (query.version_filter("contains", version),) if version else ()
        for stored in self.predictions_by_task(project, filters, page_size=page_size):
            yield from (one for one in stored if version is None or one.model_version == version)

    def predictions_by_task(
        self, project: int, filters: Narrowing = (), *, page_size: int = 50
    ) -> Iterator[list[Prediction]]:
        """The stored predictions of each task that meets the filters, by id, with the annotations made from them."""
        for task in self._task_bodies(project, filters, page_size=page_size, include=query.PREDICTIONS):
            made: dict[int, list[int]] = {}
            for annotation in task["annotations"]:
                made.setdefault(annotation["parent_prediction"], []).append(annotation["id"])
            stored = (Prediction.read({**body, "annotations": made.get(body["id"])}) for body in task["predictions"])
            yield sorted(stored, key=lambda prediction: prediction.id)

    def predictions_of_task(self, task: int) -> list[Prediction]:
        """All stored predictions of one task, by ascending id."""
        bodies = self.call("GET", "/api/predictions/", params={"task": task})
        return sorted(map(Prediction.read, bodies), key=lambda prediction: prediction.id)

    def create_predictions(self, project: int, items: Sequence[Mapping[str, Any]]) -> int:
        """Store predictions, each ``{"task", "result", "score", "model_version"}``, in one request; returns how many.

        If a task does not exist, that is refused and nothing is stored. Label Studio silently leaves out what does not
        fit the labelling configuration: compare with ``len(items)`` and ask :meth:`missing_predictions` which. Storing
        the same twice stores it twice.
        """
        if not items:
            return 0
        path = f"/api/projects/{project}/import/predictions"
        body = self.call("POST", path, json=[dict(item) for item in items], timeout_s=_WRITE_S)
        return int(body["created"])

    def create_prediction(self, item: Mapping[str, Any]) -> Prediction:
        """Store one prediction, which Label Studio does not check against the labelling configuration."""
        return Prediction.read(self.call("POST", "/api/predictions/", json=dict(item)))

    def missing_predictions(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of ``items`` that are not stored, compared by content; an item sent twice must be stored twice."""
        stored: dict[int, Counter[str]] = {}
        missing = []
        for item in items:
            task, mark = int(item["task"]), fingerprint(item)
            if task not in stored:
                stored[task] = Counter(fingerprint(one.model_dump()) for one in self.predictions_of_task(task))
            if stored[task][mark] > 0:
                stored[task][mark] -= 1
            else:
                missing.append(item)
        return missing

    def delete_predictions(self, project: int, version: str) -> int:
        """Delete the stored predictions of one version; returns how many.

        The connected model stays selected as the project's version, and the tasks' counters are right afterwards;
        Label Studio alone would see to neither.
        """
        selected = self.project(project).model_version
        path = f"/api/projects/{project}/model-versions/"
        answer = self.call("DELETE", path, json={"model_version": version}, timeout_s=_WRITE_S)
        if selected and self.project(project).model_version != selected:
            try:
                self.update_project(project, model_version=selected)
            except LabelStudioRefusedError as refusal:
                if refusal.http_status != 400:  # 400: it named the predictions that are gone, nothing else has the name
                    raise
        deleted = int(answer["deleted_predictions"])
        if deleted:
            self.recount_predictions(project)
        return deleted

    def delete_predictions_by_id(self, predictions: Iterable[int]) -> int:
        """Delete single predictions; returns how many there still were. See :meth:`recount_predictions`."""
        deleted = 0
        for prediction in predictions:
            try:
                self.call("DELETE", f"/api/predictions/{prediction}/")
                deleted += 1
            except LabelStudioRefusedError as refusal:
                if refusal.http_status != 404:
                    raise
        return deleted

    def recount_predictions(self, project: int) -> None:
        """Make Label Studio count the tasks' predictions anew, which it omits when they are deleted."""
        # An import of nothing is the one call of 1.23 that does it.
        self.call("POST", f"/api/projects/{project}/import/predictions", json=[], timeout_s=_WRITE_S)

    # Annotations

    def annotated_count(self, project: int) -> int:
        """Number of the tasks with a submitted annotation."""
        return self.count_tasks(project, (query.ANNOTATED,))

    def annotated_tasks(self, project: int, *, page_size: int = 100) -> Iterator[AnnotatedTask]:
        """All tasks with a submitted annotation, by ascending id, with their data and regions.

        One page is held in memory. Label Studio 1.23 needs 4 to 12 ms a task of 20 boxes for it.
        """
        bodies = self._task_bodies(project, (query.ANNOTATED,), page_size=page_size, include=query.ANNOTATIONS)
        return map(AnnotatedTask.read, bodies)

    def annotations_since(self, project: int, *, newest: int, since: datetime) -> Iterator[AnnotatedTask]:
        """The annotated tasks that may have something newer, each once, without data and regions.

        Those with an annotation of a higher number than ``newest``, however it came there, and those changed after
        ``since`` (with a time zone): Label Studio sets a task's time when an annotation is submitted, changed or
        deleted one by one, not when many are made by an action.
        """
        yielded: set[int] = set()
        for newer in (query.annotations_after(newest), query.changed_after(since)):
            filters = (query.ANNOTATED, newer)
            for body in self._task_bodies(project, filters, page_size=200, include=query.ANNOTATION_TIMES):
                if int(body["id"]) not in yielded:
                    yielded.add(int(body["id"]))
                    yield AnnotatedTask.read(body)

    # Connected models and their webhooks

    def backends(self, project: int) -> list[Backend]:
        """The models connected with a project, oldest first; Label Studio asks each for its state."""
        bodies = self.call("GET", "/api/ml/", params={"project": project}, timeout_s=_CONNECT_S)
        return sorted(map(Backend.read, bodies), key=lambda backend: backend.id)

    def webhooks(self, project: int) -> list[Webhook]:
        """The webhooks of a project."""
        return [Webhook.read(body) for body in self.call("GET", "/api/webhooks/", params={"project": project})]

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
            is_interactive: whether it is asked while somebody draws.
            extra_params: sent along with every ``/setup``; None keeps what is stored.
            basic_auth: user and password that the model asks for.
            description: kept with a model that was not connected before.
            moved: this one at its new address; what else is stored of it stays.
        """
        fields: Json = {"url": url, "project": project, "is_interactive": is_interactive, "auth_method": "NONE"}
        if extra_params is not None:
            fields["extra_params"] = extra_params
        if basic_auth is not None:
            fields["auth_method"] = "BASIC_AUTH"
            fields["basic_auth_user"], fields["basic_auth_pass"] = basic_auth
        warnings: list[str] = []
        if moved is not None:
            self._delete_webhooks(moved)
            backend = self._patch_backend(moved.id, fields)
        else:
            backend = self._update_or_create(fields, warnings, description)
        version = backend.model_version
        if version and backend.title != version:
            backend = self._patch_backend(backend.id, {**fields, "title": version})
        self._select(project, backend)
        warnings += self.ensure_webhook(project, url)
        if not backend.is_connected:
            warnings.append(f"Label Studio says: {backend.error_message or 'disconnected'}")
        return backend.model_copy(update={"warnings": tuple(warnings)})

    def show_version(self, project: int, version: str, *, basic_auth: str | None = None) -> tuple[str, ...]:
        """Have Label Studio show a version, whatever else is stored: its boxes, its scores and their order.

        It is what a connected model (which may ask for ``user:password``) answers; if none is connected, one that is
        stored. Returns what could not be done.
        """
        rows = self.backends(project)
        ours = next((row for row in rows if row.model_version == version), None)
        now = self.project(project).model_version
        if now == version and (ours is None or ours.title == version):
            return ()
        if ours is not None:
            auth, interactive = user_and_password(basic_auth), ours.is_interactive
            return self.connect_backend(project, url=ours.url, is_interactive=interactive, basic_auth=auth).warnings
        if rows:
            return (f"Label Studio goes on showing {now or 'what was stored last'}: a connected model answers that",)
        with contextlib.suppress(LabelStudioRefusedError):  # nothing of the version is stored
            self.update_project(project, model_version=version)
        return ()

    def _update_or_create(self, fields: Json, warnings: list[str], description: str) -> Backend:
        url, project = str(fields["url"]), int(fields["project"])
        same = [backend for backend in self.backends(project) if same_url(backend.url, url)]
        if same:
            if len(same) > 1:
                others = ", ".join(str(backend.id) for backend in same[1:])
                warnings.append(
                    f"this model is connected {len(same)} times; delete {others} under Settings > Model, "
                    "Label Studio asks only the first"
                )
            return self._patch_backend(same[0].id, fields)
        try:
            body = {**fields, "description": description} if description else fields
            return Backend.read(self.call("POST", "/api/ml/", json=body, timeout_s=_CONNECT_S))
        except LabelStudioRefusedError as refusal:
            # With ML_BLOCK_LOCAL_IP=false alone, refusing the webhook ends the request after the row was stored.
            rows = self.backends(project) if refusal.http_status == 403 else []
            stored = next((backend for backend in rows if same_url(backend.url, url)), None)
            if stored is None:
                raise _explained(refusal, url) from refusal
            warnings.append(
                "Label Studio answered 403 although it had connected the model, because it refuses webhooks to local "
                "addresses: predictions work, events do not arrive. " + UNBLOCK_HINT
            )
            return self._patch_backend(stored.id, fields)

    def _patch_backend(self, backend: int, fields: Json) -> Backend:
        # Label Studio 1.23 fails with 500 when a change does not name url and project again.
        try:
            body = self.call("PATCH", f"/api/ml/{backend}", json=fields, repeatable=True, timeout_s=_CONNECT_S)
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

        Label Studio makes the webhook with the connected model, but without a secret, and not everywhere. Returns what
        could not be done, with a remedy.
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
            remedy = "give the model an address that is an IP or contains a dot"
            remedy = UNBLOCK_HINT if refusal.http_status == 403 else remedy
            return [f"no webhook to {address}, so events do not arrive ({refusal.got}): {remedy}"]
        return []

    # Folders on Label Studio's machine whose images are tasks

    def local_storages(self, project: int) -> list[LocalStorage]:
        """The folders that a project takes its tasks from."""
        bodies = self.call("GET", "/api/storages/localfiles/", params={"project": project})
        return [LocalStorage.read(body) for body in bodies]

    def ensure_local_storage(self, project: int, path: str | PurePath) -> LocalStorage:
        """The project's storage of a folder and all below it: the one that covers it already, or a new one.

        Args:
            project: its number.
            path: absolute, on Label Studio's machine, strictly below its document root.

        Raises:
            LabelStudioError: Label Studio does not serve that folder, or a storage of one of its sub-folders exists,
                so that tasks would be doubled.
        """
        folder = str(path)
        fields: Json = {
            "project": project,
            "title": "images",
            "path": folder,
            "use_blob_urls": True,
            "regex_filter": IMAGE_REGEX,
            "recursive_scan": True,
        }
        for storage in self.local_storages(project):
            if storage.as_tasks and storage.recursive and is_within(folder, storage.path):
                if storage.regex_filter != _REGEX_BEFORE_AVIF:
                    return storage
                return self._put_storage({**fields, "title": storage.title, "path": storage.path}, storage)
            if is_within(folder, storage.path) and is_within(storage.path, folder):
                return self._put_storage(fields, storage)
            if is_within(storage.path, folder):
                raise LabelStudioError(
                    "a part of this folder is a storage of the project already, its images would be doubled",
                    where=folder,
                    got=storage.path,
                    hint="choose another project, or delete that storage under Settings > Cloud Storage",
                )
        return self._put_storage(fields)

    def _put_storage(self, fields: Json, before: LocalStorage | None = None) -> LocalStorage:
        path, folder = "/api/storages/localfiles/", fields["path"]
        try:
            if before is None:
                return LocalStorage.read(self.call("POST", path, json=fields))
            return LocalStorage.read(self.call("PATCH", f"{path}{before.id}", json=fields))
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != 400:
                raise
            raise LabelStudioRefusedError(
                "Label Studio does not serve this folder",
                400,
                where=folder,
                expected="a folder strictly below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which can't be it itself",
                got=refusal.got,
                hint="restart Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
                f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={_pure(folder).parent}; `spica up` does so itself",
            ) from refusal

    def sync_storage(self, storage: int) -> LocalStorage:
        """Make tasks of a folder's new images, ``added`` of them; those that are tasks already stay as they are.

        Raises:
            LabelStudioError: Label Studio could not read the folder.
        """
        path = f"/api/storages/localfiles/{storage}/sync"
        synced = LocalStorage.read(self.call("POST", path, repeatable=True, timeout_s=_SYNC_S))
        if synced.status == "failed":
            raise LabelStudioError(
                "Label Studio could not read the folder",
                where=synced.path,
                got=self._clean(synced.failure) or "failed",
                hint="see that the folder exists on Label Studio's machine and may be read by its process",
            )
        return synced


def message_of(response: httpx.Response) -> str:
    """Label Studio's own words about a failed request, on one line, without mark-up."""
    try:
        body = response.json()
    except ValueError:
        kind = response.headers.get("content-type", "")
        return f"{response.status_code}, " + ("an HTML page" if "html" in kind else response.text.strip()[:200])
    words = [str(response.status_code)]
    if isinstance(body, dict):
        words += [_flat(body[name]) for name in ("detail", "validation_errors") if body.get(name)]
    if len(words) == 1:
        words.append(_flat(body))
    return _MARKUP.sub("", ", ".join(words)).replace("\n", " ")


def _flat(errors: Any) -> str:
    if isinstance(errors, dict):
        return "; ".join(f"{key}: {_flat(value)}" for key, value in errors.items())
    if isinstance(errors, list):
        return ", ".join(_flat(item) for item in errors[:5])
    return str(errors)


def checked_title(title: str) -> str:
    """The title itself; LabelStudioError if it is shorter than 3 or longer than 50 characters."""
    if not MIN_TITLE <= len(title.strip()) <= MAX_TITLE:
        raise LabelStudioError(
            "a project's title has the wrong length",
            where=repr(title),
            expected=f"{MIN_TITLE} to {MAX_TITLE} characters",
            got=f"{len(title.strip())}",
            hint="give another title with --project",
        )
    return title


def fingerprint(item: Mapping[str, Any]) -> str:
    """Equal for two predictions with the same task, version, score and regions."""
    score = item.get("score")
    content = [
        int(item["task"]),
        item.get("model_version") or "",
        None if score is None else float(score),
        item.get("result") or [],
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


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


def _pure(path: str) -> PurePath:
    """A path of Label Studio's machine, which may run another system than this one."""
    if "\\" in path or path[1:2] == ":":
        return PureWindowsPath(ntpath.normpath(path))
    return PurePosixPath(posixpath.normpath(path))


def is_within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it, as the system of Label Studio's machine compares them."""
    inner, outer = _pure(path), _pure(folder)
    return bool(folder) and type(inner) is type(outer) and inner.is_relative_to(outer)

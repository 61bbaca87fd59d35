"""What is read from Label Studio, as far as Spica uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from spica.errors import LabelStudioError
from spica.project import ProjectKey

Json = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class User:
    """The account behind a token."""

    id: int
    email: str

    @classmethod
    def read(cls, body: Any) -> User:
        """From ``/api/current-user/whoami``."""
        return cls(id=_get(body, "id", int), email=_get(body, "email", str))


@dataclass(frozen=True, slots=True)
class Project:
    """A project.

    Attributes:
        key: its number and when it was created.
        model_version: what its Data Manager shows scores of: the title of a connected model, a stored version, or
            "" when nothing is chosen.
        task_count: number of its tasks.
        evaluates_on_listing: the deprecated switch with which merely listing tasks asks the model for predictions.
    """

    id: int
    key: ProjectKey
    title: str
    label_config: str
    model_version: str
    show_collab_predictions: bool
    task_count: int
    evaluates_on_listing: bool

    @classmethod
    def read(cls, body: Any) -> Project:
        """From ``/api/projects/<id>/``."""
        return cls(
            id=_get(body, "id", int),
            key=ProjectKey.read(body) or ProjectKey(_get(body, "id", int)),
            title=_get(body, "title", str),
            label_config=body.get("label_config") or "",
            model_version=body.get("model_version") or "",
            show_collab_predictions=bool(body.get("show_collab_predictions")),
            task_count=int(body.get("task_number") or 0),
            evaluates_on_listing=bool(body.get("evaluate_predictions_automatically")),
        )


@dataclass(frozen=True, slots=True)
class Backend:
    """A model connected with a project.

    Attributes:
        state: ``CO`` connected, ``DI`` disconnected, ``ER`` error, ``TR`` training, ``PR`` predicting.
        model_version: what its ``/setup`` answered last; "" when it never did.
        error_message: of the last failure, "" without one.
        description: a text that Label Studio keeps with it.
        warnings: what connecting it could not do, each with a remedy.
    """

    id: int
    project: int
    url: str
    title: str
    state: str
    model_version: str
    error_message: str
    is_interactive: bool
    description: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def is_connected(self) -> bool:
        """Whether Label Studio reached it at the last look."""
        return self.state in {"CO", "TR", "PR"}

    @classmethod
    def read(cls, body: Any) -> Backend:
        """From ``/api/ml/<id>``."""
        return cls(
            id=_get(body, "id", int),
            project=_get(body, "project", int),
            url=_get(body, "url", str),
            title=body.get("title") or "",
            state=body.get("state") or "",
            model_version=body.get("model_version") or "",
            error_message=body.get("error_message") or "",
            is_interactive=bool(body.get("is_interactive")),
            description=body.get("description") or "",
        )


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that Label Studio tells about events."""

    id: int
    url: str
    is_active: bool
    sends_all_actions: bool
    actions: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, body: Any) -> Webhook:
        """From ``/api/webhooks/``."""
        return cls(
            id=_get(body, "id", int),
            url=_get(body, "url", str),
            is_active=bool(body.get("is_active")),
            sends_all_actions=bool(body.get("send_for_all_actions")),
            actions=tuple(body.get("actions") or ()),
            headers=dict(body.get("headers") or {}),
        )


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A folder on Label Studio's machine whose files are a project's tasks.

    Attributes:
        path: absolute, as Label Studio keeps it.
        status: of its last sync: ``initialized``, ``completed``, ``failed``, …
        added: tasks that the last sync added; 0 before the first.
    """

    id: int
    path: str
    title: str
    regex_filter: str
    recursive: bool
    as_tasks: bool
    status: str
    added: int
    failure: str = ""

    @classmethod
    def read(cls, body: Any) -> LocalStorage:
        """From ``/api/storages/localfiles/``."""
        return cls(
            id=_get(body, "id", int),
            path=body.get("path") or "",
            title=body.get("title") or "",
            regex_filter=body.get("regex_filter") or "",
            recursive=bool(body.get("recursive_scan")),
            as_tasks=bool(body.get("use_blob_urls")),
            status=body.get("status") or "",
            added=int(body.get("last_sync_count") or 0),
            failure=(body.get("traceback") or "").strip().rsplit("\n", 1)[-1],
        )


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task without its annotations and predictions; ``data`` is as stored, addresses unresolved."""

    id: int
    data: Json
    total_annotations: int
    total_predictions: int

    @classmethod
    def read(cls, body: Any) -> TaskRow:
        """From one item of ``/api/tasks``."""
        return cls(
            id=_get(body, "id", int),
            data=body.get("data") or {},
            total_annotations=int(body.get("total_annotations") or 0),
            total_predictions=int(body.get("total_predictions") or 0),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is stored of one prediction.

    Attributes:
        model_version: "" for none.
        score: of the whole prediction, in [0, 1], or None.
        result: its regions as Label Studio stores them.
        created_at: ISO 8601, as Label Studio wrote it.
        annotations: that were made from it, where they were asked for.
    """

    id: int
    task: int
    project: int
    model_version: str
    score: float | None
    result: list[Json] = field(default_factory=list)
    created_at: str = ""
    annotations: tuple[int, ...] = ()

    @classmethod
    def read(cls, body: Any) -> Prediction:
        """From ``/api/predictions/`` or a task's ``predictions``."""
        return cls(
            id=_get(body, "id", int),
            task=_get(body, "task", int),
            project=_get(body, "project", int),
            model_version=body.get("model_version") or "",
            score=body.get("score"),
            result=body.get("result") or [],
            created_at=body.get("created_at") or "",
            annotations=tuple(body.get("annotations") or ()),
        )


def _get(body: Any, key: str, kind: type[_T]) -> _T:
    value = body.get(key) if isinstance(body, Mapping) else None
    if not isinstance(value, kind):
        raise LabelStudioError(
            "Label Studio answered something unexpected",
            where=key,
            expected=kind.__name__,
            got=type(value).__name__,
            hint="Spica is made for Label Studio 1.23; check the version with /api/version",
        )
    return value

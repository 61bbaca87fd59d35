"""What is read from Label Studio, as far as Spica uses it. What it sends as null counts as absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spica.errors import LabelStudioError
from spica.project import ProjectKey

Json = dict[str, Any]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, Mapping) else body

    @classmethod
    def read(cls, body: Any) -> Self:
        """From Label Studio's answer.

        Raises:
            LabelStudioError: something needed is missing, or of another kind.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise LabelStudioError(
                "Label Studio answered something unexpected",
                where=".".join(str(part) for part in first["loc"]) or None,
                expected=first["msg"],
                got=type(first["input"]).__name__,
                hint="Spica is made for Label Studio 1.23; check the version with /api/version",
            ) from None


class User(_Record):
    """The account behind a token."""

    id: int
    email: str


class Project(_Record):
    """A project.

    Attributes:
        model_version: what its Data Manager shows scores of: the title of a connected model, a stored version, or
            "" when nothing is chosen.
        task_count: number of its tasks.
        evaluates_on_listing: the deprecated switch with which merely listing tasks asks the model for predictions.
        train_every: N of the switch *Start model training on annotation submission*; 0 for off.
    """

    id: int
    title: str
    created_at: str = ""
    label_config: str = ""
    model_version: str = ""
    show_collab_predictions: bool = False
    task_count: int = Field(0, validation_alias="task_number")
    evaluates_on_listing: bool = Field(False, validation_alias="evaluate_predictions_automatically")
    train_every: int = Field(0, validation_alias="min_annotations_to_start_training")

    @property
    def key(self) -> ProjectKey:
        """Its number and when it was created."""
        return ProjectKey.read({"id": self.id, "created_at": self.created_at}) or ProjectKey(self.id)


class Backend(_Record):
    """A model connected with a project.

    Attributes:
        state: ``CO`` connected, ``DI`` disconnected, ``ER`` error, ``TR`` training, ``PR`` predicting.
        model_version: what its ``/setup`` answered last; "" when it never did.
        error_message: of the last failure, "" without one.
        description: a text that Label Studio keeps with it.
        extra_params: what stands in the model's form.
        basic_auth_user: with whose password Label Studio asks it; "" without.
        warnings: what connecting it could not do, each with a remedy.
    """

    id: int
    project: int
    url: str
    title: str = ""
    state: str = ""
    model_version: str = ""
    error_message: str = ""
    is_interactive: bool = False
    description: str = ""
    extra_params: Any = None
    basic_auth_user: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def is_connected(self) -> bool:
        """Whether Label Studio reached it when it asked last."""
        return self.state in {"CO", "TR", "PR"}


class Webhook(_Record):
    """An address that Label Studio tells about events."""

    id: int
    url: str
    is_active: bool = False
    sends_all_actions: bool = Field(False, validation_alias="send_for_all_actions")
    actions: tuple[str, ...] = ()
    headers: dict[str, str] = Field(default_factory=dict, repr=False)


class LocalStorage(_Record):
    """A folder on Label Studio's machine whose files are a project's tasks.

    Attributes:
        path: absolute, as Label Studio keeps it.
        status: of its last sync: ``initialized``, ``completed``, ``failed``, …
        added: tasks that the last sync added; 0 before the first.
    """

    id: int
    path: str = ""
    title: str = ""
    regex_filter: str = ""
    recursive: bool = Field(False, validation_alias="recursive_scan")
    as_tasks: bool = Field(False, validation_alias="use_blob_urls")
    status: str = ""
    added: int = Field(0, validation_alias="last_sync_count")
    traceback: str = Field("", repr=False)

    @property
    def failure(self) -> str:
        """Why the last sync failed, "" if it did not."""
        return self.traceback.strip().rsplit("\n", 1)[-1]


class TaskRow(_Record):
    """A task without its annotations and predictions; ``data`` is as stored, addresses unresolved."""

    id: int
    data: Json = {}
    total_annotations: int = 0
    total_predictions: int = 0


class Prediction(_Record):
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
    model_version: str = ""
    score: float | None = None
    result: list[Json] = []
    created_at: str = ""
    annotations: tuple[int, ...] = ()


def _regions_or_none(result: Any) -> Any:
    return result if isinstance(result, list) and all(isinstance(item, dict) for item in result) else None


class Annotation(_Record):
    """What is read of one annotation.

    Attributes:
        updated: when it was last changed, ISO 8601, as Label Studio wrote it.
        was_cancelled: the task was skipped.
        ground_truth: it is marked as the right one of its task. Label Studio marks imported ones so by itself.
        result: its regions; None where they were not asked for, and for what is no list of regions.
    """

    id: int
    updated: str = Field("", validation_alias="updated_at")
    was_cancelled: bool = False
    ground_truth: bool = False
    result: Annotated[tuple[Json, ...] | None, BeforeValidator(_regions_or_none)] = None


def _objects(annotations: Any) -> Any:
    return [item for item in annotations or () if isinstance(item, dict | Annotation)]


class AnnotatedTask(_Record):
    """A task with all its annotations, skipped ones too; ``data`` is as stored, addresses unresolved."""

    id: int
    data: Json = {}
    annotations: Annotated[tuple[Annotation, ...], BeforeValidator(_objects)] = ()


def chosen(annotations: Sequence[Annotation]) -> Annotation | None:
    """The one annotation of a task that counts; None if all are skipped.

    Ground truth before others, then the one that was changed last, then the one with the highest number.
    """
    submitted = [annotation for annotation in annotations if not annotation.was_cancelled]
    return max(submitted, key=lambda one: (one.ground_truth, moment(one.updated), one.id), default=None)


def moment(updated: str) -> float:
    """Seconds since 1970 of a time that Label Studio wrote; 0 for what is none."""
    try:
        return datetime.fromisoformat(updated).timestamp()
    except (ValueError, OverflowError, OSError):  # the last: a year that this system's clock does not know
        return 0.0


class View(_Record):
    """A tab of the Data Manager."""

    id: int
    project: int
    data: Json = {}

    @property
    def title(self) -> str:
        """As it stands on the tab."""
        return str(self.data.get("title") or "")

    @property
    def any_of(self) -> bool:
        """Whether one of its filters is enough."""
        return (self.data.get("filters") or {}).get("conjunction") == "or"

    @property
    def filters(self) -> tuple[Json, ...]:
        """In Label Studio's own form."""
        return tuple((self.data.get("filters") or {}).get("items") or ())

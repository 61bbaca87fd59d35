"""The bodies that Label Studio sends to a model server, and what can be read from them without asking anybody.

Tolerant of further keys (Label Studio sends whole tasks, and more with each version), strict about what is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from spica.errors import MediaError, RequestError
from spica.labelstudio.config import RectangleControl, quoted
from spica.project import ProjectKey

UNDEFINED_KEY = "$undefined$"
"""Label Studio's key for data that came before the project had a configuration (its ``DATA_UNDEFINED_NAME``)."""

_PATH = re.compile(r"[^.\[\]]+")

ProjectRef = str | int | None


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True, frozen=True, hide_input_in_errors=True)


class SetupRequest(_Body):
    """``POST /setup``: sent when a model is connected, and before nearly everything else.

    Attributes:
        project: ``"<id>.<seconds of its creation>"``; see :func:`project_key`.
        hostname: Label Studio's address as it knows itself, often wrong from another machine.
        access_token: legacy token of the project's creator; refused by new installations.
        extra_params: what stands in the model's form; see
            :func:`spica.labelstudio.label_config.parse_extra_params`. Label Studio always sends them; a request
            without leaves what it has sent.
    """

    project: ProjectRef = None
    label_config: str = Field(validation_alias=AliasChoices("schema", "label_config"))
    hostname: str | None = None
    access_token: SecretStr | None = None
    extra_params: Any = None


class Task(_Body):
    """One task. ``id`` is None for a task that is not stored yet; ``data`` holds addresses as they were imported."""

    id: int | None = None
    data: dict[str, Any]


class PredictParams(_Body):
    """``params`` of ``POST /predict``.

    ``context`` is what a person has drawn, None outside interactive pre-annotation; ``login`` and ``password`` are the
    project's task data's, for servers that ask for them.
    """

    context: dict[str, Any] | None = None
    login: str | None = None
    password: SecretStr | None = None


class PredictRequest(_Body):
    """``POST /predict``: one task when somebody opens it, or any number at once from the Data Manager."""

    tasks: list[Task] = Field(min_length=1)
    label_config: str
    project: ProjectRef = None
    params: Annotated[PredictParams, BeforeValidator(_or_empty)] = PredictParams()


class WebhookRequest(_Body):
    """``POST /webhook``: training asked for, or something changed in a project.

    Attributes:
        action: for instance ``START_TRAINING``, ``ANNOTATION_CREATED`` or ``PROJECT_UPDATED``.
        project: all columns of the project, where the hook sends them.
        annotation: the one that was submitted, or a list of them.
        annotations: those that were deleted.
    """

    action: str
    project: dict[str, Any] | None = None
    annotation: Any = None
    annotations: Any = None

    @property
    def project_key(self) -> ProjectKey | None:
        """Which project it is about, None if the event does not say."""
        return ProjectKey.read(self.project)


def bad_request(details: Sequence[Any]) -> RequestError:
    """The first of pydantic's errors, without repeating what was in the body: that can hold tokens and pictures."""
    first = details[0]
    others = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    missing = first["type"] == "missing"
    return RequestError(
        f"the request's body is not what this route takes{others}",
        where=".".join(str(part) for part in first["loc"]) or "the whole body",
        expected="to be there" if missing else first["msg"],
        got="nothing" if missing else _kind(first["input"]),
        hint="Label Studio sends such bodies by itself; for other clients, /docs describes each field.",
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value)[:40]
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def project_key(project: ProjectRef) -> ProjectKey | None:
    """Which project Label Studio's ``"<id>.<seconds>"``, or a number alone, means; None if there is none."""
    return ProjectKey.parse(str(project))


def image_places(task: Task, control: RectangleControl) -> tuple[str | None, ...]:
    """The places of a task's images for one control in order: the address, or None where there is no image.

    A missing key, a null or a blank is no image: nothing that could be looked at, or annotated.

    Raises:
        MediaError: the data has something there that is no address.
    """
    value = _value(task, control)
    places = value if control.image_list and isinstance(value, list) else [value]
    addresses = [None if isinstance(place, str) and not place.strip() else place for place in places]
    for address in addresses:
        if address is not None:
            _check_address(address, task, control)
    return tuple(addresses)


def image_uris(task: Task, control: RectangleControl) -> tuple[str, ...]:
    """The addresses of a task's images for one control: one, or with ``valueList`` all of them in order.

    Under a missing key, data that came before the project had a configuration is taken, as Label Studio does.

    Raises:
        MediaError: the data has nothing there, an image is missing, or it has something that is no address.
    """
    value = _value(task, control)
    if value is None or (control.image_list and value == []):
        raise MediaError(
            f'the task has no image under "{control.image_key}"',
            where=_where(task),
            expected=f'the key that the labelling configuration names for "{control.to_name}"',
            got="an empty list" if value == [] else f"keys {quoted(list(task.data)[:20])}",
            hint=f"Import the task again with this key, or write the right one: "
            f'<Image name="{control.to_name}" value="$…"/>.',
        )
    uris: Sequence[Any] = value if control.image_list and isinstance(value, list) else [value]
    for uri in uris:
        _check_address(uri, task, control)
    return tuple(uris)


def _value(task: Task, control: RectangleControl) -> Any:
    value = _look_up(task.data, control.image_key)
    return task.data[UNDEFINED_KEY] if value is None and set(task.data) == {UNDEFINED_KEY} else value


def _check_address(uri: Any, task: Task, control: RectangleControl) -> None:
    if not isinstance(uri, str) or not uri.strip():
        raise MediaError(
            f'the task\'s "{control.image_key}" is not the address of an image',
            where=_where(task),
            expected="a path or URL, or a list of them" if control.image_list else "a path or URL",
            got=_kind(uri),
            hint='A list of images needs <Image valueList="$…"/>.' if isinstance(uri, list) else None,
        )


def _look_up(data: Mapping[str, Any], key: str) -> Any:
    """``data[key]``, or like Label Studio's editor the nested value that ``pages[0].url`` leads to; None if absent."""
    if key in data:
        return data[key]
    value: Any = data
    for part in _PATH.findall(key):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isascii() and part.isdecimal() and len(part) < 10:
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def _where(task: Task) -> str:
    return f"task {task.id}" if task.id is not None else "a task without an id"

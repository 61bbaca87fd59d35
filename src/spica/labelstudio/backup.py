"""Predictions on disk: written before they are deleted, and put back."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from spica.errors import LabelStudioError, LabelStudioRefusedError, StorageError, UsageError
from spica.files import replacing
from spica.labelstudio.client import LabelStudioClient, fingerprint
from spica.labelstudio.records import Prediction

_CHUNK = 500
"""Predictions in one import: Label Studio recounts all tasks of the project once per import."""
_FIELDS = ("id", "project", "task", "model_version", "score", "result", "created_at", "annotations")


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What restoring did.

    Attributes:
        restored: predictions that were put back.
        present: predictions that were there already.
        gone_tasks: tasks that don't exist any more, ascending; their predictions stay in the file only.
        refused: one line for each prediction that Label Studio refuses, with its reason.
    """

    restored: int
    present: int
    gone_tasks: tuple[int, ...]
    refused: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether everything in the file is now in Label Studio."""
        return not self.gone_tasks and not self.refused


def backup(client: LabelStudioClient, project: int, version: str | None, path: Path) -> int:
    """Write the stored predictions of a version, or of all when None, as :func:`write_backup` does; returns how many.

    Raises:
        StorageError: the file exists, or can't be written.
        LabelStudioError: the number written is not the number that Label Studio counts.
    """
    with _new_file(path) as file:
        counted = client.prediction_versions(project)
        written = _write(file, client.iter_predictions(project, version))
        # Predictions without any version are in the file, but not in Label Studio's count.
        expected = {name: count for name, count in counted.items() if name and version in (None, name)}
        if {name: count for name, count in written.items() if name} != expected:
            raise LabelStudioError(
                "the stored predictions changed while they were written to a file",
                where=str(path),
                expected=f"{sum(expected.values())} predictions",
                got=str(sum(written.values())),
                hint="nothing was deleted; try again when no predictions are being stored",
            )
    return sum(written.values())


def write_backup(predictions: Iterable[Prediction], path: Path) -> int:
    """Write these predictions to a new file, one JSON object a line; returns how many.

    The file appears only when it is complete.

    Raises:
        StorageError: the file exists, or can't be written.
    """
    with _new_file(path) as file:
        written = _write(file, predictions)
    return sum(written.values())


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    if path.exists():
        raise StorageError("a backup is never overwritten", where=str(path), hint="give another file name")
    try:
        with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
            yield file
    except StorageError as error:
        raise StorageError(
            "the backup can't be written",
            where=str(path),
            got=error.got,
            hint="nothing was deleted; free space or choose another folder",
        ) from error


def _write(file: TextIO, predictions: Iterable[Prediction]) -> Counter[str]:
    """How many of each version were written."""
    written: Counter[str] = Counter()
    for prediction in predictions:
        file.write(json.dumps(_item(prediction), ensure_ascii=False) + "\n")
        written[prediction.model_version] += 1
    return written


def _item(prediction: Prediction) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in _FIELDS}


def read_backup(path: Path) -> Iterator[dict[str, Any]]:
    """What stands in a backup, one prediction after another.

    Raises:
        UsageError: the file is missing or is no backup.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parsed(line, f"{path}, line {number}")
    except FileNotFoundError as error:
        raise UsageError("there is no such backup", where=str(path), hint="check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the backup can't be read", where=str(path), got=str(error)) from error


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        return _item(Prediction.read(json.loads(line)))
    except (ValueError, LabelStudioError) as error:
        raise UsageError(
            "this is no backup of predictions, or it is damaged",
            where=where,
            expected="one JSON object a line, with " + ", ".join(_FIELDS),
            hint="give a file that `spica predictions delete` wrote; nothing was changed",
        ) from error


def restore(client: LabelStudioClient, path: Path, *, project: int | None = None) -> RestoreReport:
    """Put back the predictions of a backup that are missing. A second time changes nothing.

    Label Studio gives them new ids and times. A prediction that is already there with the same task, version, score
    and regions is left alone.

    Args:
        client: a connection to Label Studio.
        path: of a file that :func:`backup` or :func:`write_backup` wrote.
        project: only those of this project; of all projects in the file when None.

    Raises:
        UsageError: the file is missing or is no backup.
        LabelStudioError: Label Studio failed; running it again goes on where it stopped.
    """
    # The whole file is read once before, so that a damaged one changes nothing.
    projects = {item["project"] for item in read_backup(path) if project in (None, item["project"])}
    if project is not None and not projects:
        raise UsageError("the backup holds nothing of this project", where=str(path), expected=f"project {project}")
    parts = [_restore_project(client, path, number) for number in sorted(projects)]
    return RestoreReport(
        restored=sum(part.restored for part in parts),
        present=sum(part.present for part in parts),
        gone_tasks=tuple(sorted(task for part in parts for task in part.gone_tasks)),
        refused=tuple(line for part in parts for line in part.refused),
    )


def _restore_project(client: LabelStudioClient, path: Path, project: int) -> RestoreReport:
    tasks = _tasks_of(client, project)
    predictions = client.iter_predictions(project) if tasks else ()
    stored = Counter(fingerprint(prediction.model_dump()) for prediction in predictions)
    restored = present = 0
    gone: set[int] = set()
    refused: list[str] = []
    chunk: list[dict[str, Any]] = []
    for item in read_backup(path):
        if item["project"] != project:
            continue
        mark = fingerprint(item)
        if item["task"] not in tasks:
            gone.add(item["task"])
        elif stored[mark] > 0:
            stored[mark] -= 1
            present += 1
        else:
            chunk.append({name: item[name] for name in ("task", "model_version", "score", "result")})
        if len(chunk) == _CHUNK:
            restored += _store(client, project, chunk, refused)
            chunk = []
    restored += _store(client, project, chunk, refused)
    return RestoreReport(restored, present, tuple(sorted(gone)), tuple(refused))


def _tasks_of(client: LabelStudioClient, project: int) -> set[int]:
    try:
        return {task.id for task in client.iter_tasks(project, page_size=1000)}
    except LabelStudioRefusedError as refusal:
        if refusal.http_status != 404:
            raise
        return set()  # the whole project is gone: all its tasks are named in the report


def _store(client: LabelStudioClient, project: int, items: list[dict[str, Any]], refused: list[str]) -> int:
    created = client.create_predictions(project, items)
    if created == len(items):
        return created
    # A model's own answers were stored unchecked, the bulk import is stricter: such ones go back one by one.
    for item in client.missing_predictions(items):
        try:
            client.create_prediction({"project": project, **item})
            created += 1
        except LabelStudioRefusedError as refusal:
            refused.append(f"task {item['task']}, version {item['model_version']}: {refusal.got}")
    return created

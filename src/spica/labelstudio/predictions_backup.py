"""Predictions on disk: written before they are deleted, and put back."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spica.errors import LabelStudioError, LabelStudioRefusedError, StorageError, UsageError
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
    """Write stored predictions to a file, one JSON object a line; the file appears only when it is complete.

    Args:
        client: a connection to Label Studio.
        project: its number.
        version: only this one, or all versions when None.
        path: of the file, which must not exist yet.

    Returns:
        The number of predictions written.

    Raises:
        StorageError: the file exists, or can't be written.
        LabelStudioError: the number written is not the number that Label Studio counts.
    """
    if path.exists():
        raise StorageError("a backup is never overwritten", where=str(path), hint="give another file name")
    expected = {
        name: count for name, count in client.prediction_versions(project).items() if version is None or name == version
    }
    written: Counter[str] = Counter()
    with _replacing(path) as lines:
        for prediction in client.iter_predictions(project, version):
            lines.write(_line(prediction))
            written[prediction.model_version] += 1
        # Predictions without any version are in the file, but not in Label Studio's count.
        counted = {name: count for name, count in written.items() if name}
        if counted != {name: count for name, count in expected.items() if name}:
            raise LabelStudioError(
                "the stored predictions changed while they were written to a file",
                where=str(path),
                expected=f"{sum(expected.values())} predictions",
                got=str(sum(written.values())),
                hint="nothing was deleted; try again when no predictions are being stored",
            )
    return sum(written.values())


def write_backup(predictions: Iterable[Prediction], path: Path) -> int:
    """Write these predictions to a file as :func:`backup` does; returns how many.

    Raises:
        StorageError: the file exists, or can't be written.
    """
    if path.exists():
        raise StorageError("a backup is never overwritten", where=str(path), hint="give another file name")
    count = 0
    with _replacing(path) as lines:
        for prediction in predictions:
            lines.write(_line(prediction))
            count += 1
    return count


def read_backup(path: Path) -> Iterator[dict[str, Any]]:
    """What stands in a backup, one prediction after another.

    Raises:
        UsageError: the file is missing or is no backup.
    """
    return _read(path)


def restore(client: LabelStudioClient, path: Path, *, project: int | None = None) -> RestoreReport:
    """Put back the predictions of a backup that are missing. A second time changes nothing.

    Label Studio gives them new ids and times. A prediction that is already there with the same task, version, score
    and regions is left alone.

    Args:
        client: a connection to Label Studio.
        path: of a file that :func:`backup` wrote.
        project: only those of this project; of all projects in the file when None.

    Raises:
        UsageError: the file is missing or is no backup.
        LabelStudioError: Label Studio failed; running it again goes on where it stopped.
    """
    projects: Counter[int] = Counter()  # first a look at the whole file, so that a damaged one changes nothing
    for item in _read(path):
        if project is None or item["project"] == project:
            projects[item["project"]] += 1
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
    stored: Counter[str] = Counter()
    if tasks:
        stored.update(fingerprint(prediction.model_dump()) for prediction in client.iter_predictions(project))
    restored = present = 0
    gone: set[int] = set()
    refused: list[str] = []
    chunk: list[dict[str, Any]] = []
    for item in _read(path):
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


def _line(prediction: Prediction) -> str:
    return json.dumps({name: getattr(prediction, name) for name in _FIELDS}, ensure_ascii=False) + "\n"


def _read(path: Path) -> Iterator[dict[str, Any]]:
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
        item = json.loads(line)
        prediction = Prediction.read(item)
    except (ValueError, AttributeError, LabelStudioError) as error:
        raise UsageError(
            "this is no backup of predictions, or it is damaged",
            where=where,
            expected="one JSON object a line, with " + ", ".join(_FIELDS),
            hint="give a file that `spica predictions delete` wrote; nothing was changed",
        ) from error
    return {name: getattr(prediction, name) for name in _FIELDS}


class _Lines:
    """A text file whose failures are ours."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def finish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise _unwritable(self._path, error) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[_Lines]:
    """A file that takes its name only when the block ends well and all is on disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    part = Path(name)
    file = os.fdopen(handle, "w", encoding="utf-8", newline="\n")
    try:
        lines = _Lines(file, path)
        yield lines
        lines.finish()
        try:
            part.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            file.close()
        part.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        "the backup can't be written",
        where=str(path),
        got=str(error),
        hint="nothing was deleted; free space or choose another folder",
    )

"""After a change of version: older versions' predictions go, of exactly those tasks that have the new one.

The new predictions are stored before by the bulk job; here nothing is deleted of a task that has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spica.errors import StorageError
from spica.labelstudio.api.records import Prediction
from spica.labelstudio.api.worklist import UNLABELLED, Narrowing
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.predictions_backup import read_backup, write_backup

_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed.

    Attributes:
        path: of the backup; None when there was nothing to remove.
        backed_up: predictions in it.
        deleted: predictions that are gone from Label Studio.
        kept: predictions in the backup that stay, because their tasks were annotated or changed meanwhile.
    """

    path: Path | None
    backed_up: int
    deleted: int
    kept: int


def remove_older(client: LabelStudioClient, project: int, version: str, *, annotated: bool, backup: Path) -> Removal:
    """Delete the predictions of other versions where there is one of ``version``, after writing them to a file.

    Args:
        client: Label Studio.
        project: its number.
        version: what stays.
        annotated: also of tasks that carry annotations.
        backup: the file, which must not exist yet; `spica predictions restore` puts it back.

    Raises:
        StorageError: the backup could not be written; nothing was deleted.
        LabelStudioError: Label Studio failed; running it again goes on.
    """
    filters: Narrowing = () if annotated else (UNLABELLED,)
    written: Counter[str] = Counter()

    def older() -> Iterator[Prediction]:
        for _, stored in client.several_predictions(project, version, filters):
            for prediction in stored:
                if prediction.model_version != version:
                    written[prediction.model_version] += 1
                    yield prediction

    backed_up = write_backup(older(), backup)
    on_disk = sum(1 for _ in read_backup(backup))
    if on_disk != backed_up:
        raise StorageError(
            "the backup is not complete on disk",
            where=str(backup),
            expected=f"{backed_up} lines",
            got=str(on_disk),
            hint="nothing was deleted; look at the disk",
        )
    if backed_up == 0:
        backup.unlink()
        return Removal(None, 0, 0, 0)
    # A version of which everything is in the file can go in one request; single ones take one each.
    counts = client.prediction_versions(project)
    whole = {name for name, count in written.items() if name and counts.get(name) == count}
    deleted = sum(client.delete_predictions(project, name) for name in sorted(whole))
    single = _delete_singly(client, project, version, filters, backup, whole)
    if single:
        client.recount_predictions(project)
    return Removal(backup, backed_up, deleted + single, max(0, backed_up - deleted - single))


def _delete_singly(
    client: LabelStudioClient, project: int, version: str, filters: Narrowing, backup: Path, without: set[str]
) -> int:
    deleted = 0
    chunk: list[tuple[int, int]] = []
    for item in read_backup(backup):
        if item["model_version"] not in without:
            chunk.append((int(item["task"]), int(item["id"])))
        if len(chunk) == _CHUNK:
            deleted += _delete_chunk(client, project, version, filters, chunk)
            chunk = []
    return deleted + _delete_chunk(client, project, version, filters, chunk)


def _delete_chunk(
    client: LabelStudioClient, project: int, version: str, filters: Narrowing, chunk: list[tuple[int, int]]
) -> int:
    """Those of tasks that still have the new prediction and still meet the filters."""
    if not chunk:
        return 0
    tasks = {task for task, _ in chunk}
    sure = client.having_prediction(project, version, tasks) & client.existing_tasks(project, tasks, filters)
    return client.delete_predictions_by_id([prediction for task, prediction in chunk if task in sure])

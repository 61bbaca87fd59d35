"""Older predictions are removed when nobody can have them open any more.

Label Studio's editor names the prediction that an annotation was made from. With that one gone the submit is refused
(400), its page says nothing, and nothing is stored. So a prediction stays for :data:`OPEN_FOR` after it was last shown
to somebody who opened the task. One that an annotation was made from stays for good: deleted, Label Studio would forget
the link, by which the person's edits can be measured. (What it notes as the annotation's ``prediction`` is the version
of the moment of the submit, which may be another.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from spica.errors import StorageError
from spica.labelstudio.backup import read_backup, write_backup
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import Prediction
from spica.labelstudio.tasks_query import UNLABELLED, Narrowing, version_filter

OPEN_FOR = timedelta(hours=24)
"""After so long Label Studio itself gives a task of its stream to somebody else (``TASK_LOCK_TTL``)."""

Left = Callable[[str], datetime]
"""Tells when a version was last replaced as the one that is shown; long ago if it never was."""


@dataclass(frozen=True, slots=True)
class Removal:
    """How many predictions were removed, and how many stay although they were meant, and why."""

    path: Path | None  # of the backup; None when there was nothing to remove
    deleted: int
    shown: int  # stay: they are what Label Studio shows
    open: int  # stay: somebody may still have their task open
    named: int  # stay: annotations were made from them


def last_shown(
    prediction: Prediction, stored: Sequence[Prediction], shown: str, left: Left | None = None
) -> datetime | None:
    """Since when a task that is opened shows another prediction than this one; None if it may be shown still.

    That is so since a later one was stored: Label Studio shows the one of the version that the project has selected,
    else the last. An older version that was selected anew, as by a rollback, may have been shown again meanwhile.

    Args:
        prediction: one of ``stored``.
        stored: all predictions of the task, by ascending id.
        shown: the version that the project has selected.
        left: when versions were replaced; without it only a prediction of ``shown`` counts as a later one.
    """
    if prediction.model_version == shown:
        return None
    for later in stored:
        if (
            later.id > prediction.id
            and later.model_version != prediction.model_version
            and (left is not None or later.model_version == shown)
        ):
            since = datetime.fromisoformat(later.created_at)
            return since if left is None else max(since, left(prediction.model_version))
    return None


def remove(
    client: LabelStudioClient,
    project: int,
    wanted: Callable[[Prediction, Sequence[Prediction]], bool],
    *,
    backup: Path,
    filters: Narrowing = (),
    now: bool = False,
    confirm: Callable[[int], bool] = lambda _: True,
) -> Removal:
    """Delete predictions after writing them to a file, but those that an open task or an annotation names.

    Args:
        client: Label Studio.
        project: its number.
        wanted: whether a prediction is to go; called with it and all of its task's.
        backup: the file, which must not exist yet; `spica predictions restore` puts it back.
        filters: only of tasks that meet them.
        now: also those that an open task may name.
        confirm: asked with their number before any is deleted; without its yes nothing is, and no backup stays.

    Raises:
        StorageError: the backup could not be written; nothing was deleted.
        LabelStudioError: Label Studio failed; running it again goes on.
    """
    shown = client.project(project).model_version
    written: Counter[str] = Counter()
    stay = {"shown": 0, "open": 0, "named": 0}

    def chosen() -> Iterator[Prediction]:
        for stored in client.predictions_by_task(project, filters):
            for prediction in stored:
                if not wanted(prediction, stored):
                    continue
                if prediction.annotations:
                    stay["named"] += 1
                elif now or _is_over(since := last_shown(prediction, stored, shown)):
                    written[prediction.model_version] += 1
                    yield prediction
                else:
                    stay["shown" if since is None else "open"] += 1

    backed_up = write_backup(chosen(), backup)
    on_disk = sum(1 for _ in read_backup(backup))
    if on_disk != backed_up:
        raise StorageError(
            "the backup is not complete on disk",
            where=str(backup),
            expected=f"{backed_up} lines",
            got=str(on_disk),
            hint="nothing was deleted; look at the disk",
        )
    goes = False
    try:
        goes = confirm(backed_up) and backed_up > 0
    finally:
        if not goes:
            backup.unlink()
    if not goes:
        return Removal(None, 0, **stay)
    # A version of which everything is in the file can go in one request; single ones take one each.
    counts = client.prediction_versions(project)
    whole = {name for name, count in written.items() if name and counts.get(name) == count}
    deleted = sum(client.delete_predictions(project, name) for name in sorted(whole))
    single = client.delete_predictions_by_id(
        int(item["id"]) for item in read_backup(backup) if item["model_version"] not in whole
    )
    if single:
        client.recount_predictions(project)
    return Removal(backup, deleted + single, **stay)


def thin(
    client: LabelStudioClient,
    project: int,
    *,
    ours: Callable[[str], bool],
    left: Left | None,
    at_most: int,
    go_on: Callable[[], bool],
) -> int:
    """Delete old predictions of unannotated tasks that nobody can have open any more; returns how many.

    Args:
        client: Label Studio.
        project: its number.
        ours: whether a version is one that may be predicted again at will; others' stay.
        left: see :func:`last_shown`.
        at_most: about so many; the next time goes on.
        go_on: asked after each task.

    Raises:
        LabelStudioError: Label Studio failed; the next time goes on.
    """
    shown = client.project(project).model_version
    over = [version for version, latest in client.version_times(project).items() if _is_over(latest)]
    deleted = 0
    for version in over[1:]:  # the first was followed by nothing that is old enough
        if not version or version == shown or not ours(version):
            continue
        for stored in client.predictions_by_task(project, (UNLABELLED, version_filter("contains", version))):
            if deleted >= at_most or not go_on():
                break
            deleted += client.delete_predictions_by_id(
                old.id
                for old in stored
                if ours(old.model_version) and not old.annotations and _is_over(last_shown(old, stored, shown, left))
            )
    if deleted:
        client.recount_predictions(project)
    return deleted


def _is_over(since: datetime | None) -> bool:
    return since is not None and datetime.now(UTC) - since > OPEN_FOR

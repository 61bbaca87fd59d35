"""Which tasks a job is for: chosen by people, checked before anything is done, listed as the job goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from spica.errors import LabelStudioRefusedError, SpicaError, UsageError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.config import LabelConfig, parse_label_config
from spica.labelstudio.protocol import Task, image_places
from spica.labelstudio.records import Project, TaskRow, View
from spica.labelstudio.tasks_query import UNLABELLED, Narrowing, Page, task_filters
from spica.predictor import Media, PredictionSpec
from spica.prelabel.progress import Patience

logger = logging.getLogger(__name__)

PAGE = 1000  # Label Studio counts all tasks that are left for each page, so few large pages cost it less
_SAMPLED = 100  # a sample is taken from these first tasks; a large project is not read through for it

SpecFor = Callable[[str], PredictionSpec]
"""How tasks of a project with this labelling configuration are answered."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks without a prediction of the version are to be predicted."""

    annotated: bool = False  # those with annotations too
    tasks: tuple[int, ...] = ()  # only these numbers; empty for all
    view: int | None = None  # only those in this tab of the Data Manager


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job is to do."""

    project: Project
    prediction: PredictionSpec
    selection: Selection
    spec_for: SpecFor  # asked again while watching
    branches: tuple[Narrowing, ...] = ((),)  # filters; a task has to meet all of one of these
    total: int = 0  # tasks to predict; too high where branches overlap
    annotated: int = 0  # tasks without a prediction that are left alone because they carry annotations

    def counted(self, client: LabelStudioClient) -> JobSpec:
        """The same with what there is to do at the moment.

        Raises:
            UsageError: none of these tasks, or no such tab.
            LabelStudioError: no permission, no answer.
        """
        chosen = _branches(client, self.project.id, self.selection)
        branches = chosen if self.selection.annotated else tuple((*branch, UNLABELLED) for branch in chosen)
        total = self.count(client, branches)
        annotated = 0 if self.selection.annotated else self.count(client, chosen) - total
        return replace(self, branches=branches, total=total, annotated=annotated)

    def count(self, client: LabelStudioClient, branches: tuple[Narrowing, ...]) -> int:
        """Tasks without a prediction that meet all filters of one of the branches; too high where branches overlap."""
        version = self.prediction.version
        return sum(client.count_tasks(self.project.id, branch, without_version=version) for branch in branches)


def prepare(
    client: LabelStudioClient, project: int, spec_for: SpecFor, selection: Selection, *, empty: bool = False
) -> JobSpec:
    """Look at a project and count what there is to do; nothing is changed. ``empty``: one without tasks will do.

    Raises:
        UsageError: no tasks, or none of these numbers, or no such tab.
        LabelConfigError: the project has no rectangles, or no label that the model knows.
        LabelStudioError: no such project, no permission, no answer.
    """
    chosen = client.project(project)
    prediction = spec_for(chosen.label_config)
    prediction.require_match(f"project {project}")
    if not empty and client.task_count(project) == 0:
        raise UsageError(
            "the project has no tasks",
            where=f"project {project} ({chosen.title})",
            hint="import images or sync its storage first; with --watch, tasks are predicted as they are added",
        )
    return JobSpec(chosen, prediction, selection, spec_for).counted(client)


def _branches(client: LabelStudioClient, project: int, selection: Selection) -> tuple[Narrowing, ...]:
    branches: tuple[Narrowing, ...] = ((),)
    if selection.view is not None:
        view = _view(client, project, selection.view)
        any_of = view.any_of and view.filters
        branches = tuple((condition,) for condition in view.filters) if any_of else (view.filters,)
    if selection.tasks:
        missing = set(selection.tasks) - client.existing_tasks(project, selection.tasks)
        if missing:
            raise UsageError(
                "the project has no such tasks",
                where=f"project {project}",
                expected="numbers of its tasks, as in the Data Manager's first column",
                got=", ".join(str(task) for task in sorted(missing)[:20]),
            )
        branches = tuple((*branch, chunk) for branch in branches for chunk in task_filters(selection.tasks))
    return branches


def _view(client: LabelStudioClient, project: int, number: int) -> View:
    try:
        view = client.view(number)
        if view.project == project:
            return view
    except LabelStudioRefusedError as refusal:
        if refusal.http_status != 404:
            raise
    known = ", ".join(f"{view.id} ({view.title})" for view in client.views(project)[:20])
    raise UsageError(
        "the project has no such tab",
        where=f"project {project}",
        expected=known or "a tab of its Data Manager; it has none yet",
        got=str(number),
        hint="the number is in the address of the Data Manager's tab, behind tab=",
    )


class Listing:
    """The tasks that a job has to do, a page at a time; one page is held in memory."""

    def __init__(self, client: LabelStudioClient, spec: JobSpec, patience: Patience, *, after: int = 0) -> None:
        self._client = client
        self._spec = spec
        self._patience = patience
        self._after = after  # tasks with an id up to this one are passed over
        self.listed = 0  # tasks that have come out
        self.last = after  # the highest id that was looked at

    def __iter__(self) -> Iterator[TaskRow]:
        seen: set[int] | None = set() if len(self._spec.branches) > 1 else None  # branches may overlap
        for branch in self._spec.branches:
            for page in self._pages(branch):
                for row in page.rows:
                    if seen is not None:
                        if row.id in seen:
                            continue
                        seen.add(row.id)
                    self.listed += 1
                    yield row

    def _pages(self, branch: Narrowing) -> Iterator[Page]:
        client, project, version = self._client, self._spec.project.id, self._spec.prediction.version
        yield from self._walk(lambda after: client.worklist_page(project, version, branch, after=after, page_size=PAGE))
        # Asked after the first walk: a version that appeared meanwhile, whose name contains this one's, is among these.
        if self._patience(lambda: client.has_confusable_versions(project, version)):
            yield from self._walk(lambda after: client.confusable_page(project, version, branch, after=after))

    def _walk(self, ask: Callable[[int], Page]) -> Iterator[Page]:
        after = self._after
        while True:
            start = after
            page = self._patience(lambda: ask(start))  # noqa: B023 - called before the next round
            after = page.last
            self.last = max(self.last, after)
            yield page
            if page.is_last:
                return


def sample(client: LabelStudioClient, project: int, media: Media, folder: Path, *, count: int) -> list[Path]:
    """Copy at most ``count`` photographs of a project into ``folder``; those that can't be read are passed over.

    Raises:
        LabelConfigError: the project has nothing that a detector could fill.
        LabelStudioError: no such project, no permission, no answer.
    """
    config = parse_label_config(client.project(project).label_config)
    rows = list(islice(client.iter_tasks(project, page_size=_SAMPLED), _SAMPLED))
    step = max(1, len(rows) // count)
    copied: list[Path] = []
    for row in rows[::step][:count]:
        for uri in islice(_addresses(Task(id=row.id, data=row.data), config), 1):
            path = folder / f"{row.id}.image"
            try:
                path.write_bytes(media.read(uri, task_id=row.id))
            except SpicaError as error:
                logger.info("task %d is not looked at: %s", row.id, error.summary)
            else:
                copied.append(path)
    return copied


def _addresses(task: Task, config: LabelConfig) -> Iterator[str]:
    for control in config.controls:
        try:
            yield from (uri for uri in image_places(task, control) if uri is not None)
        except SpicaError:  # no address; the job will say so
            continue

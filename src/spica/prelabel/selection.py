"""Which tasks a job is for: chosen by people, checked before anything is done, listed as the job goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from spica.errors import LabelStudioError, LabelStudioRefusedError, UsageError
from spica.labelstudio.api.records import Project, TaskRow
from spica.labelstudio.api.worklist import UNLABELLED, Narrowing, Page, View, task_filters
from spica.labelstudio.client import LabelStudioClient
from spica.predictor import PredictionSpec
from spica.prelabel.patience import Patience

PAGE = 1000
"""Tasks asked for at once. Label Studio counts all that are left for each page, so few large pages cost it less."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks without a prediction of the version are to be predicted.

    Attributes:
        annotated: those with annotations too.
        tasks: only these numbers; empty for all.
        view: only those in this tab of the Data Manager.
    """

    annotated: bool = False
    tasks: tuple[int, ...] = ()
    view: int | None = None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job's work as it was found before it began.

    Attributes:
        project: in Label Studio.
        prediction: how its tasks are answered.
        branches: filters; a task has to meet all of one of these.
        total: tasks to predict; where branches overlap, an upper bound.
        annotated: tasks without a prediction that are left alone because they carry annotations.
    """

    project: Project
    prediction: PredictionSpec
    branches: tuple[Narrowing, ...]
    total: int
    annotated: int = 0


def prepare(
    client: LabelStudioClient,
    project: int,
    spec_for: Callable[[str], PredictionSpec],
    selection: Selection,
    *,
    empty: bool = False,
) -> JobSpec:
    """Look at a project and count what there is to do; nothing is changed.

    Args:
        client: Label Studio.
        project: its number.
        spec_for: how tasks of a project with this labelling configuration are answered.
        selection: which tasks.
        empty: whether a project without any tasks is all right.

    Raises:
        UsageError: no tasks, or none of these numbers, or no such view.
        LabelConfigError: the project has no rectangles, or no label that the model knows.
        LabelStudioError: no such project, no permission, no answer.
    """
    found = client.project(project)
    spec = spec_for(found.label_config)
    spec.require_match(f"project {project}")
    if not empty and client.task_count(project) == 0:
        raise UsageError(
            "the project has no tasks",
            where=f"project {project} ({found.title})",
            hint="import images or sync its storage first; with --watch, tasks are predicted as they are added",
        )
    return job_spec(client, found, spec, selection)


def job_spec(client: LabelStudioClient, project: Project, spec: PredictionSpec, selection: Selection) -> JobSpec:
    """What there is to do under a spec."""
    chosen = _branches(client, project.id, selection)
    branches = chosen if selection.annotated else tuple((*branch, UNLABELLED) for branch in chosen)

    def count(parts: tuple[Narrowing, ...]) -> int:
        return sum(client.count_tasks(project.id, each, without_version=spec.version) for each in parts)

    total = count(branches)
    return JobSpec(project, spec, branches, total, 0 if selection.annotated else count(chosen) - total)


def _branches(client: LabelStudioClient, project: int, selection: Selection) -> tuple[Narrowing, ...]:
    branches: tuple[Narrowing, ...] = ((),)
    if selection.view is not None:
        view = _view(client, project, selection.view)
        branches = tuple((each,) for each in view.filters) if view.any_of and view.filters else (view.filters,)
    if selection.tasks:
        missing = set(selection.tasks) - client.existing_tasks(project, selection.tasks)
        if missing:
            raise UsageError(
                "the project has no such tasks",
                where=f"project {project}",
                expected="numbers of its tasks, as in the Data Manager's first column",
                got=", ".join(str(task) for task in sorted(missing)[:20]),
            )
        branches = tuple((*branch, each) for branch in branches for each in task_filters(selection.tasks))
    return branches


def _view(client: LabelStudioClient, project: int, number: int) -> View:
    try:
        view = client.view(number)
    except LabelStudioRefusedError as refusal:
        if refusal.http_status != 404:
            raise
        view = None
    if view is not None and view.project == project:
        return view
    known = ", ".join(f"{each.id} ({each.title})" for each in client.views(project)[:20])
    raise UsageError(
        "the project has no such view",
        where=f"project {project}",
        expected=known or "a tab of its Data Manager; it has none yet",
        got=str(number),
        hint="the number is in the address of the Data Manager's tab, behind tab=",
    )


class Listing:
    """The tasks of a job's work, a page at a time; one page is held in memory.

    Args:
        client: Label Studio.
        work: what to list.
        patience: for pages that Label Studio does not give at once.
        after: tasks with an id up to this one are passed over.

    Attributes:
        listed: tasks given so far.
        last: the highest id that was looked at.
    """

    def __init__(self, client: LabelStudioClient, work: JobSpec, patience: Patience, *, after: int = 0) -> None:
        self._client = client
        self._work = work
        self._patience = patience
        self._after = after
        self.listed = 0
        self.last = after

    def __iter__(self) -> Iterator[TaskRow]:
        project, version = self._work.project.id, self._work.prediction.version
        seen: set[int] | None = set() if len(self._work.branches) > 1 else None  # branches may overlap
        for branch in self._work.branches:
            for page in self._pages(project, version, branch):
                for row in page.rows:
                    if seen is not None:
                        if row.id in seen:
                            continue
                        seen.add(row.id)
                    self.listed += 1
                    yield row

    def _pages(self, project: int, version: str, branch: Narrowing) -> Iterator[Page]:
        client = self._client

        def plain(after: int) -> Page:
            return client.worklist_page(project, version, branch, after=after, page_size=PAGE)

        def confusable(after: int) -> Page:
            return client.confusable_page(project, version, branch, after=after)

        yield from self._walk(plain)
        # Asked after the first walk: a confusable version that appeared meanwhile is among these.
        if self._patience.call(lambda: client.has_confusable_versions(project, version)):
            yield from self._walk(confusable)

    def _walk(self, ask: Callable[[int], Page]) -> Iterator[Page]:
        after = self._after
        while True:
            page = self._patience.call(lambda after=after: ask(after))  # type: ignore[misc]  # the default binds the loop's value
            after = page.last
            self.last = max(self.last, after)
            yield page
            if page.is_last:
                return


def is_gone(error: LabelStudioError) -> bool:
    """Whether Label Studio says that a thing does not exist."""
    return isinstance(error, LabelStudioRefusedError) and error.http_status == 404

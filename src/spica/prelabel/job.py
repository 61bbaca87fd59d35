"""The bulk job itself: list, predict, store, count; again for what is added, if asked to stay."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from spica.errors import LabelStudioError, SpicaError
from spica.inference import Priority
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.protocol import Task
from spica.predictor import Outcome, PredictionSpec, Predictor
from spica.prelabel.claim import Claim
from spica.prelabel.media import JobEndsError, PatientMedia
from spica.prelabel.patience import Patience
from spica.prelabel.pipeline import Pipeline
from spica.prelabel.progress import Progress, Tally
from spica.prelabel.selection import JobSpec, Listing, Selection, job_spec
from spica.prelabel.storing import Journal, Storer
from spica.retry import LIMIT_S, is_passing

logger = logging.getLogger(__name__)

JobState = Literal["running", "done", "stopped", "failed"]

WATCH_S = 5.0
"""Seconds between two looks for added tasks."""

_SETTLE_AT_MOST_S = 60.0
"""A request that a killed process had under way is waited for no longer, whatever the clocks say."""


class _NoJournal:
    def sending(self, tasks: object, within_s: float) -> None:
        pass

    def settled(self) -> None:
        pass


class BulkJob:
    """Predicts a project's tasks and stores the predictions. Run once, by :meth:`run`.

    Args:
        client: Label Studio.
        predictor: the model; images that people open are served before the job's.
        work: what to do, from :func:`spica.prelabel.selection.prepare`.
        selection: which tasks; asked again while watching.
        spec_for: how tasks of a project with this labelling configuration are answered; asked again while watching.
        stop: when set, what is in hand is stored and the job ends.
        watch: stay, and predict tasks as they are added.
        claim: on the project, if it was claimed.
        on_failure: told each failed task with its reason, on the thread of :meth:`run`.
        on_progress: told how far the job is, after each batch and a few times a second.
        say: told in a line what people should know.
        patience_s: how long to wait for a Label Studio that does not answer, in one go.
        watch_s: seconds between two looks for added tasks.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        predictor: Predictor,
        work: JobSpec,
        *,
        selection: Selection,
        spec_for: Callable[[str], PredictionSpec],
        stop: threading.Event | None = None,
        watch: bool = False,
        claim: Claim | None = None,
        on_failure: Callable[[int, SpicaError], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] | None = None,
        patience_s: float = LIMIT_S,
        watch_s: float = WATCH_S,
    ) -> None:
        self._client = client
        self._predictor = predictor
        self._work = work
        self._selection = selection
        self._spec_for = spec_for
        self._stop = stop or threading.Event()
        self._watch = watch
        self._claim = claim
        self._on_failure = on_failure or (lambda _task, _error: None)
        self._on_progress = on_progress
        self._say = say or logger.info
        self._patience_s = patience_s
        self._watch_s = watch_s
        self._tally = Tally()
        self._tally.expect(work.total)
        self._cut_short = False
        self.state: JobState = "running"
        self.reason: SpicaError | None = None

    @property
    def progress(self) -> Progress:
        """How far the job is; may be asked from any thread."""
        return self._tally.progress

    @property
    def version(self) -> str:
        """Under which the predictions are stored."""
        return self._work.prediction.version

    def run(self) -> Progress:
        """Do the work.

        Raises:
            SpicaError: what ended the job early; everything stored before stays, and running it again goes on.
        """
        try:
            self._run()
            self.state = "stopped" if self._cut_short else "done"
        except SpicaError as error:
            if self._stop.is_set() and isinstance(error, LabelStudioError) and is_passing(error):
                self._say(f"{error.summary} What was in hand is not stored; the next run makes it again.")
                self.state = "stopped"
                return self.progress
            self.state, self.reason = "failed", error
            raise
        except BaseException:
            self.state = "failed"
            raise
        finally:
            self._tally.end()
            if self._claim is not None:
                reason = self.reason.summary if self.reason is not None else None
                self._claim.end(self.state if self.state != "running" else "failed", reason, self.progress)
            self._show()
        return self.progress

    def _run(self) -> None:
        self._show()
        self._settle()
        after = self._pass(0)
        self._finish()
        while self._watch and not self._stop.is_set():
            after = self._look_for_more(after)

    def _patience(self) -> Patience:
        return Patience(limit_s=self._patience_s, stop=self._stop, tell=self._tally.note)

    def _show(self) -> None:
        progress = self.progress
        if self._claim is not None and self.state == "running":
            self._claim.show(progress)
        if self._on_progress is not None:
            self._on_progress(progress)

    def _settle(self) -> None:
        """Wait for the request that an earlier process was killed over, so that nothing of it is done twice."""
        if self._claim is None or not self._claim.unsettled:
            return
        patience, project, tasks = self._patience(), self._work.project.id, set(self._claim.unsettled)
        self._tally.note("finding out what became of the last request of a run that was cut off")
        deadline = time.monotonic() + min(self._claim.unsettled_by - time.time(), _SETTLE_AT_MOST_S)
        while True:
            stored = patience.call(lambda: self._client.having_prediction(project, self.version, tasks))
            if stored == tasks or time.monotonic() >= deadline or self._stop.wait(0.25):
                break
        self._tally.note(None)

    def _pass(self, after: int) -> int:
        """All tasks with an id above ``after``; returns the highest id that was looked at."""
        work = self._work
        listing = Listing(self._client, work, self._patience(), after=after)
        journal: Journal = self._claim if self._claim is not None else _NoJournal()
        storer = Storer(
            self._client,
            work.project.id,
            work.prediction.version,
            tally=self._tally,
            patience=self._patience(),
            journal=journal,
            on_failure=self._on_failure,
            on_progress=self._show,
        )
        before = self.progress
        predictor = self._predictor.with_media(PatientMedia(self._predictor.media, self._client, self._patience()))

        def begin(task: Task) -> Callable[[], Outcome]:
            return predictor.begin(task, work.prediction, Priority.BULK)

        with Pipeline(listing, begin, predictor.engine, self._stop) as pipeline:
            storer.run(pipeline.outcomes)
        if pipeline.error is not None:
            raise pipeline.error.reason if isinstance(pipeline.error, JobEndsError) else pipeline.error
        answered = self.progress.answered - before.answered
        if pipeline.all_listed:  # the count made before was a forecast
            self._tally.expect(before.done + listing.listed)
        self._cut_short = not pipeline.all_listed or answered < listing.listed
        return listing.last

    def _finish(self) -> None:
        """Count what is stored."""
        project = self._work.project.id
        if self._claim is not None:
            self._claim.clear_up()
        versions = self._patience().call(lambda: self._client.prediction_versions(project))
        self._tally.count(versions.get(self.version, 0))
        self._show()

    def _look_for_more(self, after: int) -> int:
        """Wait a while, then predict what was added; all over again where the version has changed."""
        if self._stop.wait(self._watch_s):
            return after
        patience = self._patience()
        project = patience.call(lambda: self._client.known_project(self._work.project.key))
        spec = self._spec_for(project.label_config)
        spec.require_match(f"project {project.id}")
        if spec.version != self.version:
            self._say(f"The labelling configuration has changed; predictions are now stored as {spec.version}.")
            after = 0
            work = patience.call(lambda: job_spec(self._client, project, spec, self._selection))
        else:
            work = JobSpec(project, spec, self._work.branches, 0)
        self._work = work
        first = patience.call(lambda: _count_above(self._client, work, after))
        if first == 0:
            self._show()
            return after
        self._say(f"{first} new task{'' if first == 1 else 's'}.")
        self._tally.expect(self.progress.done + first)
        reached = max(after, self._pass(after))
        self._finish()
        return reached


def _count_above(client: LabelStudioClient, work: JobSpec, after: int) -> int:
    above = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
    return sum(
        client.count_tasks(work.project.id, (*branch, above), without_version=work.prediction.version)
        for branch in work.branches
    )


def prelabel(
    client: LabelStudioClient,
    predictor: Predictor,
    project: int,
    spec: PredictionSpec,
    *,
    selection: Selection | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    patience_s: float = LIMIT_S,
) -> Progress:
    """Predict the tasks of ``project`` that have no prediction of ``spec.version``, and store the predictions.

    Args:
        client: Label Studio.
        predictor: the model; images that people open are served before the job's.
        project: number of the project.
        spec: how its tasks are answered.
        selection: which tasks; all by default, annotated ones too.
        on_progress: called after every batch and a few times a second.
        stop: when set, what is in hand is stored and the job ends.
        patience_s: how long to wait for a Label Studio that does not answer.

    Raises:
        LabelStudioError: Label Studio refused something; what was stored before stays.
    """
    chosen = selection or Selection(annotated=True)
    spec.require_match(f"project {project}")
    work = job_spec(client, client.project(project), spec, chosen)
    job = BulkJob(
        client,
        predictor,
        work,
        selection=chosen,
        spec_for=lambda _: spec,
        on_progress=on_progress,
        stop=stop,
        patience_s=patience_s,
    )
    return job.run()

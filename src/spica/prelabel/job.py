"""The bulk job itself: list, predict, store, count; again for what is added, if asked to stay."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from spica.errors import LabelStudioError, SpicaError
from spica.inference import Priority
from spica.labelstudio.client import LabelStudioClient
from spica.predictor import Predictor
from spica.prelabel.claim import Claim
from spica.prelabel.pipeline import JobEndsError, PatientMedia, Pipeline
from spica.prelabel.progress import JobCounter, Patience, Progress
from spica.prelabel.selection import JobSpec, Listing
from spica.prelabel.storing import Storer
from spica.retry import LIMIT_S, is_passing

logger = logging.getLogger(__name__)

JobState = Literal["running", "done", "stopped", "failed"]


@dataclass(eq=False)
class BulkJob:
    """Predicts a project's tasks and stores the predictions. Run once, by :meth:`run`."""

    client: LabelStudioClient
    predictor: Predictor  # images that people open are served before the job's
    spec: JobSpec
    claim: Claim  # released by the caller
    stop: threading.Event = field(default_factory=threading.Event)  # what is computed already is stored
    watch: bool = False  # stay, and predict tasks as they are added
    on_failure: Callable[[int, SpicaError], None] = lambda _task, _error: None  # on the thread of run()
    on_progress: Callable[[Progress], None] = lambda _progress: None  # after each batch and a few times a second
    say: Callable[[str], None] = logger.info  # a line that people should read
    patience_s: float = LIMIT_S  # how long to wait for a Label Studio that does not answer, in one go
    watch_s: float = 5.0  # between two looks for added tasks
    state: JobState = field(default="running", init=False)
    reason: SpicaError | None = field(default=None, init=False)  # why it failed

    def __post_init__(self) -> None:
        self._counter = JobCounter()
        self._counter.expect(self.spec.total)
        self._patience = Patience(self._counter, self.stop, self.patience_s)
        self._cut_short = False

    @property
    def progress(self) -> Progress:
        """How far the job is; may be asked from any thread."""
        return self._counter.progress

    @property
    def version(self) -> str:
        """Under which the predictions are stored."""
        return self.spec.prediction.version

    def run(self) -> Progress:
        """Do the work.

        Raises:
            SpicaError: what ended the job early; everything stored before stays, and running it again goes on.
        """
        try:
            self._show()
            after = self._predict_above(0)
            while self.watch and not self.stop.wait(self.watch_s):
                after = self._predict_added(after)
            self.state = "stopped" if self._cut_short else "done"
        except SpicaError as error:
            if self.stop.is_set() and isinstance(error, LabelStudioError) and is_passing(error):
                self.say(f"{error.summary} What was not stored yet is predicted again by the next run.")
                self.state = "stopped"
                return self.progress
            self.state, self.reason = "failed", error
            raise
        except BaseException:
            self.state = "failed"
            raise
        finally:
            self._counter.end()
            reason = self.reason.summary if self.reason is not None else None
            self.claim.end(self.state, reason, self.progress)
            self.on_progress(self.progress)
        return self.progress

    def _show(self) -> None:
        progress = self.progress
        self.claim.show(progress)
        self.on_progress(progress)

    def _predict_above(self, after: int) -> int:
        """Predict all tasks with an id above ``after``; returns the highest id that was looked at."""
        spec, before = self.spec, self.progress
        listing = Listing(self.client, spec, self._patience, after=after)
        storer = Storer(
            self.client,
            spec.project.id,
            self.version,
            self._counter,
            self._patience,
            self.claim,
            self.on_failure,
            self._show,
        )
        storer.settle(self.stop)
        predictor = self.predictor.with_media(PatientMedia(self.predictor.media, self.client, self._patience))
        with Pipeline(
            listing, lambda task: predictor.begin(task, spec.prediction, Priority.BULK), predictor.engine, self.stop
        ) as pipeline:
            storer.run(pipeline.outcomes)
        error = pipeline.outcomes.error
        if error is not None:
            raise error.reason if isinstance(error, JobEndsError) else error
        if pipeline.all_listed:  # the count made before was a forecast
            self._counter.expect(before.done + listing.listed)
        self._cut_short = not pipeline.all_listed or self.progress.answered - before.answered < listing.listed
        versions = self._patience(lambda: self.client.prediction_versions(spec.project.id))
        self._counter.counted = versions.get(self.version, 0)
        self._show()
        return listing.last

    def _predict_added(self, after: int) -> int:
        """Predict what was added; everything again where the version has changed."""
        project = self._patience(lambda: self.client.known_project(self.spec.project.key))
        prediction = self.spec.spec_for(project.label_config)
        prediction.require_match(f"project {project.id}")
        spec = replace(self.spec, project=project, prediction=prediction)
        if prediction.version != self.version:
            self.say(f"The labelling configuration has changed; predictions are now stored as {prediction.version}.")
            after, spec = 0, self._patience(lambda: spec.counted(self.client))
        self.spec = spec
        above = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
        branches = tuple((*branch, above) for branch in spec.branches)
        added = self._patience(lambda: spec.count(self.client, branches))
        if added == 0:
            self._show()
            return after
        self.say(f"{added} new task{'' if added == 1 else 's'}.")
        self._counter.expect(self.progress.done + added)
        return max(after, self._predict_above(after))

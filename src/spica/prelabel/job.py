"""The bulk job itself: list, predict, store, count; again for what is added, if asked to stay."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
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

WATCH_S = 5.0
"""Seconds between two looks for added tasks."""


class BulkJob:
    """Predicts a project's tasks and stores the predictions. Run once, by :meth:`run`.

    Args:
        client: Label Studio.
        predictor: the model; images that people open are served before the job's.
        spec: what to do, from :func:`spica.prelabel.selection.prepare`.
        claim: on the project, released by the caller.
        stop: when set, what is computed already is stored and the job ends.
        watch: stay, and predict tasks as they are added.
        on_failure: called with each failed task and its reason, on the thread of :meth:`run`.
        on_progress: called after each batch and a few times a second.
        say: called with a line that people should read.
        patience_s: how long to wait for a Label Studio that does not answer, in one go.
        watch_s: seconds between two looks for added tasks.

    Attributes:
        state: see :data:`JobState`.
        reason: why it failed, or None.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        predictor: Predictor,
        spec: JobSpec,
        claim: Claim,
        *,
        stop: threading.Event | None = None,
        watch: bool = False,
        on_failure: Callable[[int, SpicaError], None] = lambda _task, _error: None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        say: Callable[[str], None] = logger.info,
        patience_s: float = LIMIT_S,
        watch_s: float = WATCH_S,
    ) -> None:
        self._client = client
        self._predictor = predictor
        self._spec = spec
        self._claim = claim
        self._stop = stop or threading.Event()
        self._watch = watch
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._say = say
        self._watch_s = watch_s
        self._counter = JobCounter()
        self._counter.expect(spec.total)
        self._patience = Patience(self._counter, self._stop, patience_s)
        self._cut_short = False
        self.state: JobState = "running"
        self.reason: SpicaError | None = None

    @property
    def progress(self) -> Progress:
        """How far the job is; may be asked from any thread."""
        return self._counter.progress

    @property
    def version(self) -> str:
        """Under which the predictions are stored."""
        return self._spec.prediction.version

    def run(self) -> Progress:
        """Do the work.

        Raises:
            SpicaError: what ended the job early; everything stored before stays, and running it again goes on.
        """
        try:
            self._show()
            after = self._predict_above(0)
            while self._watch and not self._stop.wait(self._watch_s):
                after = self._predict_added(after)
            self.state = "stopped" if self._cut_short else "done"
        except SpicaError as error:
            if self._stop.is_set() and isinstance(error, LabelStudioError) and is_passing(error):
                self._say(f"{error.summary} What was not stored yet is predicted again by the next run.")
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
            self._claim.end(self.state, reason, self.progress)
            self._on_progress(self.progress)
        return self.progress

    def _show(self) -> None:
        progress = self.progress
        self._claim.show(progress)
        self._on_progress(progress)

    def _predict_above(self, after: int) -> int:
        """Predict all tasks with an id above ``after``; returns the highest id that was looked at."""
        spec, before = self._spec, self.progress
        listing = Listing(self._client, spec, self._patience, after=after)
        storer = Storer(
            self._client,
            spec.project.id,
            self.version,
            counter=self._counter,
            patience=self._patience,
            claim=self._claim,
            on_failure=self._on_failure,
            on_progress=self._show,
        )
        storer.settle(self._stop)
        predictor = self._predictor.with_media(PatientMedia(self._predictor.media, self._client, self._patience))
        with Pipeline(
            listing, lambda task: predictor.begin(task, spec.prediction, Priority.BULK), predictor.engine, self._stop
        ) as pipeline:
            storer.run(pipeline.outcomes)
        error = pipeline.outcomes.error
        if error is not None:
            raise error.reason if isinstance(error, JobEndsError) else error
        if pipeline.all_listed:  # the count made before was a forecast
            self._counter.expect(before.done + listing.listed)
        self._cut_short = not pipeline.all_listed or self.progress.answered - before.answered < listing.listed
        versions = self._patience(lambda: self._client.prediction_versions(spec.project.id))
        self._counter.counted = versions.get(self.version, 0)
        self._show()
        return listing.last

    def _predict_added(self, after: int) -> int:
        """Predict what was added; everything again where the version has changed."""
        project = self._patience(lambda: self._client.known_project(self._spec.project.key))
        prediction = self._spec.spec_for(project.label_config)
        prediction.require_match(f"project {project.id}")
        spec = replace(self._spec, project=project, prediction=prediction)
        if prediction.version != self.version:
            self._say(f"The labelling configuration has changed; predictions are now stored as {prediction.version}.")
            after, spec = 0, self._patience(lambda: spec.counted(self._client))
        self._spec = spec
        above = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
        branches = tuple((*branch, above) for branch in spec.branches)
        added = self._patience(lambda: spec.count(self._client, branches))
        if added == 0:
            self._show()
            return after
        self._say(f"{added} new task{'' if added == 1 else 's'}.")
        self._counter.expect(self.progress.done + added)
        return max(after, self._predict_above(after))

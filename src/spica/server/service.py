"""What the routes share: the predictor, what projects have asked for, and the last failures.

Nothing here matters after a restart: Label Studio sends a project's configuration and extra params again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.errors import SpicaError
from spica.inference import Priority
from spica.labelstudio.config import ExtraParams, parse_extra_params
from spica.labelstudio.protocol import PredictRequest, SetupRequest, project_key
from spica.predictor import Outcome, PredictionSpec, Predictor
from spica.project import ProjectKey
from spica.server.pool import ModelPool, Served

logger = logging.getLogger(__name__)

_PROJECTS = 1000  # whose extra params are kept; those of older ones are sent again by Label Studio anyway
_FAILURES = 50  # failed tasks that are shown on the page


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What is known of a project of Label Studio since this server's start."""

    project: ProjectKey | None
    extra_params: ExtraParams  # from the model's form
    version: str | None  # of its predictions; None before its configuration could be read
    problems: tuple[str, ...]  # what of its configuration can't be used, a sentence each
    seen: datetime  # when it last asked, in UTC


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that could not be answered."""

    when: datetime  # in UTC
    project: ProjectKey | None
    task: int | None
    error: SpicaError

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "when": self.when.isoformat(timespec="seconds"),
            "project": self.project.number if self.project is not None else None,
            "task": self.task,
            "code": self.error.code,
            "reason": self.error.summary,
        }


class Workers:
    """The threads of one server: all are started here, and ended here. Thread-safe."""

    def __init__(self) -> None:
        self.stopping = threading.Event()  # every loop looks at it
        self._running: list[tuple[threading.Thread, Callable[[], None] | None]] = []
        self._lock = threading.Lock()

    def spawn(self, name: str, work: Callable[[], None], *, wake: Callable[[], None] | None = None) -> threading.Thread:
        """Run ``work`` on a daemon thread; it ends soon after :attr:`stopping` is set and ``wake`` was called."""
        thread = threading.Thread(target=work, name=f"spica-{name}", daemon=True)
        with self._lock:
            self._running = [entry for entry in self._running if entry[0].is_alive()]
            thread.start()
            self._running.append((thread, wake))
        if self.stopping.is_set() and wake is not None:
            wake()
        return thread

    def close(self, timeout_s: float = 30.0) -> None:
        """End all threads, the latest first; those that need longer in all are left behind. May be called again."""
        self.stopping.set()
        with self._lock:
            running, self._running = self._running[::-1], []
        for _, wake in running:
            if wake is not None:
                wake()
        deadline = time.monotonic() + timeout_s
        for thread, _ in running:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    logger.warning("%s did not end in time", thread.name)


class Service:
    """The state of one server. Thread-safe.

    Requests run on two small pools, so that one with many tasks can't hold up the image that a person has opened.

    Args:
        predictor: answers the tasks of projects that have no version of their own.
        weights: name of the weights file, to show.
        pool: all models that answer; only ``predictor`` if None.
        precision: what the weights are computed in, and why, to show.
        folder: of ``predictor``'s version, where that is not in the store.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        weights: str,
        pool: ModelPool | None = None,
        precision: str = "",
        folder: Path | None = None,
    ) -> None:
        self.workers = Workers()
        self.pool = pool or ModelPool(predictor)
        self.weights = weights
        self.precision = precision
        self._folder = folder
        self.started = datetime.now(UTC)
        self._projects: OrderedDict[ProjectKey | None, ProjectState] = OrderedDict()
        self._failures: deque[Failure] = deque(maxlen=_FAILURES)
        self._lock = threading.Lock()
        self.opened_pool = ThreadPoolExecutor(16, thread_name_prefix="spica-opened")
        self.batch_pool = ThreadPoolExecutor(4, thread_name_prefix="spica-batch")

    @property
    def predictor(self) -> Predictor:
        """What answers projects that have no version of their own."""
        return self.pool.default

    def parent(self, project: ProjectKey, data_dir: Path) -> tuple[str, Path | None]:
        """Which version answers a project, and the folder with its files; None while they are not there."""
        version = self.pool.served(project).version
        stored = data_dir / "models" / version
        folder = self._folder if version == self.pool.base_id and self._folder is not None else stored
        return version, folder if folder.is_dir() else None

    def close(self) -> None:
        """End all threads; requests under way get their answers. May be called twice."""
        self.workers.close()
        self.opened_pool.shutdown(wait=True, cancel_futures=True)
        self.batch_pool.shutdown(wait=True, cancel_futures=True)
        self.pool.close()

    def setup(self, request: SetupRequest) -> ProjectState:
        """Note a project's configuration; from memory, never touching the network or the weights.

        A configuration that can't be used is no failure here: Label Studio would drop the reason and show a connection
        error, and people connect a model before they have finished the configuration. It is logged, shown on the page,
        and said by every prediction. A request without extra params leaves them as they are.
        """
        key = project_key(request.project)
        with self._lock:
            before = self._projects.get(key)
        if before is not None and "extra_params" not in request.model_fields_set:  # not Label Studio, which knows them
            extra_params, problems = before.extra_params, list[str]()
        else:
            extra_params, problems = parse_extra_params(request.extra_params)
        predictor = self.pool.predictor(key)
        version = predictor.model_id
        try:
            spec = predictor.spec(request.label_config, extra_params)
        except SpicaError as error:
            problems = [*problems, error.summary]
        else:
            version, problems = spec.version, [*problems, *spec.problems]
        state = ProjectState(key, extra_params, version, tuple(problems), datetime.now(UTC))
        with self._lock:
            self._projects[key] = state
            self._projects.move_to_end(key)
            if len(self._projects) > _PROJECTS:
                self._projects.popitem(last=False)
        if before is None or replace(before, seen=state.seen) != state:
            logger.info("project %s is served as %s", key, version)
            for problem in problems:
                logger.warning("project %s: %s", key, problem)
        return state

    def spec(self, project: ProjectKey | None, label_config: str, predictor: Predictor | None = None) -> PredictionSpec:
        """How tasks of a project are answered, with the extra params that Label Studio sent for it last.

        By this model; by the one that answers the project now if None.

        Raises:
            LabelConfigError: nothing in the configuration that a detector could fill.
        """
        with self._lock:
            state = self._projects.get(project)
        answering = predictor or self.pool.predictor(project)
        return answering.spec(label_config, state.extra_params if state is not None else None)

    def predict(self, request: PredictRequest) -> list[Outcome]:
        """One outcome per task, in order. Blocks: call it on one of the pools.

        Raises:
            LabelConfigError: the request's labelling configuration can't be served.
            QueueFullError: too much waits already.
        """
        key = project_key(request.project)
        with self.pool.lease(key) as predictor:
            outcomes = self._outcomes(request, key, predictor)
        errors = any(outcome.error is not None for outcome in outcomes)
        if errors and predictor.engine.status.state == "failed" and self.pool.predictor(key) is not predictor:
            # Its active version was served before it was loaded, as at the start, and turned out to be damaged.
            with self.pool.lease(key) as predictor:
                outcomes = self._outcomes(request, key, predictor)
        self.note_failures(key, [(done.task_id, done.error) for done in outcomes if done.error is not None])
        return outcomes

    def _outcomes(self, request: PredictRequest, project: ProjectKey | None, predictor: Predictor) -> list[Outcome]:
        """All by one model: the boxes and the version that they are stored under never come from two."""
        spec = self.spec(project, request.label_config, predictor)
        context = request.params.context
        with predictor.engine.places(len(request.tasks)):
            if context:
                return [predictor.suggest(task, spec, context) for task in request.tasks]
            priority = Priority.OPENED if len(request.tasks) == 1 else Priority.BATCH
            return list(predictor.predict(request.tasks, spec, priority))

    def note_failures(self, project: ProjectKey | None, failures: Iterable[tuple[int | None, SpicaError]]) -> None:
        """Keep failed tasks, number and reason, for the page."""
        now = datetime.now(UTC)
        with self._lock:
            self._failures.extend(Failure(now, project, task, error) for task, error in failures)

    @property
    def projects(self) -> list[ProjectState]:
        """The projects that have asked since the start, the latest first."""
        with self._lock:
            return list(reversed(self._projects.values()))

    @property
    def served(self) -> list[Served]:
        """What each project that has asked is answered with, and why; by number."""
        keys = {state.project for state in self.projects if state.project is not None} | self.pool.projects
        return [self.pool.served(key) for key in sorted(keys)]

    @property
    def failures(self) -> list[Failure]:
        """The last failed tasks, the latest first."""
        with self._lock:
            return list(reversed(self._failures))

    @property
    def versions(self) -> list[str]:
        """Versions that this server answers with, the latest first."""
        known = [state.version for state in self.projects if state.version is not None]
        return list(dict.fromkeys(known)) or [self.predictor.model_id]

    def health(self) -> dict[str, Any]:
        """What works and what does not, from memory.

        ``status`` is "UP" as soon as requests are taken; ``model.state`` says whether the model is loaded.
        """
        status = self.predictor.engine.status
        engines = [predictor.engine.status for predictor in self.pool.predictors]
        return {
            "status": "UP",
            "model_class": "Spica",
            "model": {
                "id": self.predictor.model_id,
                "weights": self.weights,
                "classes": list(self.predictor.classes),
                "precision": self.precision,
                "state": status.state,
                "error": status.error.as_json()["error"] if status.error is not None else None,
            },
            "queue": {
                "tasks": sum(engine.admitted for engine in engines),
                "images": sum(engine.waiting for engine in engines),
            },
        }

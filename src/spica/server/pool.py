"""The models that are served: one for each version in use, and for each project the version that answers it.

A project is answered by the weights that the server was started with, until a version of its own is active (a file,
see :mod:`spica.models.active`). The file is looked at once a second, so it does not matter who has changed it. A new
version is loaded and warmed beside the old one, which goes on answering; then the two are exchanged in one step. A
version that can't be loaded never takes the place of one that works, and one that works stays while it can't be read
what is wanted: the folder may be a shared one, and away for a moment.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spica.errors import ModelUnavailableError, SpicaError
from spica.models.active import Resolution
from spica.predictor import Predictor
from spica.project import ProjectKey

if TYPE_CHECKING:
    from spica.server.service import Workers

logger = logging.getLogger(__name__)

LIMIT = 2
"""How many versions stay loaded besides the default one though no project is answered by them: to go back quickly."""

SHOWN = 8
"""How many projects with versions of their own, those that asked last, are kept ready; others load when asked."""

PROJECTS = 1000
"""How many projects without versions of their own are remembered."""

_EVERY_S = 1.0
_AGAIN_S = 60.0
"""A version that could not be loaded is tried again after this: it may have been on its way to a shared folder."""

_OWN_WEIGHTS = "the weights that the server was started with"

Resolve = Callable[[ProjectKey], Resolution]
"""What a project is to be answered with."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a project is answered with, for people.

    Attributes:
        project: which one.
        version: id of the version that answers.
        why: why this one.
        wanted: id of the version that is to answer but does not yet, None if there is none.
        problem: why the wanted one can't answer, or can't be read; None if nothing is known against it.
    """

    project: ProjectKey
    version: str
    why: str
    wanted: str | None = None
    problem: SpicaError | None = None


@dataclass(eq=False, slots=True)
class _Model:
    """A loaded version, or one that is being loaded, and how many requests use it."""

    version: str
    predictor: Predictor
    users: int = 0

    @property
    def state(self) -> str:
        """Of its engine."""
        return self.predictor.engine.status.state


@dataclass(eq=False, slots=True)
class _Slot:
    """A project: what answers, what is to, and when loading that failed last."""

    current: _Model
    why: str = _OWN_WEIGHTS
    wanted: str | None = None
    problem: SpicaError | None = None
    failed: tuple[str, float] | None = None


class ModelPool:
    """Thread-safe; nothing that a request calls waits for a model, a network or a conversion.

    Args:
        default: the model that the server was started with; its engine is closed by whoever opened it.
        base_id: id of its version; the default model's own by default.
        resolve: a project's active version; None where nobody ever activates one.
        load: makes the predictor of a version, its engine started; raises where the version is damaged.
        limit: see :data:`LIMIT`; ``shown``: see :data:`SHOWN`; ``every_s``: seconds between two looks.

    Attributes:
        past: images, answers from memory, failures and seconds of models that are closed.
    """

    def __init__(
        self,
        default: Predictor,
        *,
        base_id: str | None = None,
        resolve: Resolve | None = None,
        load: Callable[[str], Predictor] | None = None,
        limit: int = LIMIT,
        shown: int = SHOWN,
        every_s: float = _EVERY_S,
    ) -> None:
        self._default = _Model(base_id or default.model_id, default)
        self._resolve = resolve
        self._load = load
        self._limit = limit
        self._most_shown = shown
        self._every_s = every_s
        self.past = (0, 0, 0, 0.0)
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._slots: OrderedDict[ProjectKey, _Slot] = OrderedDict()
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._listeners: list[Callable[[ProjectKey], None]] = []
        self._stop = threading.Event()
        self._wake = threading.Event()

    @property
    def default(self) -> Predictor:
        """The model that the server was started with."""
        return self._default.predictor

    @property
    def base_id(self) -> str:
        """Id of its version."""
        return self._default.version

    def start(self, workers: Workers) -> None:
        """Look at the active versions, on one of the server's threads, until the server ends."""
        if self._resolve is not None:
            self._stop = workers.stopping
            workers.spawn("pool", self._watch, wake=self._wake.set)

    def close(self) -> None:
        """Close all models but the default one, after the server's threads have ended. May be called again."""
        self._stop.set()
        with self._lock:
            models = list(self._models.values())
            self._models.clear()
        for model in models:
            model.predictor.engine.close()

    def on_exchange(self, listener: Callable[[ProjectKey], None]) -> None:
        """Call ``listener`` with a project after another version has begun to answer it."""
        self._listeners.append(listener)

    # --- what requests call -----------------------------------------------------------------------------------------

    def predictor(self, project: ProjectKey | None) -> Predictor:
        """What answers a project now."""
        with self._lock:
            return self._current(project).predictor

    @contextlib.contextmanager
    def lease(self, project: ProjectKey | None) -> Iterator[Predictor]:
        """What answers a project now, kept from being closed for as long as the block runs."""
        with self._lock:
            model = self._current(project)
        with self._used(model):
            yield model.predictor

    @property
    def predictors(self) -> list[Predictor]:
        """All that are loaded, the default one first."""
        with self._lock:
            return [self._default.predictor, *(model.predictor for model in self._models.values())]

    @property
    def projects(self) -> set[ProjectKey]:
        """Projects that have been asked about lately."""
        with self._lock:
            return set(self._slots)

    def served(self, project: ProjectKey) -> Served:
        """What a project is answered with, and why."""
        with self._lock:
            slot = self._slots.get(project, _Slot(self._default))
            return Served(project, slot.current.version, slot.why, slot.wanted, slot.problem)

    def _current(self, project: ProjectKey | None) -> _Model:
        if project is None or self._resolve is None:
            return self._default
        slot = self._slots.get(project)
        if slot is None:
            slot = self._slots[project] = self._first(project, self._resolve)
            if len(self._slots) > PROJECTS:
                self._forget()
        self._slots.move_to_end(project)
        return self._default if slot.current.state == "failed" else slot.current

    def _first(self, project: ProjectKey, resolve: Resolve) -> _Slot:
        """The slot of a project that was never asked about: there is no older version that could answer meanwhile."""
        slot = _Slot(self._default)
        try:
            wanted = resolve(project)
            slot.why, slot.problem = wanted.reason, wanted.problem
            slot.current = self._model(wanted.version)
        except SpicaError as error:
            slot.problem = error
        if slot.problem is not None:
            logger.warning("project %s begins with %s: %s", project, slot.current.version, slot.problem.summary)
        self._wake.set()  # whether its engine comes up is looked at on the pool's own thread
        return slot

    def _model(self, version: str | None) -> _Model:
        """A version's model, made where it is not there; the caller holds the lock. None is the default one."""
        if version is None or version == self._default.version:
            return self._default
        model = self._models.get(version)
        if model is None or model.state in ("failed", "closed"):
            if self._load is None:
                raise ModelUnavailableError("this server can't load versions", where=version)
            model = self._models[version] = _Model(version, self._load(version))
        self._models.move_to_end(version)
        return model

    @contextlib.contextmanager
    def _used(self, model: _Model) -> Iterator[None]:
        with self._lock:
            model.users += 1
        try:
            yield
        finally:
            with self._lock:
                model.users -= 1

    # --- the look ---------------------------------------------------------------------------------------------------

    def refresh(self, project: ProjectKey) -> Served:
        """Look at a project's active version now, load it if need be, and exchange. Blocks while a version is loaded.

        Returns:
            What answers it afterwards; see ``problem``.
        """
        with self._lock:
            self._current(project)
        self._look(project, patient=False)
        return self.served(project)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            for project in sorted(self.projects):
                if self._stop.is_set():
                    return
                try:
                    self._look(project, patient=True)
                except Exception:  # the other projects, and the next look, must not suffer
                    logger.exception("project %s: looking at its active version", project)
            self.tidy()
            self._wake.wait(self._every_s)

    def _look(self, project: ProjectKey, *, patient: bool) -> None:
        with self._looking:
            slot = self._slots.get(project)
            if slot is None or self._resolve is None:
                return
            try:
                wanted = self._resolve(project)
                if wanted.problem is not None:
                    raise wanted.problem
            except SpicaError as error:
                self._stay(project, slot, slot.wanted, error)
                return
            target = wanted.version or self._default.version
            if slot.current.version == target and slot.current.state in ("ready", "closed"):
                slot.why, slot.wanted, slot.problem = wanted.reason, None, None
                return
            version, failed_at = slot.failed or (None, 0.0)
            if patient and version == target and time.monotonic() - failed_at < _AGAIN_S:
                return
            slot.wanted = target
            try:
                with self._lock:
                    model = self._model(target)
                with self._used(model):
                    self._wait_ready(model)
                    self._exchange(project, slot, model, wanted.reason)
            except SpicaError as error:
                if not self._stop.is_set():
                    slot.failed = (target, time.monotonic())
                    self._stay(project, slot, target, error)

    def _stay(self, project: ProjectKey, slot: _Slot, wanted: str | None, problem: SpicaError) -> None:
        """What answers goes on: the wanted version can't be loaded, or it can't be read which one that is."""
        with self._lock:
            if slot.current.state in ("failed", "closed"):  # it was in front before it was loaded, at the start
                slot.current, slot.why = self._default, "its active version can't be loaded"
            if slot.problem is None or slot.problem.summary != problem.summary:
                logger.error("project %s stays with %s: %s", project, slot.current.version, problem.summary)
            slot.wanted, slot.problem = wanted, problem

    def _wait_ready(self, model: _Model) -> None:
        if model is self._default:
            return
        while not self._stop.is_set() and model.state == "loading":
            with contextlib.suppress(ModelUnavailableError):
                model.predictor.engine.wait_ready(timeout_s=0.2)
        model.predictor.engine.wait_ready(timeout_s=0)

    def _exchange(self, project: ProjectKey, slot: _Slot, model: _Model, why: str) -> None:
        with self._lock:
            before = slot.current
            slot.current, slot.why, slot.wanted, slot.problem, slot.failed = model, why, None, None, None
        if before is model:
            return
        logger.info("project %s is answered by %s instead of %s: %s", project, model.version, before.version, why)
        for listener in self._listeners:
            listener(project)

    def tidy(self) -> None:
        """Close models that nobody uses: failed ones at once, others beyond the limit, the oldest first."""
        with self._lock:
            self._forget()
            shown = {id(slot.current) for slot in self._slots.values()}
            idle = [model for model in self._models.values() if model.users == 0 and id(model) not in shown]
            broken = [model for model in idle if model.state in ("failed", "closed")]
            sound = [model for model in idle if model not in broken]
            closing = broken + sound[: max(0, len(sound) - self._limit)]
            for model in closing:
                del self._models[model.version]
        for model in closing:
            logger.info("version %s is no longer loaded", model.version)
            model.predictor.engine.close()
            status = model.predictor.engine.status
            images, remembered, failures, seconds = self.past
            images, remembered = images + status.images, remembered + status.remembered
            self.past = (images, remembered, failures + status.failures, seconds + status.seconds)

    def _forget(self) -> None:
        """Anybody may ask with any number: only the projects that asked last are remembered."""
        own = [key for key, slot in self._slots.items() if slot.current is not self._default]
        plain = [key for key, slot in self._slots.items() if slot.current is self._default and slot.wanted is None]
        for project in (*own[: max(0, len(own) - self._most_shown)], *plain[: max(0, len(plain) - PROJECTS)]):
            if self._slots[project].current is self._default or self._slots[project].current.users == 0:
                del self._slots[project]

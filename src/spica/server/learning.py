"""When a project is trained, and what becomes of it.

Rules:

* With Label Studio's switch *Start model training on annotation submission*, a training starts after so many new
  submissions (``train_after``). Without it, submissions start nothing.
* The button *Start Training*, and this server's page, start one at once if there is anything to learn.
* What is new is counted in Label Studio, against what was learned from last: no event is relied upon. Projects with the
  switch are looked at when events come, at the server's start, and every few minutes.
* After a failure the next submission or button tries again; the look every few minutes alone does not.
* What has passed and could not be written or made active, as on a full disk, is tried again with that look.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from spica.errors import AuthenticationError, NotFoundError, SpicaError, StorageError, TrainingError
from spica.labelstudio.api.projects import refuse_another
from spica.labelstudio.api.records import Json
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.protocol import WebhookRequest
from spica.models import active
from spica.models.active import ActiveChangedError
from spica.project import ProjectKey
from spica.server.jobs import Jobs
from spica.server.rollout import Rollouts
from spica.server.service import Service
from spica.server.trainer import Trainer, TrainingRunningError, Worker, step_of
from spica.server.triggers import START, Look, Triggers
from spica.settings import Settings
from spica.training.process import Request, WorkerProcess
from spica.training.runs import Run
from spica.training.takeover import take_over

logger = logging.getLogger(__name__)

EVERY_S = 300.0
"""Seconds between two looks at the projects with the switch, for events that never arrived."""

_PAST = 20
_EACH = 5
"""So many trainings that are over are shown, in all and of each project."""

PROJECTS = 1000
"""Anybody may send events with any number: so many projects without versions of their own are remembered."""

BUTTON = "Start Training in Label Studio"
PAGE = "asked for on the page or by a program"


class NothingToLearnError(TrainingError):
    """No submission is new."""

    code = "nothing_to_learn"
    status = 409


@dataclass(frozen=True, slots=True)
class Standing:
    """What the last look at a project found.

    Attributes:
        project: which one.
        title: its title.
        switch: whether Label Studio's switch is on; None if nobody has looked yet.
        new: submissions that nothing was learned from yet; None if they could not be counted.
        needed: so many start a training.
        looked: when, ISO 8601, UTC.
        note: what people should know; None for nothing.
    """

    project: ProjectKey
    title: str
    switch: bool | None
    new: int | None
    needed: int
    looked: str
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "project": self.project.number,
            "created": self.project.created,
            "title": self.title,
            "switch": self.switch,
            "new": self.new,
            "needed": self.needed,
            "looked": self.looked,
            "note": self.note,
        }


class Learning:
    """The learning of one server. Thread-safe; nothing that a request calls waits for Label Studio, but :meth:`ask`.

    Args:
        service: the models.
        jobs: the bulk jobs, for the predictions of a new version.
        settings: where Label Studio is, its token, the data folder.
        triggers: collects events.
        worker: makes the process that trains, for tests; a :class:`WorkerProcess` by default.
        every_s: see :data:`EVERY_S`.
    """

    def __init__(
        self,
        service: Service,
        jobs: Jobs,
        settings: Settings,
        *,
        triggers: Triggers | None = None,
        worker: Callable[[Request], Worker] | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        self._service = service
        self._settings = settings
        self._triggers = triggers or Triggers()
        self._every_s = every_s
        self._standing: OrderedDict[ProjectKey, Standing] = OrderedDict()
        self._later: dict[ProjectKey, tuple[bool, bool]] = {}
        self._past: list[Run] = []
        self._refused: set[ProjectKey] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.trainer = Trainer(
            settings,
            parent_of=self._parent,
            on_end=self._ended,
            on_idle=self._remember_runs,
            worker=worker or WorkerProcess,
        )
        self.rollouts = Rollouts(service, jobs, settings, tell=self._tell)
        service.pool.on_exchange(self.rollouts.add)

    def start(self) -> None:
        """Begin to look, and take up what an earlier server has left. Twice is once."""
        if self._thread is None:
            self.rollouts.start()
            self._thread = threading.Thread(target=self._work, name="spica-learning", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End a training under way (the next server takes it up) and stop looking. May be called twice."""
        self._stop.set()
        self._wake.set()
        self.trainer.close()
        self.rollouts.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    # --- what requests call -----------------------------------------------------------------------------------------

    def hear(self, event: WebhookRequest, *, proven: bool) -> dict[str, Any]:
        """Take note of an event of Label Studio's; from memory. What is returned is the answer to it.

        Args:
            event: what it says.
            proven: whether it is Label Studio's for sure; otherwise only START_TRAINING is heard, and believed once
                Label Studio has been looked into.

        Raises:
            AuthenticationError: it may be forged.
        """
        answer: dict[str, Any] = {"status": "ok", "action": event.action[:60], "heard": "ignored"}
        if not self.has_token:
            return {**answer, "note": _no_token().summary}
        if not proven and event.action != START:
            raise self._unproven(event.project_key)
        answer["heard"] = self._triggers.hear(event)
        self._wake.set()
        current = self.trainer.current
        if event.action == START and current is not None and current.project == event.project_key:
            answer["job"] = current.id
        return answer

    def _unproven(self, project: ProjectKey | None) -> AuthenticationError:
        error = AuthenticationError(
            "the event does not carry the secret by which Label Studio's are known",
            where=f"project {project}",
            hint="`spica connect`, with the token that the model server has, gives it to Label Studio's webhook",
        )
        if project is not None and project not in self._refused and len(self._refused) < PROJECTS:
            self._refused.add(project)
            logger.warning("%s", error.summary)
        return error

    def ask(self, number: int) -> Run:
        """Train the project of this number now. Asks Label Studio: call it on a pool.

        Raises:
            TrainingRunningError: a training is under way.
            NothingToLearnError: no submission is new.
            SpicaError: why it can't begin.
        """
        with self._client() as client:
            run = self._consider(client, ProjectKey(number), asked=True, cause=PAGE)
        if run is None:
            raise NothingToLearnError("there is nothing to learn", where=f"project {number}")
        return run

    def cancel(self, number: int) -> Run:
        """End the training of the project of this number.

        Raises:
            NotFoundError: there is none here.
            TrainingOverError: it has come to its end just now.
        """
        with self._lock:
            waiting = [key for key in self._later if key.number == number]
            for key in waiting:
                del self._later[key]
        current = self.trainer.current
        here = current.project if current is not None and current.project.number == number else ProjectKey(number)
        try:
            return self.trainer.cancel(here)
        except NotFoundError:
            latest = next((run for key in waiting for run in self.trainer.of(key)), None)
            if latest is None:
                raise
            return latest

    @property
    def has_token(self) -> bool:
        """Whether annotations can be fetched at all."""
        return self._settings.label_studio_api_key is not None

    @property
    def standings(self) -> list[Standing]:
        """What the last looks have found, by project."""
        with self._lock:
            return [self._standing[project] for project in sorted(self._standing)]

    @property
    def runs(self) -> list[Run]:
        """The training under way, then the last of each project that has any; at most twenty."""
        current = self.trainer.current
        return ([current] if current is not None else []) + self._past

    # --- the looks, on a thread of their own ------------------------------------------------------------------------

    def _work(self) -> None:
        self._guarded(None, self._resume)
        next_round = time.monotonic()
        while not self._stop.is_set():
            if self.trainer.current is None:
                with self._lock:
                    later, self._later = self._later, {}
                for project, (asked, on_event) in later.items():
                    self._guarded(project, partial(self._look, project, asked, on_event=on_event))
            for look in self._triggers.due():
                self._guarded(look.project, partial(self._heed, look))
            if time.monotonic() >= next_round:
                next_round = time.monotonic() + self._every_s
                self._guarded(None, self.trainer.retry)
                self._guarded(None, self._remember_runs)
                self._guarded(None, self._look_around)
            wait_s = self._triggers.wait_s()
            until = next_round - time.monotonic()
            self._wake.wait(max(0.01, until if wait_s is None else min(until, wait_s)))
            self._wake.clear()

    def _guarded(self, project: ProjectKey | None, step: Callable[[], Any]) -> None:
        """A look that fails is said, and does not end the others."""
        try:
            step()
        except SpicaError as error:
            logger.warning("learning, project %s: %s", project, error.summary)
            if project is not None:
                self._tell(project, error.summary)
        except Exception:
            logger.exception("learning, project %s", project)

    def _remember_runs(self) -> None:
        """Read from disk what the page shows, and look again at what waited."""
        trainer = self.trainer
        over = [run for project in trainer.projects for run in trainer.of(project)[:_EACH] if run.is_over]
        self._past = sorted(over, key=lambda run: run.id, reverse=True)[:_PAST]
        self._wake.set()

    def _resume(self) -> None:
        self._take_over()
        self._remember_runs()
        runs = self.trainer.runs
        passed = {each: next((run for run in runs.of(each) if run.state == "passed"), None) for each in runs.projects()}
        self.trainer.recover()
        self._remember_runs()
        for project, latest in passed.items():
            if latest is not None and not latest.settled and self.has_token:
                self._service.pool.refresh(project)
                self.rollouts.add(project)

    def _take_over(self) -> None:
        """Give what an older Spica has kept of Label Studio's projects their names, before trainings are taken up."""
        old = {key for key in active.projects(self._settings.data_dir) if not key.created}
        for project in sorted(old.union(self.trainer.runs.projects(known=False))):
            if self.has_token:
                self._guarded(project, partial(self._take_over_of, project.number))

    def _take_over_of(self, number: int) -> None:
        with self._client() as client:
            take_over(self._settings.data_dir, client.project(number).key)

    def _look_around(self) -> None:
        """Projects with the switch whose events may have been lost."""
        if not self.has_token:
            return
        with self._client() as client:
            for body in _all_projects(client):
                if self._stop.is_set():
                    return
                project = ProjectKey.read(body)
                if project is not None and _switch(body) and self._is_ours(client, project):
                    self._guarded(project, partial(self._look, project, False, on_event=False))

    def _is_ours(self, client: LabelStudioClient, project: ProjectKey) -> bool:
        """Whether this server is connected with a project: listing its models makes Label Studio ask each.

        If so, its events get the secret, which those of a model that was connected by the form lack.
        """
        asked = datetime.now(UTC)
        rows = client.backends(project.number)
        ours = [state for state in self._service.projects if state.project == project and state.seen >= asked]
        for row in rows:
            if ours and row.model_version == ours[0].version:
                client.ensure_webhook(project.number, row.url)
        return bool(ours)

    def _heed(self, look: Look) -> None:
        """Look at what events were about, if Label Studio has sent them."""
        meant = False
        if look.created:
            with self._client() as client:
                meant = client.call("GET", f"/api/projects/{look.project.number}/").get("created_at") in look.created
            if not meant:
                logger.warning("project %s: a START_TRAINING that is not Label Studio's", look.project)
        if meant or look.submissions:
            self._look(look.project, look.asked and meant)

    def _look(self, project: ProjectKey, asked: bool, *, on_event: bool = True) -> None:
        if self.trainer.current is not None:
            self._postpone(project, asked, on_event)
            return
        with self._client() as client:
            try:
                self._consider(client, project, asked=asked, cause=BUTTON, on_event=on_event)
            except TrainingRunningError as error:
                self._tell(project, error.summary)
                self._postpone(project, asked, on_event)

    def _postpone(self, project: ProjectKey, asked: bool, on_event: bool) -> None:
        """Look again when the training under way is over; of too many projects, with the look every few minutes."""
        with self._lock:
            if len(self._later) >= PROJECTS and project not in self._later:
                return
            before = self._later.get(project, (False, False))
            self._later[project] = (asked or before[0], on_event or before[1])

    def _consider(
        self, client: LabelStudioClient, project: ProjectKey, *, asked: bool, cause: str, on_event: bool = True
    ) -> Run | None:
        """Count what is new, and start a training if it is enough."""
        from spica.training.submissions import count_new

        body: Json = client.call("GET", f"/api/projects/{project.number}/")
        found = ProjectKey.read(body) or project
        refuse_another(found, project, where=client.url)
        project = found
        switch, title = _switch(body), str(body.get("title") or "")
        needed = 1 if asked else self._settings.train_after
        new = count_new(client, project.number, self._learned(project, asked)).total
        standing = Standing(project, title, switch, new, self._settings.train_after, _now())
        self._stand(standing)
        if new < needed:
            if asked:
                note = "there is nothing new to learn: every submission has been learned from already"
                self._stand(replace(standing, note=note))
                raise NothingToLearnError(
                    note, where=f"project {project}", hint="correct and submit some images, then start again"
                )
            return None
        if not asked and (not switch or (not on_event and self._has_failed_on(project, new))):
            return None
        run = self.trainer.begin(project, title=title, cause=cause if asked else f"{new} new submissions", new=new)
        self._stand(standing)
        return run

    def _learned(self, project: ProjectKey, asked: bool) -> dict[int, str]:
        """What was learned from last: by the active version, or (unless a person asks) by one that was refused."""
        from spica.models.card import read_card

        if not asked:
            judged = next((run for run in self.trainer.of(project) if run.is_judged), None)
            if judged is not None and judged.learned is not None:
                return _numbered(judged.learned)
        version, folder = self._parent(project)
        if folder is None or version == self._service.pool.base_id:
            return {}
        training = read_card(folder).training
        return _numbered((training or {}).get("learned") or {})

    def _parent(self, project: ProjectKey) -> tuple[str, Path | None]:
        """Which version answers a project, and its folder. It is looked up: the project may not have asked yet."""
        self._service.pool.refresh(project)
        return self._service.parent(project, self._settings.data_dir)

    def _has_failed_on(self, project: ProjectKey, new: int) -> bool:
        latest = next(iter(self.trainer.of(project)), None)
        return latest is not None and latest.state in ("failed", "cancelled") and latest.new >= new

    # --- what becomes of it -----------------------------------------------------------------------------------------

    def _ended(self, run: Run) -> Run:
        """Put what has passed in front of people; on the run's thread.

        Raises:
            StorageError: it can't be written or made active now, as on a full disk; it is called again later.
        """
        self._postpone(run.project, asked=False, on_event=False)  # to count what came in meanwhile
        try:
            return self._served(run, run.version) if run.state == "passed" and run.version is not None else run
        finally:
            if run.is_judged:  # a refused one takes its space too, and nothing is rolled out for it
                self.rollouts.prune(keep=[name for name in (run.version, run.parent) if name is not None])

    def _served(self, run: Run, version: str) -> Run:
        """Make what has passed the active version, and have it answer.

        Raises:
            StorageError: as :meth:`_ended`.
        """
        # Written before anything is changed, so that a server that is killed from now on finds what is left to do.
        run = replace(run, finished=run.finished or _now())
        self.trainer.runs.write(run)
        try:
            self._activate(run, version)
        except ActiveChangedError as error:
            note = f"It is not made active, because somebody chose another version meanwhile: {error.summary}"
            return replace(run, notes=(*run.notes, note), settled=True)
        except StorageError:  # this passes
            raise
        except SpicaError as error:
            note = f"it could not be made active: {error.summary}"
            return replace(run, notes=(*run.notes, note), settled=True)
        served = self._service.pool.refresh(run.project)
        if served.problem is not None:
            note = f"{served.version} goes on answering: {served.problem.summary}"
            return replace(run, notes=(*run.notes, note), settled=True)
        return run

    def _activate(self, run: Run, version: str) -> None:
        """Make what has passed the active version, unless somebody has chosen one since the training began.

        Raises:
            ActiveChangedError: somebody has.
            StorageError: it can't be told what is active, or it can't be written.
            SpicaError: it can't be done.
        """
        data_dir = self._settings.data_dir
        if run.active is not None:
            active.read(data_dir, run.project)  # a folder that is away for a moment is nobody's choice
        step = step_of(data_dir, run.project)
        if step is not None and step["version"] == version:  # a server that was killed then has done it
            return
        if step != run.active:  # also where the same version was chosen again: that is a choice, too
            now = step["version"] if step is not None else None
            raise ActiveChangedError(
                "the active version is not the one that the training began with",
                where=f"project {run.project}",
                expected=run.parent,
                got=(now or "the weights of the server") + (f", by {step['by']}" if step is not None else ""),
                hint=f"`spica models activate {version} --project {run.project}` activates it nevertheless",
            )
        active.activate(
            data_dir,
            run.project,
            version,
            base=self._service.pool.base_id,
            why=run.why or "passed",
            by="training",
            expected=step["version"] if step is not None else None,
        )
        logger.info("project %s: %s is active now", run.project, version)

    def _tell(self, project: ProjectKey, text: str) -> None:
        logger.info("project %s: %s", project, text)
        with self._lock:
            before = self._standing.get(project)
        if before is None:
            before = Standing(project, "", None, None, self._settings.train_after, _now())
        self._stand(replace(before, note=text, looked=_now()))

    def _stand(self, standing: Standing) -> None:
        pool = self._service.pool
        with self._lock:
            self._standing[standing.project] = standing
            self._standing.move_to_end(standing.project)
            excess = max(0, len(self._standing) - PROJECTS)
            others = list(self._standing)[:-1] if excess else []
        strangers = [each for each in others if pool.served(each).version == pool.base_id]
        with self._lock:
            for project in strangers[:excess]:
                self._standing.pop(project, None)

    def _client(self) -> LabelStudioClient:
        secret = self._settings.label_studio_api_key
        if secret is None:
            raise _no_token()
        return LabelStudioClient(self._settings.label_studio_url, secret.get_secret_value())


def _no_token() -> AuthenticationError:
    return AuthenticationError(
        "this server has no access token of Label Studio's, so it can't learn from submissions",
        where="LABEL_STUDIO_API_KEY of the model server",
        hint="copy the token from Label Studio's page Account & Settings, and start the server with it",
    )


def _all_projects(client: LabelStudioClient) -> list[Json]:
    found: list[Json] = []
    page = 1
    while True:
        params: dict[str, str | int] = {
            "page": page,
            "page_size": 100,
            "include": "id,title,created_at,min_annotations_to_start_training",
        }
        body = client.call("GET", "/api/projects/", params=params)
        found += body["results"]
        if not body.get("next"):
            return found
        page += 1


def _numbered(learned: Mapping[Any, Any]) -> dict[int, str]:
    """JSON has no numbers as keys."""
    return {int(number): str(updated) for number, updated in learned.items()}


def _switch(body: Json) -> bool:
    every = body.get("min_annotations_to_start_training")
    return isinstance(every, int) and every > 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""When a project is trained, and what becomes of it.

Rules:

* With Label Studio's switch *Start model training on annotation submission*, a training starts after a number of new
  submissions (``train_after``). Without it, submissions start nothing.
* The button *Start Training*, and this server's page, start one at once if there is anything to learn.
* What is new is counted in Label Studio, against what was learned from last: no event is relied upon. Projects with the
  switch are looked at when events come, at the server's start, and every few minutes.
* After a failure the next submission or button tries again; the look every few minutes alone does not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from spica.errors import AuthenticationError, SpicaError, StorageError, TrainingError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.protocol import WebhookRequest
from spica.models import active
from spica.models.active import ActiveChangedError
from spica.project import ProjectKey
from spica.server.jobs import Jobs
from spica.server.rollout import Rollouts
from spica.server.service import Service
from spica.server.trainer import Train, Trainer, no_token, step_of
from spica.server.triggers import START, TrainingTrigger, Triggers
from spica.settings import Settings
from spica.training.runs import Run
from spica.training.takeover import take_over

logger = logging.getLogger(__name__)

EVERY_S = 300.0
"""Seconds between two looks at the projects with the switch, for events that never arrived."""

BUTTON = "Start Training in Label Studio"
PAGE = "asked for on the page or by a program"
_SHOWN = 20
_REFUSED = 1000
_SHOWN_OF_A_PROJECT = 5


class NothingToLearnError(TrainingError):
    """No submission is new."""

    code = "nothing_to_learn"
    status = 409


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """What the last look at a project found.

    Attributes:
        switch: whether Label Studio's switch is on; None if nobody has looked yet.
        new: submissions that nothing was learned from yet; None if they could not be counted.
        needed: how many start a training.
        looked: when, ISO 8601, UTC.
        note: for people.
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
        return {**asdict(self), "project": self.project.number, "created": self.project.created}


class Learning:
    """The learning of one server. Requests may call it; nothing but :meth:`ask` waits for Label Studio.

    Args:
        service: the models, and the threads.
        jobs: the bulk jobs, for the predictions of a new version.
        settings: the server's.
        triggers: with other times, for tests.
        train: does a job, for tests.
        every_s: see :data:`EVERY_S`.
    """

    def __init__(
        self,
        service: Service,
        jobs: Jobs,
        settings: Settings,
        *,
        triggers: Triggers | None = None,
        train: Train | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        self._service = service
        self._settings = settings
        self._triggers = triggers or Triggers()
        self._every_s = every_s
        self._statuses: dict[ProjectKey, TrainingStatus] = {}
        self._past: list[Run] = []
        self._refused: set[ProjectKey] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = service.workers.stopping
        self.trainer = Trainer(settings, self._stopping, parent_of=self._parent, on_end=self._put_in_front, train=train)
        self.rollouts = Rollouts(service, jobs, settings, tell=self._note)
        service.pool.on_exchange(self.rollouts.add)

    def start(self) -> None:
        """Begin to look, and take up what an earlier server has left."""
        self.rollouts.start()
        self._service.workers.spawn("learning", self._work, wake=self._interrupt)

    def close(self) -> None:
        """End with the server's threads."""
        self._service.workers.close()

    def _interrupt(self) -> None:
        self.trainer.interrupt()
        self._wake.set()

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
            return {**answer, "note": no_token().summary}
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
        if project is not None and project not in self._refused and len(self._refused) < _REFUSED:
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
        self._wake.set()
        return run

    def cancel(self, number: int) -> Run:
        """End the training of the project of this number, and drop what was asked for meanwhile.

        Raises:
            NotFoundError: there is none here.
            TrainingOverError: it has come to its end just now.
        """
        self._triggers.forget(number)
        return self.trainer.cancel(number)

    @property
    def has_token(self) -> bool:
        """Whether annotations can be fetched at all."""
        return self._settings.label_studio_api_key is not None

    @property
    def statuses(self) -> list[TrainingStatus]:
        """What the last looks have found, by project."""
        with self._lock:
            return [self._statuses[project] for project in sorted(self._statuses)]

    @property
    def runs(self) -> list[Run]:
        """The training under way, then the latest that are over: at most five of a project, twenty in all."""
        current = self.trainer.current
        return ([current] if current is not None else []) + self._past

    # --- the looks and the trainings, on a thread of their own ------------------------------------------------------

    def _work(self) -> None:
        for step in (self._take_over, self._complete, self.trainer.begin_again, self._read_runs):
            self._guarded(None, step)
        next_round = time.monotonic()
        while not self._stopping.is_set():
            if self.trainer.current is not None:
                self._train()
                next_round = time.monotonic()
                continue
            trigger = self._triggers.next()
            if trigger is not None:
                # anybody may send START_TRAINING with any number: no notes on projects that nobody knows
                proven = trigger.annotations or trigger.project in {state.project for state in self._service.projects}
                self._guarded(trigger.project if proven else None, partial(self._heed, trigger))
                continue
            if time.monotonic() >= next_round:
                self._guarded(None, self._look_around)
                next_round = time.monotonic() + self._every_s
                continue
            wait_s, until_round = self._triggers.wait_s(), next_round - time.monotonic()
            self._wake.wait(max(0.01, until_round if wait_s is None else min(wait_s, until_round)))
            self._wake.clear()

    def _guarded(self, project: ProjectKey | None, step: Callable[[], Any]) -> None:
        """A look that fails is noted, and does not end the others."""
        try:
            step()
        except SpicaError as error:
            logger.warning("learning, project %s: %s", project, error.summary)
            if project is not None:
                self._note(project, error.summary)
        except Exception:
            logger.exception("learning, project %s", project)

    def _take_over(self) -> None:
        """Give what an older Spica has kept of Label Studio's projects their names, before trainings are taken up."""
        old = {key for key in active.projects(self._settings.data_dir) if not key.created}
        for project in sorted(old.union(self.trainer.runs.projects(known=False)) if self.has_token else ()):
            self._guarded(project, partial(self._take_over_of, project.number))

    def _take_over_of(self, number: int) -> None:
        with self._client() as client:
            take_over(self._settings.data_dir, client.project(number).key)

    def _complete(self) -> None:
        """Go on with what has passed where a server that is gone has ended."""
        self._read_runs()
        for run in self.trainer.complete():
            if self.has_token:
                self._service.pool.refresh(run.project)
                self.rollouts.add(run.project)

    def _train(self) -> None:
        run = self.trainer.run()
        self._read_runs()
        if self._stopping.is_set():
            return
        if run is not None:  # count what came in meanwhile
            self._guarded(run.project, partial(self._look, run.project, asked=False, on_event=False))
        self._guarded(None, self.trainer.begin_again)

    def _read_runs(self) -> None:
        """Read from disk what the page shows."""
        runs = self.trainer.runs
        over = [run for key in runs.projects() for run in runs.of(key)[:_SHOWN_OF_A_PROJECT] if run.is_over]
        self._past = sorted(over, key=lambda run: run.id, reverse=True)[:_SHOWN]

    def _look_around(self) -> None:
        """Projects with the switch whose events may have been lost."""
        if not self.has_token:
            return
        with self._client() as client:
            for row in client.projects(include="id,title,created_at,min_annotations_to_start_training"):
                if self._stopping.is_set() or self.trainer.current is not None:
                    return
                if row.train_every and self._is_ours(client, row.key):
                    self._guarded(row.key, partial(self._look, row.key, asked=False, on_event=False))

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

    def _heed(self, trigger: TrainingTrigger) -> None:
        """Look at what events were about, if Label Studio has sent them."""
        meant = False
        if trigger.created:
            with self._client() as client:
                meant = client.project(trigger.project.number).created_at in trigger.created
            if not meant:
                logger.warning("project %s: a START_TRAINING that is not Label Studio's", trigger.project)
        if meant or trigger.annotations:
            self._look(trigger.project, asked=trigger.button and meant)

    def _look(self, project: ProjectKey, *, asked: bool, on_event: bool = True) -> None:
        with self._client() as client:
            self._consider(client, project, asked=asked, cause=BUTTON, on_event=on_event)

    def _consider(
        self, client: LabelStudioClient, project: ProjectKey, *, asked: bool, cause: str, on_event: bool = True
    ) -> Run | None:
        """Count what is new, and begin a training if it is enough."""
        from spica.training.submissions import count_new

        row = client.known_project(project)
        key, switch = row.key, row.train_every > 0
        new = count_new(client, key.number, self._learned(key, asked)).total
        status = TrainingStatus(key, row.title, switch, new, self._settings.train_after, _now())
        self._remember(status)
        if asked and not new:
            note = "there is nothing new to learn: every submission has been learned from already"
            self._remember(replace(status, note=note))
            hint = "correct and submit some images, then start again"
            raise NothingToLearnError(note, where=f"project {key}", hint=hint)
        if not asked:
            if not switch or new < self._settings.train_after or (not on_event and self._has_failed_on(key, new)):
                return None
            cause = f"{new} new submissions"
        return self.trainer.begin(key, title=row.title, cause=cause, new=new)

    def _learned(self, project: ProjectKey, asked: bool) -> dict[int, str]:
        """What was learned from last: by the active version, or (unless a person asks) by one that was refused."""
        from spica.models.card import read_card

        judged = next((run for run in self.trainer.runs.of(project) if run.is_judged), None)
        if not asked and judged is not None and judged.learned is not None:
            return _numbered(judged.learned)
        version, folder = self._parent(project)
        if folder is None or version == self._service.pool.base_id:
            return {}
        return _numbered((read_card(folder).training or {}).get("learned") or {})

    def _parent(self, project: ProjectKey) -> Any:
        """Which version answers a project, and its folder. It is looked up: the project may not have asked yet."""
        self._service.pool.refresh(project)
        return self._service.parent(project, self._settings.data_dir)

    def _has_failed_on(self, project: ProjectKey, new: int) -> bool:
        latest = next(iter(self.trainer.runs.of(project)), None)
        return latest is not None and latest.state in ("failed", "cancelled") and latest.new >= new

    # --- what becomes of a training ---------------------------------------------------------------------------------

    def _put_in_front(self, run: Run) -> Run:
        """Make what has passed the active version, and have it answer.

        Raises:
            StorageError: it can't be written or made active now, as on a full disk; it is called again later.
        """
        try:
            if run.state != "passed" or run.version is None:
                return run
            # Written before anything is changed, so that a server that is killed from now on finds what is left to do.
            self.trainer.runs.write(run)
            try:
                self._activate(run, run.version)
            except StorageError:  # this passes
                raise
            except ActiveChangedError as error:
                return _settled(
                    run, f"It is not made active, because somebody chose another version meanwhile: {error.summary}"
                )
            except SpicaError as error:
                return _settled(run, f"it could not be made active: {error.summary}")
            served = self._service.pool.refresh(run.project)
            if served.problem is not None:
                return _settled(run, f"{served.version} goes on answering: {served.problem.summary}")
            return run
        finally:
            if run.is_judged:  # a refused one takes its space too, and nothing is rolled out for it
                self.rollouts.prune(keep=[name for name in (run.version, run.parent) if name is not None])

    def _activate(self, run: Run, version: str) -> None:
        """Make what has passed the active version, unless somebody has chosen one since the training began.

        Raises:
            ActiveChangedError: somebody has.
            StorageError: what is active can't be read or written.
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

    def _note(self, project: ProjectKey, text: str) -> None:
        """Show people a note on a project."""
        logger.info("project %s: %s", project, text)
        with self._lock:
            status = self._statuses.get(project)
        if status is None:
            status = TrainingStatus(project, "", None, None, self._settings.train_after, _now())
        self._remember(replace(status, note=text, looked=_now()))

    def _remember(self, status: TrainingStatus) -> None:
        with self._lock:
            self._statuses[status.project] = status

    def _client(self) -> LabelStudioClient:
        secret = self._settings.label_studio_api_key
        if secret is None:
            raise no_token()
        return LabelStudioClient(self._settings.label_studio_url, secret.get_secret_value())


def _settled(run: Run, note: str) -> Run:
    """Nothing of it is to be shown in Label Studio."""
    return replace(run, notes=(*run.notes, note), settled=True)


def _numbered(learned: Mapping[Any, Any]) -> dict[int, str]:
    """JSON has no numbers as keys."""
    return {int(number): str(updated) for number, updated in learned.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Killed with -9 at random moments of a training, its process or its server: nothing half-done is ever in front of
people, and what is begun again ends as if nothing had happened.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from label_studio_helpers import LABEL_CONFIG, delete_project
from learning_lane import ANNOTATED, BASE, Lane
from live_model import Folder
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.models import active

pytestmark = [
    pytest.mark.label_studio,
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9"),
]

SEED = 20261125


@dataclass(frozen=True)
class Kill:
    """One of the twenty.

    Attributes:
        victim: ``server``, or ``worker`` for the process that trains.
        moment: see :func:`has_come`.
        within_s: it falls so long after the moment at most.
    """

    victim: str
    moment: str
    within_s: float = 0.0


# Never the server three times in one training: it would not be begun again.
FIRST = (
    Kill("worker", "fetch", 0.3),
    Kill("server", "epoch", 1.0),
    Kill("worker", "checkpoint", 0.01),
    Kill("server", "conversion", 4.0),
    Kill("worker", "in place", 0.05),
    Kill("server", "gate", 0.5),
    Kill("worker", "gate", 0.5),
    Kill("server", "activation", 0.1),
    Kill("server", "rollout", 0.5),
    Kill("worker", "epoch", 1.0),
)
SECOND = (
    Kill("server", "fetch", 0.3),
    Kill("worker", "conversion", 4.0),
    Kill("server", "checkpoint", 0.01),
    Kill("worker", "epoch", 1.0),
    Kill("server", "in place", 0.05),
    Kill("worker", "gate", 0.5),
    Kill("server", "activation"),
    Kill("server", "rollout", 0.1),
    Kill("worker", "fetch", 1.0),
)
BRIEF = {"checkpoint": 0.003, "in place": 0.003, "activation": 0.003}
"""Moments that are over in milliseconds: so many seconds between two looks."""

LAST = Kill("server", "epoch", 0.5)
"""Of the second lane, in the training that is let through afterwards."""


FEW = (Kill("server", "epoch", 0.5), Kill("worker", "gate", 0.5), Kill("server", "activation"))
"""Of the one lane that is walked in every run of the tests."""


@pytest.fixture
def make_lane(label_studio: LabelStudioProcess, folder: Folder, tmp_path: Path) -> Iterator[Callable[[str], Lane]]:
    """Projects with the same images, each with a server and a store of its own."""
    with ExitStack() as stack:

        def make(name: str) -> Lane:
            client: LabelStudioClient = stack.enter_context(label_studio.client())
            project = client.create_project(f"killed {name}", LABEL_CONFIG).id
            stack.callback(delete_project, client, project)
            lane = Lane(name, label_studio, client, project, folder, tmp_path / f"データ {name}")
            return stack.enter_context(lane)

        yield make


def test_kills_of_a_training_and_its_server(make_lane: Callable[[str], Lane]) -> None:
    """After each kill every version in the store is whole, one is active and answers; the next training is let through
    and adds a version.
    """
    live_through(make_lane("few"), FEW, None)


@pytest.mark.exhaustive
def test_twenty_kills_of_trainings_and_servers(make_lane: Callable[[str], Lane]) -> None:
    """The same with twenty kills; the last training adds the same version whether its server was killed in the midst of
    it or not.
    """
    assert len(FIRST) + len(SECOND) + 1 == 20
    lanes = [make_lane(name) for name in ("first", "second")]
    with ThreadPoolExecutor(2) as pool:
        last = list(pool.map(live_through, lanes, (FIRST, SECOND), (None, LAST)))
    assert last[0] == last[1], "what was begun again has other weights than what was never broken"


def live_through(lane: Lane, kills: Sequence[Kill], last: Kill | None) -> str:
    """All kills of a lane, then a training that is let through; the content of the version that it adds."""
    chance = random.Random(f"{SEED} {lane.name}")  # noqa: S311 - seeded on purpose
    lane.start()
    lane.fill()
    for kill in kills:
        strike(lane, kill, chance)
    before = lane.trained()
    assert len(before) == 1, "the same submissions gave other weights after a break"
    begin_from_the_weights(lane)
    lane.submit(ANNOTATED)
    run = lane.ask()
    if last is not None:
        strike(lane, last, chance)
    ended = lane.until(
        lambda: lane.run if lane.run is not None and lane.run.is_over else None, "a training got through"
    )
    assert ended.id == run
    assert ended.is_judged, ended
    assert ended.attempts == (1 if last is None else 2)
    (added,) = set(lane.trained()) - set(before)
    assert ended.version == added
    lane.until(lambda: lane.served() == lane.check(), "the active version answers", 0.2)
    assert lane.check() == (added if ended.state == "passed" else BASE)
    assert "Traceback" not in lane.said()
    assert "damaged" not in lane.said()
    return added.rpartition("-")[2]


def begin_from_the_weights(lane: Lane) -> None:
    """Undo what a training has put in front of people, as a person would: all submissions are new again."""
    if lane.check() != BASE:
        active.rollback(lane.data_dir, lane.key, by="a test")


def strike(lane: Lane, kill: Kill, chance: random.Random) -> None:
    """Start a training if there is none, kill at the moment, look at what is left, and start the server again."""
    if lane.run is None or lane.run.is_over:
        begin_from_the_weights(lane)
        lane.ask()
    known = lane.trained()
    epoch = chance.randint(2, 5)
    lane.until(lambda: has_come(lane, kill.moment, known, epoch), f"{kill} was due", BRIEF.get(kill.moment, 0.02))
    threading.Event().wait(chance.uniform(0.0, kill.within_s))
    reached = lane.run
    assert reached is not None
    if kill.victim == "worker":
        lane.kill_worker()
        ended = lane.until(lambda: lane.run if lane.run is not None and lane.run.is_over else None, "its end is noted")
        assert (ended.id, ended.state) == (reached.id, "failed"), kill
        assert "killed" in ended.why
    else:
        lane.kill_server()
        lane.check()
        lane.start()
    lane.until(lambda: lane.served() == lane.check(), "the active version answers", 0.2)
    if reached.state == "passed":
        lane.until(lambda: lane.check() == reached.version, "what has passed is put in front of people all the same")
        lane.until(lambda: lane.run is not None and lane.run.settled, "Label Studio shows it")
        assert lane.served() == reached.version
    elif kill.moment == "epoch" and kill.victim == "server":
        again = lane.until(lambda: len(lane.workers) > 1 and lane.run, "it is begun again")
        assert (again.id, again.is_over) == (reached.id, False)
        assert again.epoch >= reached.epoch - 1, "it goes on after the last whole epoch"


def has_come(lane: Lane, moment: str, known: Sequence[str], epoch: int) -> bool:
    """Whether the training has come so far; it must not have come to its end without."""
    run = lane.run
    if run is None:
        return False
    if moment in ("activation", "rollout"):
        assert run.state in ("running", "passed"), run
        pointer = active.read(lane.data_dir, lane.key)
        return run.state == "passed" and (
            moment == "activation" or (pointer is not None and pointer.version == run.version)
        )
    assert not run.is_over, run
    if moment == "checkpoint":
        return any(lane.runs.folder(run).glob("loop/.last.ckpt.*"))
    if moment == "in place":
        return lane.trained() != known
    if moment == "epoch":
        return run.epoch >= epoch
    stages = {"fetch": "reading annotations", "conversion": "converting the network", "gate": "comparing it"}
    return run.stage.startswith(stages[moment])

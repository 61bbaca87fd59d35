"""What Label Studio's events mean, by a clock that only the test moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spica.labelstudio.protocol import WebhookRequest
from spica.project import ProjectKey
from spica.server.triggers import TrainingTrigger, Triggers

PAYLOADS = Path(__file__).parent.parent / "payloads"


RECORDED = ProjectKey(1, 1_795_415_728)
"""The project of the recorded events; their `/setup` calls it so too."""


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def start(*, every: int, total: int, project: int = 1) -> dict[str, Any]:
    """A START_TRAINING."""
    return {"action": "START_TRAINING", "project": _project(project, every, total)}


def submission(
    number: int, *, every: int = 1, total: int = 1, updated: str = "t0", action: str = "ANNOTATION_CREATED"
) -> dict[str, Any]:
    """An annotation that was submitted."""
    annotation = {"id": number, "updated_at": updated}
    return {"action": action, "annotation": annotation, "project": _project(1, every, total)}


def _project(project: int, every: int, total: int) -> dict[str, Any]:
    return {
        "id": project,
        "min_annotations_to_start_training": every,
        "total_annotations_number": total,
        "skipped_annotations_number": 0,
    }


def looks(*bursts: list[dict[str, Any]]) -> list[TrainingTrigger]:
    """What becomes of bursts of events, with a quiet time after each."""
    clock = Clock()
    triggers = Triggers(quiet_s=3, longest_s=30, clock=clock)
    found: list[TrainingTrigger] = []
    for burst in bursts:
        for body in burst:
            triggers.hear(WebhookRequest.model_validate(body))
            clock.now += 0.1
        clock.now += 3
        while (trigger := triggers.next()) is not None:
            found.append(trigger)
    return found


BUTTON, SWITCH = TrainingTrigger(ProjectKey(1), button=True), TrainingTrigger(ProjectKey(1), button=False)


@pytest.mark.parametrize(
    ("bursts", "expected"),
    [
        pytest.param([[]], [], id="silence"),
        pytest.param([[{"action": "PROJECT_UPDATED", "project": {"id": 1}}]], [], id="an event about something else"),
        pytest.param([[{"action": "ANNOTATION_CREATED"}]], [], id="an event without a project"),
        pytest.param([[submission(1, every=0)]], [SWITCH], id="a submission, the switch off"),
        pytest.param([[start(every=0, total=5)]], [BUTTON], id="the button, the switch off"),
        pytest.param([[start(every=1, total=5)]], [BUTTON], id="the button, the switch on, nothing known"),
        pytest.param([[start(every=1, total=1), submission(1)]], [SWITCH], id="the switch, then its submission"),
        pytest.param([[submission(1), start(every=1, total=1)]], [SWITCH], id="the other way round"),
        pytest.param(
            [[submission(7, total=4)], [start(every=1, total=4)]], [SWITCH, BUTTON], id="a submission, later the button"
        ),
        pytest.param(
            [[start(every=1, total=4)], [start(every=1, total=5)]],
            [BUTTON, SWITCH],
            id="the switch, no webhook",
        ),
        pytest.param([[start(every=20, total=30)]], [BUTTON], id="N does not divide the annotations"),
        pytest.param(
            [[start(every=20, total=20), submission(20, every=20, total=20)]], [SWITCH], id="N divides the annotations"
        ),
        pytest.param([[start(every=0, total=3), start(every=0, total=3)]], [BUTTON], id="the button twice"),
        pytest.param([[submission(n, total=n) for n in range(1, 9)]], [SWITCH], id="a burst of submissions"),
        pytest.param(
            [[{"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": {"id": 1}}]],
            [SWITCH],
            id="annotations deleted",
        ),
        pytest.param(
            [[start(every=0, total=1), start(every=0, total=1, project=2)]],
            [BUTTON, TrainingTrigger(ProjectKey(2), button=True)],
            id="two projects",
        ),
        pytest.param(
            [[{"action": "START_TRAINING", "project": {"id": 1, "min_annotations_to_start_training": "x"}}]],
            [BUTTON],
            id="columns of odd types",
        ),
    ],
)
def test_what_a_burst_means(bursts: list[list[dict[str, Any]]], expected: list[TrainingTrigger]) -> None:
    """The button is told from the switch, and a burst of events is one look at each project."""
    assert looks(*bursts) == expected


def test_what_was_heard_can_be_dropped() -> None:
    """After a cancel nothing of the project waits; of others it does."""
    clock = Clock()
    triggers = Triggers(clock=clock)
    for number in (1, 2):
        triggers.hear(WebhookRequest.model_validate(start(every=0, total=1, project=number)))
    triggers.forget(1)
    clock.now += 60
    assert triggers.next() == TrainingTrigger(ProjectKey(2), button=True)
    assert triggers.next() is None


def test_a_burst_without_end_is_looked_into() -> None:
    """Submissions that never pause for the quiet time are looked at after the longest time all the same."""
    clock = Clock()
    triggers = Triggers(quiet_s=3, longest_s=30, clock=clock)
    for number in range(1, 16):
        triggers.hear(WebhookRequest.model_validate(submission(number, total=number)))
        assert triggers.next() is None
        clock.now += 2
    assert triggers.next() == SWITCH


def test_the_button_does_not_wait() -> None:
    """With the switch off the button is acted on at once; a submission waits for the quiet time."""
    clock = Clock()
    triggers = Triggers(quiet_s=3, clock=clock)
    assert triggers.wait_s() is None
    triggers.hear(WebhookRequest.model_validate(submission(1, every=0)))
    assert triggers.wait_s() == 3
    triggers.hear(WebhookRequest.model_validate(start(every=0, total=1)))
    assert triggers.wait_s() == 1
    clock.now += 1
    assert triggers.next() == BUTTON


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("webhook-start-training", [TrainingTrigger(RECORDED, button=True)]),
        ("webhook-annotation-created", [TrainingTrigger(RECORDED, button=False)]),
        ("webhook-annotation-updated", [TrainingTrigger(RECORDED, button=False)]),
        ("webhook-annotations-created", [TrainingTrigger(RECORDED, button=False)]),
        ("webhook-annotations-deleted", [TrainingTrigger(RECORDED, button=False)]),
        ("webhook-tasks-created", []),
        ("webhook-project-updated", []),
    ],
)
def test_recorded_events(name: str, expected: list[TrainingTrigger]) -> None:
    """What a real Label Studio sent is understood."""
    body = json.loads((PAYLOADS / f"{name}.json").read_text("utf-8"))["request"]["body"]
    assert looks([body]) == expected

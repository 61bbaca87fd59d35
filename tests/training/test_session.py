"""One training of a project, step by step; Label Studio and the networks are scripted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from annotated_images import photograph
from project_keys import ONE
from spica.errors import DataSetError
from spica.labelstudio.api.annotations import AnnotatedTask
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.control_tags import RectangleControl
from spica.labelstudio.label_config import parse_label_config
from spica.training import holdout, loop, session
from spica.training.dataset import DataSet
from spica.training.process import Request
from training_data import wheat


def request(folder: Path, **settings: Any) -> Request:
    """For a project whose training is asked for nothing yet."""
    given = {"holdout_share": 0.2, "holdout_min": 2, "threshold": 0.5, **settings}
    return Request(ONE, "r", str(folder / "run"), str(folder), "", "", None, None, given, 1, 2**34)


def controls(*thresholds: float | None) -> tuple[RectangleControl, ...]:
    """Control tags, each with so high a threshold of its own."""
    own = ["" if told is None else f' score_threshold="{told}"' for told in thresholds]
    tags = [
        f'<RectangleLabels name="c{number}" toName="i"{each}><Label value="spike"/></RectangleLabels>'
        for number, each in enumerate(own)
    ]
    return parse_label_config(f'<View><Image name="i" value="$image"/>{"".join(tags)}</View>').controls


class Models:
    """Stands for a Label Studio that knows of connected models alone."""

    def __init__(self, *extra_params: str | None) -> None:
        self._models = [{"extra_params": told} for told in extra_params]

    def call(self, method: str, path: str, *, params: Any) -> list[dict[str, Any]]:
        assert (method, path, params) == ("GET", "/api/ml/", {"project": 1})
        return self._models


@pytest.mark.parametrize(
    ("models", "tags", "expected"),
    [
        pytest.param([], [None], 0.5, id="the server's"),
        pytest.param([None], [None], 0.5, id="no extra params"),
        pytest.param(['{"score_threshold": 0.3}', '{"score_threshold": 0.1}'], [None], 0.3, id="the first model's"),
        pytest.param(['{"score_threshold": 0.3}'], [0.7], 0.7, id="the tag's before the model's"),
        pytest.param([None], [0.7, 0.6], 0.6, id="the lowest of two tags"),
    ],
)
def test_the_gate_judges_by_what_the_project_shows(
    tmp_path: Path, models: list[str | None], tags: list[float | None], expected: float
) -> None:
    """The threshold is the one that the project's predictions are shown by."""
    client = cast("LabelStudioClient", Models(*models))
    assert session._threshold(request(tmp_path), client, controls(*tags)) == expected


class Submissions:
    """Stands for a Label Studio with five annotated tasks; the labels of two have left the configuration."""

    url = "http://label.studio"
    config = """<View><Image name="i" value="$i"/>
      <RectangleLabels name="l" toName="i"><Label value="a"/></RectangleLabels></View>"""

    def project(self, _: int) -> Any:
        return SimpleNamespace(label_config=self.config)

    def annotated_count(self, _: int) -> int:
        return 5

    def annotated_tasks(self, _: int) -> Iterator[AnnotatedTask]:
        for number in range(5):
            value = {"x": 1, "y": 1, "width": 50, "height": 50, "rectanglelabels": ["gone" if number > 2 else "a"]}
            region = {"id": "r", "from_name": "l", "to_name": "i", "type": "rectanglelabels", "value": value}
            annotation = {"id": number, "result": [region]}
            yield AnnotatedTask.read({"id": number, "data": {"i": f"{number}.jpg"}, "annotations": [annotation]})

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        return photograph(int(uri[0]))


def test_a_training_goes_on_without_what_is_in_doubt(tmp_path: Path) -> None:
    """Where nobody can be asked, more than a tenth in doubt ends no training: it is left out, and the notes say so."""
    everything = cast("Any", Submissions())
    data, _ = session._material(request(tmp_path), everything, everything, controls(None), lambda **_: None)
    assert [each.task for each in data.examples] == [0, 1, 2]
    assert data.problems == (
        '2 images left out: a box of class "gone", which is not known (task 3: 3.jpg, task 4: 4.jpg)',
    )


def test_the_hold_out_is_written_before_anything_is_trained(tmp_path: Path) -> None:
    """What is held out is on the disk when the division is made, and a second training holds out the same."""
    data = wheat(tmp_path / "images", range(1000, 1006), width=96, height=64)
    train, held = session._held_out(request(tmp_path), data)
    again = session._held_out(request(tmp_path), data)
    digests = [[each.digest for each in part.examples] for part in (train, held)]
    assert digests == [[each.digest for each in part.examples] for part in again]
    assert not set(digests[0]) & set(digests[1])
    frozen = holdout.read(holdout.path_of(tmp_path, ONE))
    assert {digest for digest, placed in frozen.items() if placed.side == "holdout"} == set(digests[1])


def test_one_image_can_not_be_judged_by(tmp_path: Path) -> None:
    """With one annotated image nothing is trained and nothing is written, in a sentence that says how many it takes."""
    data = wheat(tmp_path / "images", range(1000, 1001), width=96, height=64)
    with pytest.raises(DataSetError, match="too few annotated images") as raised:
        session._held_out(request(tmp_path), DataSet(data.classes, data.examples, ("one was damaged",)))
    assert "one was damaged" in (raised.value.got or "")
    assert not holdout.path_of(tmp_path, ONE).exists()


def test_each_run_is_another_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images to learn from are learned from, with a seed of the run: started again after a refusal it differs."""
    data = wheat(tmp_path / "images", range(1000, 1002), width=96, height=64)
    many = DataSet(data.classes, data.examples * 35)
    taken: list[tuple[DataSet, Any, int]] = []

    def trained(data: DataSet, valid: Any, folder: Path, recipe: Any, **_: Any) -> Any:
        taken.append((data, valid, recipe.seed))
        return SimpleNamespace(notes=())

    monkeypatch.setattr(loop, "train", trained)
    for run in ("first", "first", "second"):
        given = replace(request(tmp_path, norm_eps=0.0), run=run)
        session._train(given, many, None, lambda **_: None)
    assert [(part, valid) for part, valid, _ in taken] == [(many, None)] * 3
    first, resumed, second = (seed for _, _, seed in taken)
    assert first == resumed != second


@pytest.mark.parametrize(
    ("begun", "parent", "fetched", "told"),
    [
        pytest.param(True, "v-1", 0, ["went on with the annotations that it had begun with"], id="goes on"),
        pytest.param(True, "v-2", 1, ["began anew: another version answers"], id="another version"),
        pytest.param(False, "v-1", 1, [], id="killed in its first epoch"),
    ],
)
def test_a_run_that_is_taken_up_goes_on_with_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, parent: str, fetched: int, told: list[str]
) -> None:
    """What was submitted since does not make a run lose what it has learned; where it must, that is noted."""
    images = wheat(tmp_path / "images", range(1000, 1004), width=96, height=64)
    before, now = DataSet(images.classes, images.examples[:3]), images
    calls = [before, now]
    monkeypatch.setattr("spica.training.submissions.fetch", lambda *_, **__: calls.pop(0))
    first = replace(request(tmp_path), parent_id="v-1")
    nothing: Any = None
    assert session._material(first, nothing, nothing, controls(None), lambda **_: None) == (before, [])
    if begun:
        (tmp_path / "run" / "loop").mkdir()
        (tmp_path / "run" / "loop" / "last.ckpt").write_bytes(b"")
    again = replace(first, parent_id=parent)
    data, notes = session._material(again, nothing, nothing, controls(None), lambda **_: None)
    assert data.fingerprint == (now if fetched else before).fingerprint
    assert len(calls) == 1 - fetched
    assert len(notes) == len(told)
    assert all(part in note for part, note in zip(told, notes, strict=True))

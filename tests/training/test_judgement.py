"""A candidate on the hold-out: who is asked what, and what is written down; the networks are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from project_keys import ONE
from simulated_detectors import detect, scenes
from spica.boxes import Detections
from spica.detectors.openvino import Machine
from spica.detectors.weights import WeightsInfo
from spica.errors import WeightsError
from spica.labelstudio.config import parse_label_config
from spica.models import checks
from spica.models.card import read_card
from spica.models.locks import is_held, writing
from spica.models.serving import Serving, suffix
from spica.models.version import ModelVersion, open_version
from spica.settings import Settings
from spica.training import judgement, session
from spica.training.dataset import DataSet
from spica.training.gate import Drift
from spica.training.judgement import Judgement, Parent, judge, record_bf16
from spica.training.runs import TrainingJob
from tiny_versions import tiny_version
from training_data import example

IMAGES = 12
SIDE = 600


class Scripted:
    """Answers by the number that an image has in its first pixel, in whatever order it is asked."""

    def __init__(self, answers: Sequence[Detections], broken_at: int | None = None) -> None:
        self.classes = ("spike",)
        self.asked: list[int] = []
        self._answers = answers
        self._broken_at = broken_at

    def detect(self, images: Sequence[Any]) -> list[Detections]:
        numbers = [int(pixels[0, 0, 0]) for pixels in images]
        self.asked += numbers
        if self._broken_at in numbers:
            raise WeightsError("the network fell over")
        return [self._answers[number] for number in numbers]


class Lab:
    """A hold-out, a candidate in the store, an active version, and the networks that stand for them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, images: int = IMAGES) -> None:
        rng = np.random.default_rng(0)
        self.truths = scenes(rng, images)
        self.good, self.poor = (detect(rng, self.truths, recall=recall) for recall in (0.9, 0.4))
        self.data_dir = folder
        self.held = DataSet(("spike",), tuple(self._example(number) for number in range(images)))
        self.version = open_version(folder, tiny_version(folder, "candidate"))
        self.active = tiny_version(folder, "active")
        self.f32, self.bf16, self.theirs = Scripted(self.good), Scripted(self.good), Scripted(self.poor)
        patch.setattr(judgement, "computed_by", lambda _: Machine("a processor", frozenset({"f32", "bf16"})))
        self.looked: list[str] = []
        patch.setattr(judgement, "load_detector", self._load)

    def _example(self, number: int) -> Any:
        pixels = np.full((SIDE, SIDE, 3), number, np.uint8)
        return example(self.data_dir / f"{number}.png", pixels, self.truths[number])

    def _load(self, version: ModelVersion, *, threads: int, serving: Serving) -> Scripted:
        who = "ours" if version == self.version else "theirs"
        self.looked.append(who + suffix(serving))
        if (who, serving.precision) == ("ours", "bf16"):
            return self.bf16
        assert serving.precision == "f32"
        return self.f32 if who == "ours" else self.theirs

    def judge(self, names: tuple[str, ...] = ("spike",), drift: Drift | None = None, **settings: Any) -> Judgement:
        values: dict[str, Any] = {"data_dir": self.data_dir, "train_threads": 1, **settings}
        folder = self.data_dir / "models" / self.active
        job = TrainingJob(ONE, "r", Path(), folder, self.active, Settings(**values))
        active = Parent(folder, self.active, names, folder, None, drift or Drift())
        return judge(job, self.version, active, self.held, threshold=0.4, report=lambda **_: None)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Twelve images held out, and a candidate that is better."""
    return Lab(tmp_path, monkeypatch)


def test_the_candidate_is_compared_with_the_active_version(lab: Lab) -> None:
    """Each is asked for each image, and the verdict stands on the project's threshold and the version's metrics."""
    judged = lab.judge()
    assert lab.f32.asked == lab.theirs.asked == list(range(IMAGES))
    assert (judged.verdict.passed, judged.verdict.against, judged.verdict.threshold) == (True, "active", 0.4)
    assert judged.verdict.ap50 is not None
    assert judged.metrics["ap50"] == pytest.approx(judged.verdict.ap50.candidate, abs=1e-4)
    assert judged.metrics["images"] == IMAGES


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["ours", "theirs", "ours-bf16"]),
        ({"tile": "off", "overlap": 0.3}, ["ours", "theirs", "ours-bf16"]),
        ({"tile": "auto", "overlap": 0.2}, ["ours-tao20", "theirs-tao20", "ours-bf16-tao20"]),
        ({"tile": "512", "overlap": 0.35}, ["ours-t512o35", "theirs-t512o35", "ours-bf16-t512o35"]),
    ],
)
def test_all_look_at_the_photographs_as_they_are_served(
    lab: Lab, settings: dict[str, Any], expected: list[str]
) -> None:
    """In tiles where the server looks at tiles: what is better on whole images need not be better there."""
    lab.judge(**settings)
    assert lab.looked == expected


def test_bf16_that_loses_nothing_may_be_served(lab: Lab) -> None:
    """Where the machine has bf16, the candidate's card says after the training that it has passed, by the truth."""
    assert record_bf16(lab.data_dir, lab.version, lab.judge()) == ()
    form = read_card(lab.version.folder).precisions["bf16"]
    assert form.passed
    assert form.check["truth"]["images"] == IMAGES
    assert form.check["truth"]["ap50_loss"] == 0
    assert form.check["processor"] == "a processor"
    assert lab.bf16.asked == lab.f32.asked


def test_bf16_that_loses_is_written_down_as_not_passed(lab: Lab) -> None:
    """A loss of more than half a point of AP50 is recorded, and is not served by itself."""
    lab.bf16 = Scripted(lab.poor)
    judged = lab.judge()
    record_bf16(lab.data_dir, lab.version, judged)
    form = read_card(lab.version.folder).precisions["bf16"]
    assert not form.usable
    assert form.check["truth"]["ap50_loss"] > checks.MAX_AP50_LOSS
    assert judged.verdict.passed


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_bf16_is_not_looked_at_where_it_is_not_served(lab: Lab, precision: str) -> None:
    """With a precision of the user's choice nothing is computed in bf16, and nothing recorded."""
    judged = lab.judge(precision=precision)
    assert record_bf16(lab.data_dir, lab.version, judged) == ()
    assert lab.bf16.asked == []
    assert read_card(lab.version.folder).precisions == {}


def test_bf16_is_not_looked_at_where_it_is_not_faster(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that only imitates bf16 does not compute in it."""
    monkeypatch.setattr(judgement, "computed_by", lambda _: Machine("an old processor", frozenset({"f32"})))
    assert (lab.judge().bf16, lab.bf16.asked) == (None, [])


@pytest.mark.parametrize("where", ["at the start", "in the midst", "when it is written"])
def test_a_failure_in_bf16_is_a_note(lab: Lab, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in bf16, the verdict is as it was, and people are told why f32 is served."""
    before = lab.judge().verdict

    def broken(*_: Any, **__: Any) -> Any:
        raise WeightsError("the network fell over")

    if where == "at the start":

        def in_bf16(version: ModelVersion, *, threads: int, serving: Serving) -> Any:
            return broken() if serving.precision == "bf16" else lab._load(version, threads=threads, serving=serving)

        monkeypatch.setattr(judgement, "load_detector", in_bf16)
    elif where == "in the midst":
        lab.bf16 = Scripted(lab.good, broken_at=5)
    else:
        monkeypatch.setattr(judgement, "record_variant", broken)
    judged = lab.judge()
    (note,) = record_bf16(lab.data_dir, lab.version, judged)
    assert note.startswith("bf16 could not be checked, so the version is served in f32: the network fell over")
    assert judged.verdict == before
    assert read_card(lab.version.folder).precisions == {}


def test_images_that_are_gone_count_for_neither(lab: Lab) -> None:
    """An image that has left the folder since it was read is judged by nobody."""
    lab.held.examples[3].path.unlink()
    judged = lab.judge()
    assert judged.verdict.images == judged.metrics["images"] == IMAGES - 1
    assert judged.bf16 is not None
    assert len(judged.bf16.run.detections) == IMAGES - 1


def test_an_active_version_that_can_not_be_asked(lab: Lab) -> None:
    """Where the active version's files are damaged, the comparison is with drawing by hand, and that is said."""
    (lab.data_dir / "models" / lab.active / "model.bin").write_bytes(b"")
    verdict = lab.judge().verdict
    assert verdict.against == "nothing"
    assert f"{lab.active} could not be asked" in verdict.reason


def test_tiles_are_no_independent_witnesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session holds out of a tiled project is judged as the few photographs that it is."""
    lab = Lab(tmp_path, monkeypatch, images=24)
    tiles = [replace(each, name=f"photo{n // 4}_{n % 4 * 8}_0.png") for n, each in enumerate(lab.held.examples)]
    settings = Settings(data_dir=tmp_path, holdout_share=0.5, holdout_min=10)
    job = TrainingJob(ONE, "r", Path(), None, None, settings)
    _, lab.held = session._held_out(job, DataSet(("spike",), tuple(tiles)))
    verdict = lab.judge().verdict
    assert (verdict.images, verdict.decided) == (12, False)
    assert "12 images of 3 photographs" in verdict.reason


def test_the_candidate_is_kept_while_it_is_judged(lab: Lab) -> None:
    """However long judging takes, the candidate is held like a version that is served, and nobody tidies it away."""
    held: list[bool] = []
    real = lab.f32.detect

    def detect(images: Sequence[Any]) -> list[Detections]:
        with writing(lab.data_dir):
            held.append(is_held(lab.data_dir, lab.version.id))
        return real(images)

    lab.f32.detect = detect  # type: ignore[method-assign]
    lab.judge()
    assert held == [True] * IMAGES
    with writing(lab.data_dir):
        assert not is_held(lab.data_dir, lab.version.id)


def test_classes_are_met_by_the_projects_names(lab: Lab) -> None:
    """A class of the active version that the project does not know is no answer."""
    verdict = lab.judge(names=("weed",)).verdict
    assert verdict.against == "active"
    assert verdict.ap50 is not None
    assert verdict.ap50.active == 0


def test_the_active_versions_drift_counts(lab: Lab) -> None:
    """What the line has lost before is counted together with what the candidate loses, and told in its verdict."""
    lab.theirs, lab.f32 = Scripted(lab.good), Scripted([lab.good[0].where(lab.good[0].scores < 0.9), *lab.good[1:]])
    free, bound = lab.judge(), lab.judge(drift=Drift(0.009, 0.45))
    assert free.verdict.ap50 is not None
    assert bound.verdict.drift.ap50 == pytest.approx(0.009 - free.verdict.ap50.difference)
    assert bound.verdict.drift.cost_s > free.verdict.drift.cost_s > 0


# --- the version that answers now

CONFIG = """
<View>
  <Image name="i" value="$image"/>
  <RectangleLabels name="r" toName="i">
    <Label value="Ear" predicted_values="spike"/><Label value="weed"/>
  </RectangleLabels>
</View>
"""


def job(data_dir: Path, version: str | None) -> TrainingJob:
    """For a project that this version answers."""
    folder = data_dir / "models" / version if version is not None else None
    return TrainingJob(ONE, "r", Path(), folder, version, Settings(data_dir=data_dir))


def described(patch: pytest.MonkeyPatch, folder: Path, classes: tuple[str, ...], kind: str) -> None:
    """Have the folder's weights look like those of a real version."""
    info = WeightsInfo(folder, "0" * 64, "safetensors", kind, classes, "frozen", 1)
    patch.setattr(judgement, "version_info", lambda *_: info)
    patch.setattr(
        "spica.training.initialise.obstacle", lambda info: None if info.architecture == "known" else "it can't"
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        pytest.param(("spike", "weed"), ("Ear", "weed"), id="as the labels say"),
        pytest.param(("spike", "stone"), ("Ear", "stone"), id="one that the project does not know"),
        pytest.param(("spike", "stone", ""), ("Ear", "stone", "class 3"), id="one without a name"),
    ],
)
def test_classes_are_called_as_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """A training goes on with what each class has learned, under the name that people label it with."""
    version = tiny_version(tmp_path, "active")
    described(monkeypatch, tmp_path / "models" / version, classes, "known")
    parent = Parent.of(job(tmp_path, version), parse_label_config(CONFIG).controls)
    assert parent is not None
    assert parent.names == expected
    assert (parent.init, parent.why_not) == (tmp_path / "models" / version, None)


def test_no_version_answers(tmp_path: Path) -> None:
    """Where no version answers there is no parent."""
    assert Parent.of(job(tmp_path, None), ()) is None


def test_a_version_that_can_not_be_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with, but nothing begins with it, and why is known."""
    version = tiny_version(tmp_path, "active")
    described(monkeypatch, tmp_path / "models" / version, ("spike",), "onnx")
    parent = Parent.of(job(tmp_path, version), ())
    assert parent is not None
    assert (parent.init, parent.why_not, parent.id) == (None, "it can't", version)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ({"accepted": True, "drift": {"ap50": 0.006, "cost_s": 0.1}}, Drift(0.006, 0.1)),
        ({"accepted": False, "drift": {"ap50": 0.6, "cost_s": 9}}, Drift()),
        (None, Drift()),
    ],
    ids=["passed", "activated by hand", "never judged"],
)
def test_drift_goes_on_from_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: dict[str, Any] | None, expected: Drift
) -> None:
    """What the line has lost so far is read from the active version's card."""
    version = tiny_version(tmp_path, "active", gate=gate)
    described(monkeypatch, tmp_path / "models" / version, ("spike",), "known")
    parent = Parent.of(job(tmp_path, version), ())
    assert parent is not None
    assert parent.drift == expected

"""Trainings of a few steps on images of a few pixels, and one that really learns."""

import errno
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

from safetensors.torch import load_file  # noqa: E402 - after the check for torch

from spica.boxes import iou_xyxy  # noqa: E402 - after the check for torch
from spica.demo.field import render_field  # noqa: E402
from spica.detectors.torch_gpu import TorchDetector  # noqa: E402
from spica.detectors.weights import inspect  # noqa: E402
from spica.errors import DataSetError, StorageError, TrainingError, UsageError, WeightsError  # noqa: E402
from spica.evaluation.truth import Truth  # noqa: E402
from spica.training import gate, samples  # noqa: E402
from spica.training.dataset import DataSet  # noqa: E402
from spica.training.detection import detect_with  # noqa: E402
from spica.training.loop import CHECKPOINT, StoppedError, learning_rate, train  # noqa: E402
from spica.training.progress import Progress, Trained  # noqa: E402
from spica.training.recipe import Recipe  # noqa: E402
from training_data import example, wheat  # noqa: E402

pytestmark = pytest.mark.torch

TINY = Recipe(epochs=2, batch=2, min_size=64, max_size=96, threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Three images of two sizes, one without objects."""
    folder = tmp_path_factory.mktemp("data")
    one, other = wheat(folder, [1000], width=96, height=64), wheat(folder, [1005], width=80, height=80)
    empty = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 50, 40)
    nothing = example(folder / "empty.png", np.full((40, 50, 3), 90, np.uint8), empty)
    return DataSet(("spike",), (*one.examples, *other.examples, nothing))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return wheat(tmp_path_factory.mktemp("valid"), [2000], width=96, height=64)


@pytest.fixture(scope="module")
def whole(data: DataSet, valid: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, list[Progress]]:
    """A training without a break, and what it told."""
    told: list[Progress] = []
    return train(data, valid, tmp_path_factory.mktemp("whole"), TINY, on_progress=told.append), told


def _same(one: Trained, other: Trained) -> bool:
    a, b = load_file(one.weights), load_file(other.weights)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_comes_out(whole: tuple[Trained, list[Progress]], data: DataSet) -> None:
    """Weights that are recognised with classes and input size, an epoch's losses and metrics each, and no notes."""
    trained, told = whole
    info = inspect(trained.weights)
    assert (info.architecture, info.classes, info.norm) == (TINY.architecture, ("spike",), "frozen")
    assert info.input_size == (64, 96)
    assert [epoch.number for epoch in trained.history] == [1, 2]
    assert all(epoch.losses["loss"] > 0 and epoch.metrics is not None for epoch in trained.history)
    assert not trained.resumed
    assert trained.notes == ()
    assert trained.metrics == trained.history[trained.best_epoch - 1].metrics
    steps = [(each.epoch, each.step) for each in told if each.step and not each.validating]
    assert steps == [(epoch, step) for epoch in (1, 2) for step in (1, 2)]
    assert told[-1].eta_s == 0
    assert len(told[-1].history) == 2


def test_same_seed_same_weights(
    whole: tuple[Trained, list[Progress]], data: DataSet, valid: DataSet, tmp_path: Path
) -> None:
    """The same seed gives the same weights bit for bit, whatever torch's own random numbers; another seed others."""
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert _same(whole[0], train(data, valid, tmp_path / "a", TINY))
    assert torch.equal(torch.get_rng_state(), before)
    other: dict[str, float] = {}

    def first(progress: Progress) -> bool:
        other.update(progress.losses)
        return True

    with pytest.raises(StoppedError):
        _train_until(first, data, valid, tmp_path / "b", replace(TINY, seed=1))
    assert other != whole[1][0].losses


def _train_until(
    when: Callable[[Progress], bool], data: DataSet, valid: DataSet | None, folder: Path, recipe: Recipe = TINY
) -> Trained:
    """A training that is stopped at a moment."""
    stop = threading.Event()

    def watch(progress: Progress) -> None:
        if when(progress):
            stop.set()

    return train(data, valid, folder, recipe, stop=stop, on_progress=watch)


def _kept(data: DataSet, valid: DataSet, folder: Path, recipe: Recipe = TINY) -> str | None:
    """How far a training is that is taken up in this folder, and stopped before its next step."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError) as stopped:
        train(data, valid, folder, recipe, stop=stop)
    got: str | None = stopped.value.got
    return got


@pytest.fixture(scope="module")
def interrupted(data: DataSet, valid: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was stopped in the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(StoppedError):
        _train_until(lambda progress: (progress.epoch, progress.step) == (2, 1), data, valid, folder)
    return folder


@pytest.fixture
def folder(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def test_a_resumed_run_equals_an_unbroken_one(
    whole: tuple[Trained, list[Progress]], data: DataSet, valid: DataSet, folder: Path
) -> None:
    """Stopped in the second epoch and called again, the weights and the losses are those of a run without a break."""
    resumed = train(data, valid, folder, TINY)
    assert resumed.resumed
    assert _same(whole[0], resumed)
    assert [epoch.losses for epoch in resumed.history] == [epoch.losses for epoch in whole[0].history]
    told: list[Progress] = []
    assert _same(resumed, train(data, valid, folder, TINY, on_progress=told.append))
    assert told == []  # it was over: nothing is learned again


def test_another_training_begins_anew(data: DataSet, valid: DataSet, folder: Path) -> None:
    """With other data or another recipe, what lies in the folder is not gone on with."""
    assert _kept(data, valid, folder) == "1 of 2 epochs"
    shutil.copytree(folder, folder.with_name("other"))
    assert _kept(data, valid, folder, replace(TINY, lr=1e-4)) == "0 of 2 epochs"
    other = replace(data, examples=data.examples[:2])
    assert _kept(other, valid, folder.with_name("other")) == "0 of 2 epochs"


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None], ids=["empty", "another file", "cut"])
def test_a_damaged_checkpoint_is_none(data: DataSet, valid: DataSet, folder: Path, damage: bytes | None) -> None:
    """A checkpoint that can't be read counts as if it were not there."""
    path = folder / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    assert _kept(data, valid, folder) == "0 of 2 epochs"


def test_a_full_disk_leaves_the_last_checkpoint(
    data: DataSet, valid: DataSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full, the training says so, and goes on from the checkpoint before once there is space."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(StorageError) as failure:
            train(data, valid, folder, TINY)
    assert failure.value.got == "No space left on device"
    assert "start it again" in (failure.value.hint or "")
    assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
    assert _kept(data, valid, folder) == "1 of 2 epochs"


def test_what_can_not_begin_leaves_no_folder(data: DataSet, valid: DataSet, tmp_path: Path) -> None:
    """An architecture that there is not, or a training stopped before its first epoch was over: no empty folder."""
    with pytest.raises(WeightsError):
        train(data, None, tmp_path / "run", replace(TINY, architecture="nothing"))
    assert not (tmp_path / "run").exists()
    assert _kept(data, valid, tmp_path / "run") == "0 of 2 epochs"
    assert not (tmp_path / "run").exists()


def test_16_bits_compute_no_boxes(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 proposals and what is learned from them are float32, and yet other weights come out."""
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.roi_heads import RoIHeads

    seen: set[Any] = set()

    def watched(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watching(self: Any, *given: Any) -> Any:
            found = real(self, *given)
            for each in (*given, *(found if isinstance(found, tuple) else (found,))):
                tensors = each if isinstance(each, list | tuple) else [each]
                seen.update(one.dtype for one in tensors if isinstance(one, torch.Tensor) and one.is_floating_point())
            return found

        monkeypatch.setattr(owner, name, watching)

    for name in ("encode", "decode"):
        watched(BoxCoder, name)
    watched(RoIHeads, "select_training_samples")
    recipe = replace(TINY, epochs=1, precision="bf16")
    data = replace(data, examples=data.examples[:2])
    half = train(data, None, tmp_path / "half", recipe)
    assert seen == {torch.float32}
    assert not _same(half, train(data, None, tmp_path / "whole", replace(recipe, precision="f32")))


def test_batch_norm_keeps_its_statistics(data: DataSet, valid: DataSet, tmp_path: Path) -> None:
    """What goes on from a network with batch norm learns all but the statistics, also after it was judged."""
    begun = train(data, None, tmp_path / "begun", replace(TINY, epochs=1, pretrained=False, lr=1e-5))
    assert begun.norm == "batch"
    again = train(data, valid, tmp_path / "again", replace(TINY, epochs=2), init=begun.weights)
    before, after = load_file(begun.weights), load_file(again.weights)
    statistics = [key for key in before if key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(statistics) > 100
    assert [key for key in statistics if not torch.equal(before[key], after[key])] == []
    assert [key for key in before if not torch.equal(before[key], after[key])]


def test_divergence_is_said(data: DataSet, tmp_path: Path) -> None:
    """A loss that is no number ends the training, and the message says what to do."""
    with pytest.raises(TrainingError, match="diverged") as failure:
        train(data, None, tmp_path / "run", replace(TINY, lr=1e30))
    assert "--lr" in (failure.value.hint or "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory")],
    ids=["python", "torch"],
)
def test_too_little_memory_is_said(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Where memory ends, the message says so and names the batch."""

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.Tensor, "backward", broken)
    with pytest.raises(TrainingError, match="not enough memory") as failure:
        train(data, None, tmp_path, TINY)
    assert "--batch than 2" in (failure.value.hint or "")


def test_bad_data_is_a_sentence(data: DataSet, valid: DataSet, tmp_path: Path) -> None:
    """No images, an image that is gone, one of another size, other classes: each is told, and nothing is trained."""
    with pytest.raises(DataSetError):
        train(replace(data, examples=()), valid, tmp_path, TINY)
    gone = replace(data, examples=(data.examples[0], replace(data.examples[1], path=tmp_path / "gone.png")))
    with pytest.raises(DataSetError, match="can't be read"):
        train(gone, None, tmp_path, TINY)
    other = replace(data.examples[1], truth=data.examples[0].truth)
    with pytest.raises(DataSetError, match="another size"):
        train(replace(data, examples=(data.examples[0], other)), None, tmp_path, TINY)
    with pytest.raises(TrainingError, match="other classes"):
        train(data, replace(valid, classes=("leaf",)), tmp_path, TINY)


def test_it_stops_when_it_gets_no_better(
    data: DataSet, valid: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many judgements without a better one as the patience has, it ends with the best weights."""
    scores = iter([0.5, 0.3, 0.4, 0.5])
    monkeypatch.setattr("spica.training.loop.evaluate", lambda *_: Mock(as_json=lambda: {"ap50": next(scores)}))
    recipe = replace(TINY, epochs=5, patience=2)
    patient = train(data, valid, tmp_path / "patient", recipe)
    assert [epoch.ap50 for epoch in patient.history] == [0.5, 0.3, 0.4]
    assert patient.best_epoch == 1
    with pytest.raises(StoppedError):
        _train_until(lambda progress: bool(progress.history), data, valid, tmp_path / "first", recipe)
    first = torch.load(tmp_path / "first" / CHECKPOINT, weights_only=True)["network"]
    weights = load_file(patient.weights)
    assert all(torch.equal(weights[key], first[key]) for key in weights)


def test_time_is_up(data: DataSet, tmp_path: Path) -> None:
    """With a limit of time it ends after the epoch in which that is over, with the last weights."""
    trained = train(data, None, tmp_path, replace(TINY, max_minutes=1e-6))
    assert len(trained.history) == 1
    assert trained.best_epoch == 1
    assert trained.metrics is None


def test_a_limit_of_time_ends_the_schedule(data: DataSet, tmp_path: Path) -> None:
    """With half an epoch's time, the learning rate has fallen to 0 at the end of the epoch that it ends with."""
    trained = train(data, None, tmp_path, replace(TINY, epochs=1000, max_minutes=1e-6))
    assert trained.history[-1].lr < 1e-3 * TINY.lr


def test_each_image_once_an_epoch(data: DataSet) -> None:
    """Every image is in one batch of an epoch, batches differ by at most one image, and epochs in their order."""
    photos = samples.TrainingImages(wheat_like(data, 11), min_size=64, max_size=96, max_pixels=10**6)
    orders = [samples.batch_indices(len(photos), replace(TINY, batch=4), epoch) for epoch in (1, 2, 1)]
    for order in orders:
        assert sorted(index for batch in order for index in batch) == list(range(11))
        assert sorted(map(len, order)) == [3, 4, 4]
    assert orders[0] == orders[2] != orders[1]


def wheat_like(data: DataSet, count: int) -> DataSet:
    """The same image several times."""
    return replace(data, examples=data.examples[:1] * count)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_learning_rate_rises_and_falls(steps: int) -> None:
    """It is above 0 at the first step, at most 1 anywhere, and next to 0 at the last of many."""
    rates = [learning_rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1
    assert rates[-1] < 0.01 or steps < 20


def test_recipes_by_the_amount_of_data() -> None:
    """More images, fewer epochs but more steps; where it goes on, fewer; what is given wins; nonsense is refused."""
    few, many = (Recipe.for_data(n, cuda=False) for n in (20, 200))
    assert few.epochs > many.epochs
    assert few.epochs * 20 < many.epochs * 200
    assert Recipe.for_data(20, cuda=False, continued=True).epochs < few.epochs
    assert Recipe.for_data(20, cuda=False, epochs=3, lr=None).epochs == 3
    assert Recipe.for_data(1, cuda=False).batch == 1
    assert Recipe.for_data(20, "fasterrcnn_resnet50_fpn", cuda=False).frozen == 5
    assert Recipe.for_data(20, cuda=True).architecture == "fasterrcnn_resnet50_fpn"
    with pytest.raises(UsageError):
        Recipe(epochs=0)


@pytest.mark.parametrize("real", [True, False], ids=["bfloat16 in hardware", "an older GPU"])
def test_a_gpu_that_imitates_bfloat16_trains_in_32_bits(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says of a T4 too that it has bfloat16: it imitates it, more slowly than it computes float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: real or including_emulation)
    assert Recipe.for_data(20, cuda=True).precision == ("bf16" if real else "f32")


LEARNS = Recipe(epochs=8, batch=4, lr=1e-3, min_size=240, max_size=320, threads=1)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Sixteen rendered fields."""
    return wheat(tmp_path_factory.mktemp("fields"), range(1000, 1016), width=320, height=240)


@pytest.fixture(scope="module")
def learned(fields: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training on them that really learns."""
    valid = wheat(tmp_path_factory.mktemp("others"), range(2000, 2006), width=320, height=240)
    return train(fields, valid, tmp_path_factory.mktemp("learned"), LEARNS)


@pytest.mark.slow
def test_it_learns(learned: Trained) -> None:
    """On sixteen rendered fields, AP50 on other fields rises from nearly nothing to 0.3 and more in 32 steps."""
    assert (learned.history[0].ap50 or 0) < 0.1
    assert max(epoch.ap50 or 0 for epoch in learned.history) > 0.3


@pytest.mark.slow
def test_what_has_learned_answers_in_16_bits_as_in_32(learned: Trained) -> None:
    """On a photograph of 2560 x 1920 pixels the boxes in bfloat16 are those in float32, to a few pixels of that."""
    pixels = render_field(2000, width=320, height=240).pixels.repeat(8, axis=0).repeat(8, axis=1)
    exact, half = (
        TorchDetector(
            learned.weights, ("spike",), norm_eps=None, score_floor=0.3, max_detections=100, device="cpu", bf16=half
        ).detect([pixels])[0]
        for half in (False, True)
    )
    assert len(exact) > 3
    assert np.median(iou_xyxy(exact.boxes_xyxy, half.boxes_xyxy).max(axis=1)) > 0.9


@pytest.mark.slow
def test_a_training_on_shuffled_labels_is_refused(learned: Trained, fields: DataSet, tmp_path: Path) -> None:
    """What goes on with the boxes of other images is refused by the gate; with its own boxes it would not be so bad."""
    held = wheat(tmp_path / "held", range(3000, 3012), width=320, height=240)
    truths = [example.truth for example in held.examples]
    active = detect_with(learned.weights, held)
    own = fields.examples[:8]
    shuffled = tuple(replace(one, truth=other.truth) for one, other in zip(own, (*own[1:], own[0]), strict=True))
    verdicts = []
    for name, examples in (("shuffled", shuffled), ("own", own)):
        recipe = replace(LEARNS, epochs=2, lr=3e-4)
        trained = train(replace(fields, examples=examples), None, tmp_path / name, recipe, init=learned.weights)
        answers = detect_with(trained.weights, held)
        verdicts.append(gate.judge(truths, active, answers, held.classes, threshold=0.5, resamples=400))
    wrong, right = verdicts
    assert (wrong.passed, wrong.decided) == (False, True), wrong.reason
    assert wrong.reason.startswith("Refused: worse in AP50")
    assert wrong.ap50 is not None
    assert right.ap50 is not None
    assert wrong.ap50.candidate < right.ap50.candidate - 0.1

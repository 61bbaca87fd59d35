"""The shipped detector is what its card says, and the script that trains it works."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spica.boxes import Detections, iou_xyxy
from spica.demo import model_folder
from spica.demo.field import DEMO_FIRST_SEED, Field, render_field
from spica.detectors.contract import checked
from spica.detectors.openvino import openvino_core

REPOSITORY = Path(__file__).parents[2]
FRESH_SEED = 400_000
FRESH_IMAGES = 30

Detect = Callable[[NDArray[np.uint8]], Detections]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((model_folder() / "model.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def detect() -> Detect:
    """The shipped graph in OpenVINO, in float32; its answers are checked against the detectors' contract."""
    compiled = openvino_core().compile_model(model_folder() / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: NDArray[np.uint8]) -> Detections:
        height, width = pixels.shape[:2]
        answer = compiled([np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / 255])
        found = Detections(answer["boxes"], answer["scores"], answer["labels"] - 1)
        return checked(found, classes=1, width=width, height=height, detector="model.onnx")

    return run


@pytest.fixture(scope="module")
def fresh() -> list[Field]:
    """Fields that neither training nor calibration nor the card's evaluation has seen."""
    return [render_field(FRESH_SEED + number) for number in range(FRESH_IMAGES)]


@pytest.fixture(scope="module")
def found(detect: Detect, fresh: Sequence[Field]) -> list[Detections]:
    return [detect(one.pixels) for one in fresh]


def correct_at_50(found: Detections, truth_xyxy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """For each detection, best first: does it overlap a true box, not found before, by an IoU of 0.5 or more?"""
    overlap = iou_xyxy(found.boxes_xyxy, truth_xyxy)
    correct = np.zeros(len(found), np.bool_)
    for row in range(len(found) if len(truth_xyxy) else 0):
        best = int(overlap[row].argmax())
        correct[row] = overlap[row, best] >= 0.5
        if correct[row]:
            overlap[:, best] = -1
    return correct


def average_precision_50(found: Sequence[Detections], truths_xyxy: Sequence[NDArray[np.float32]]) -> float:
    """Area under the precision-recall curve of all images together."""
    correct = np.concatenate([correct_at_50(one, truth) for one, truth in zip(found, truths_xyxy, strict=True)])
    order = np.argsort(-np.concatenate([one.scores for one in found]), kind="stable")
    hits = np.cumsum(correct[order])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * correct[order]).sum() / sum(len(truth) for truth in truths_xyxy))


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([[0, 0, 10, 10]], [0.9], 1.0),
        ([[50, 50, 60, 60]], [0.9], 0.0),
        ([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], 1.0),
        ([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.8], 0.5),
    ],
    ids=["found", "elsewhere", "twice", "false alarm first"],
)
def test_the_yardstick(boxes: list[list[int]], scores: list[float], expected: float) -> None:
    """AP50 as computed here is what a hand would compute."""
    one = Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.zeros(len(scores), np.int64))
    truth = np.array([[0, 0, 10, 10]], np.float32)
    assert average_precision_50([one], [truth]) == pytest.approx(expected)


def test_card_describes_the_files(card: dict[str, Any]) -> None:
    """Sizes and hashes on the card are those of the files beside it, and the model is under 10 MB."""
    assert set(card["files"]) == {"model.onnx"}
    content = (model_folder() / "model.onnx").read_bytes()
    assert card["files"]["model.onnx"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert len(content) < 10_000_000


def test_card_is_complete(card: dict[str, Any]) -> None:
    """The card says what the model is, where it comes from and what it is not for."""
    assert (card["format"], card["name"], card["classes"]) == (1, "spica-demo-wheat", ["spike"])
    assert (card["score_floor"], card["max_detections"], card["parent"]) == (0.05, 1000, None)
    assert "not for real fields" in card["limits"]
    assert {"data", "seeds", "images", "epochs", "script", "backbone", "minutes"} <= set(card["training"])
    assert {"AP50", "AP", "images", "boxes", "threshold", "precision", "recall"} <= set(card["metrics"])
    assert (REPOSITORY / card["training"]["script"]).is_file()


def test_seeds_are_apart(card: dict[str, Any]) -> None:
    """No image of the demo or of these tests was trained, calibrated or measured with."""
    ranges = [range(first, last + 1) for first, last in card["training"]["seeds"].values()]
    ours = {DEMO_FIRST_SEED + k for k in range(24)} | {FRESH_SEED + k for k in range(FRESH_IMAGES)}
    used = [seed for each in ranges for seed in each]
    assert len(used) == len(set(used))
    assert ours.isdisjoint(used)


def test_graph_keeps_the_contract() -> None:
    """OpenVINO reads one image of any size, and three outputs by the agreed names and types."""
    import openvino

    graph = openvino_core().read_model(model_folder() / "model.onnx")
    (image,) = graph.inputs
    assert image.get_any_name() == "image"
    assert image.get_element_type() == openvino.Type.f32
    shape = image.get_partial_shape()
    assert [side.is_dynamic for side in shape] == [False, True, True]
    assert shape[0].get_length() == 3
    outputs = {output.get_any_name(): output.get_element_type() for output in graph.outputs}
    assert outputs == {"boxes": openvino.Type.f32, "labels": openvino.Type.i64, "scores": openvino.Type.f32}


def test_graph_carries_its_metadata(card: dict[str, Any]) -> None:
    """The file alone tells its format, classes and architecture."""
    onnx = pytest.importorskip("onnx", reason="reading ONNX metadata needs the extra spica[train]")
    facts = {entry.key: entry.value for entry in onnx.load(model_folder() / "model.onnx").metadata_props}
    assert facts["spica.format"] == "1"
    assert json.loads(facts["spica.classes"]) == ["spike"]
    assert facts["spica.architecture"] == card["architecture"]


def test_average_precision_of_the_card(
    card: dict[str, Any], fresh: Sequence[Field], found: Sequence[Detections]
) -> None:
    """On fields never seen, AP50 is the card's within 0.03, and above 0.9."""
    measured = average_precision_50(found, [one.boxes_xyxy for one in fresh])
    assert measured == pytest.approx(card["metrics"]["AP50"], abs=0.03)
    assert measured > 0.9


def test_shown_boxes_are_good(card: dict[str, Any], fresh: Sequence[Field], found: Sequence[Detections]) -> None:
    """At the threshold of 0.6 that people see, F1 is above 0.85."""
    assert card["metrics"]["threshold"] == 0.6
    shown = [one.where(one.scores >= 0.6) for one in found]
    hits = sum(int(correct_at_50(one, true.boxes_xyxy).sum()) for one, true in zip(shown, fresh, strict=True))
    f1 = 2 * hits / (sum(len(one) for one in shown) + sum(len(true.boxes_xyxy) for true in fresh))
    assert f1 > 0.85


def test_scores_are_chances(found: Sequence[Detections], fresh: Sequence[Field]) -> None:
    """A score is the chance of being right: of the detections between 0.3 and 0.9, as many are right as they say."""
    correct = np.concatenate([correct_at_50(one, true.boxes_xyxy) for one, true in zip(found, fresh, strict=True)])
    scores = np.concatenate([one.scores for one in found])
    middle = (scores > 0.3) & (scores < 0.9)
    assert middle.sum() > 30
    assert correct[middle].mean() == pytest.approx(scores[middle].mean(), abs=0.15)


def test_floor(found: Sequence[Detections]) -> None:
    """Detections reach down to the floor, not under it."""
    scores = np.concatenate([one.scores for one in found])
    assert scores.min() >= 0.05
    assert scores.min() < 0.1


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (7, 3), (33, 47), (333, 257), (641, 479), (1283, 961)], ids=lambda side: str(side)
)
def test_odd_sizes(detect: Detect, width: int, height: int) -> None:
    """Any size is answered within the contract, down to a single pixel."""
    rng = np.random.default_rng(0)
    detect(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_odd_crop_finds_the_same_ears(detect: Detect, fresh: Sequence[Field], found: Sequence[Detections]) -> None:
    """Cutting a column and a row off the far sides leaves the sure boxes of the middle where they were."""
    number = max(range(len(fresh)), key=lambda k: len(fresh[k].boxes_xyxy))
    whole, cut = found[number], detect(np.ascontiguousarray(fresh[number].pixels[:-3, :-5]))
    inner = (whole.scores > 0.8) & (whole.boxes_xyxy[:, 2] < 560) & (whole.boxes_xyxy[:, 3] < 400)
    assert inner.sum() > 5
    assert iou_xyxy(whole.boxes_xyxy[inner], cut.boxes_xyxy).max(axis=1).min() > 0.9


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (90, 120, 50), (226, 178, 88), (128, 128, 128)], ids=str
)
def test_blank_images_stay_empty(detect: Detect, colour: tuple[int, int, int]) -> None:
    """Where there is nothing, no box is shown."""
    blank = np.full((480, 640, 3), colour, np.uint8)
    assert (detect(blank).scores < 0.6).all()


@pytest.mark.torch
@pytest.mark.slow
def test_the_script_trains(tmp_path: Path) -> None:
    """A tiny run of the training script lowers the loss and writes a graph that matches its card."""
    pytest.importorskip("torch", reason="training needs the extra spica[train]")
    sizes = "--epochs 6 --batch 4 --train-images 16 --validation-images 4 --test-images 4 --threads 1"
    command = [sys.executable, str(REPOSITORY / "scripts" / "train_demo_detector.py"), "--out", str(tmp_path / "new")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [*command, *sizes.split(), "--width", "160", "--height", "128"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"model.onnx", "model.json"}
    written = json.loads((tmp_path / "new" / "model.json").read_text(encoding="utf-8"))
    losses = written["training"]["losses"]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    content = (tmp_path / "new" / "model.onnx").read_bytes()
    assert written["files"]["model.onnx"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert written["training"]["images"] == 16


MANY_SIZES = """
import resource, sys
import numpy as np
from pathlib import Path
from spica.detectors.openvino import OpenVINODetector

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

detector = OpenVINODetector(Path(sys.argv[1]), ("spike",), threads=1)
random = np.random.default_rng(0)
for number in range(220):
    detector.detect([np.zeros((*random.integers(30, 200, 2), 3), np.uint8)])
    if number == 120:
        before = peak()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="asks POSIX for the memory of a process")
def test_memory_does_not_grow_with_the_sizes_of_photographs() -> None:
    """After a hundred sizes of images, a hundred others take less than 20 MiB more: they took 70."""
    graph = model_folder() / "model.onnx"
    made = subprocess.run(
        [sys.executable, "-c", MANY_SIZES, str(graph)], capture_output=True, text=True, timeout=300, check=True
    )
    assert float(made.stdout) < 20

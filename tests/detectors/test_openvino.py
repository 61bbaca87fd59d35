"""The converted network against torch's own, on photographs and rendered images."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spica.boxes import Detections
from spica.detectors.comparison import MAX_BOX_PX, MAX_SCORE, compare
from spica.detectors.contract import Detector, RGBImage
from spica.detectors.convert import _set_floor
from spica.detectors.openvino import OpenVINODetector
from spica.detectors.torch_gpu import TorchDetector
from spica.errors import WeightsError
from spica.models.load import load_detector
from weights_builder import MAX_DETECTIONS, NORM_EPS, Prepared

PHOTOS = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(tutorial: Prepared) -> Detector:
    """The network as it is served."""
    return load_detector(tutorial.version, device="cpu")


@pytest.fixture(scope="module")
def torch_detector(tutorial: Prepared) -> TorchDetector:
    """The network in torch."""
    return TorchDetector(
        tutorial.weights,
        ("",),
        norm_eps=NORM_EPS,
        score_floor=tutorial.score_floor,
        max_detections=MAX_DETECTIONS,
        device="cpu",
    )


@pytest.fixture(scope="module")
def tutorials_own(tutorial: Prepared) -> Iterator[Any]:
    """The network as the tutorial's notebook builds and calls it, but for the number of boxes."""
    import torch
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, box_detections_per_img=MAX_DETECTIONS
    )
    model.load_state_dict(torch.load(tutorial.weights, weights_only=True))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = NORM_EPS
    with torch.inference_mode():
        yield model.eval()


def photo(name: str) -> RGBImage:
    path = next(iter(sorted((PHOTOS / name / "images").glob("*.jpg"))), None) if PHOTOS.is_dir() else None
    if path is None:
        pytest.skip(f"no photographs of {name}: the optional folder ../shared/data is absent")
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"))


def noise(height: int, width: int) -> RGBImage:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def picture(name: str) -> RGBImage:
    if name == "grey pear":
        with Image.fromarray(photo("pear")[:320]).convert("L") as grey:
            return np.array(grey.convert("RGB"))
    sizes = {"noise": (240, 320), "a wide strip": (60, 700), "a high strip": (900, 7)}
    return noise(*sizes[name]) if name in sizes else photo(name)


@pytest.mark.parametrize("name", ["wheat", "pear", "grey pear", "noise", "a wide strip", "a high strip"])
def test_the_answers_are_torchs(name: str, served: Detector, tutorials_own: Any) -> None:
    """On every image the same boxes as torch's, within 0.5 px and 0.005 in score, and more than 100 of them."""
    from torchvision.transforms.functional import to_tensor

    image = picture(name)
    (answer,) = tutorials_own([to_tensor(image)])
    expected = Detections(answer["boxes"].numpy(), answer["scores"].numpy(), answer["labels"].numpy() - 1)
    (got,) = served.detect([image])
    comparison = compare(expected, got, floor=0.05, limit=MAX_DETECTIONS)
    assert len(got) == len(expected) > 100
    assert comparison.unmatched == 0
    assert comparison.box_px <= MAX_BOX_PX
    assert comparison.score <= MAX_SCORE


def test_the_scores_of_the_test_weights_are_spread(served: Detector) -> None:
    """The weights that the tests make give scores all over the range, so that equal answers mean something."""
    (found,) = served.detect([noise(60, 700)])
    assert found.scores.min() < 0.2
    assert found.scores.max() > 0.8


def test_torch_itself_answers_the_same(served: Detector, torch_detector: TorchDetector) -> None:
    """The detector for CUDA, here on the CPU, gives the answers of the one for the CPU."""
    images = [noise(60, 700), noise(3, 4000)]
    for expected, got in zip(torch_detector.detect(images), served.detect(images), strict=True):
        assert compare(expected, got, floor=0.05, limit=MAX_DETECTIONS).same
        assert len(expected) > 100


def test_images_of_any_size_in_one_call(served: Detector) -> None:
    """One pixel, strips and read-only views are answered, in order."""
    strip = noise(60, 700)
    strip.setflags(write=False)
    images = [noise(1, 1), strip, noise(5000, 2), strip[:, ::-1]]
    answers = served.detect(images)
    assert len(answers) == 4
    assert compare(answers[1], served.detect([strip])[0], floor=0.05, limit=MAX_DETECTIONS).unmatched == 0
    assert answers[2].boxes_xyxy[:, 2].max() <= 2


def test_no_images_no_answers(served: Detector) -> None:
    """An empty call gives an empty list."""
    assert served.detect([]) == []


def test_an_image_without_boxes(tutorial: Prepared) -> None:
    """Where no score is above the floor, the answer is empty."""
    graph = tutorial.version.folder / "model.xml"
    strict = OpenVINODetector(graph, ("",), edit=lambda model: _set_floor(model, 0.05, 0.9999999))
    assert [len(found) for found in strict.detect([noise(40, 700)])] == [0]


def test_a_conversion_for_another_floor_is_refused(tutorial: Prepared) -> None:
    """The floor in the graph is found by its value, or not at all."""
    with pytest.raises(WeightsError, match="at 0 places"):
        OpenVINODetector(tutorial.version.folder / "model.xml", ("",), edit=lambda model: _set_floor(model, 0.06, 0.0))


def test_a_damaged_compiled_model_changes_nothing(
    tutorial: Prepared, served: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiled model on disk whose bytes have flipped is noticed, and the answers stay the same."""
    graph, image = tutorial.version.folder / "model.xml", noise(40, 700)
    expected = OpenVINODetector(graph, ("",), cache_dir=tmp_path).detect([image])
    (blob,) = tmp_path.rglob("*.blob")
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    blob.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        got = OpenVINODetector(graph, ("",), cache_dir=tmp_path).detect([image])
    assert "damaged" in caplog.text
    assert compare(expected[0], got[0], floor=0.05, limit=MAX_DETECTIONS).unmatched == 0


@pytest.mark.parametrize(
    "content",
    [pytest.param("<net/>", id="an empty IR"), pytest.param("", id="nothing")],
)
def test_a_graph_that_cannot_run(tmp_path: Path, content: str) -> None:
    """What OpenVINO can't load is a weights error with the file's name."""
    (tmp_path / "model.xml").write_text(content, "utf-8")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="OpenVINO can't run") as refused:
        OpenVINODetector(tmp_path / "model.xml", ("",))
    assert "model.xml" in str(refused.value)


def test_serving_never_imports_torch(tutorial: Prepared) -> None:
    """From the weights file to boxes, with the conversion done before, neither torch nor onnx is imported."""
    script = """
import sys
from pathlib import Path
import numpy as np
from spica.models.load import load_detector
from spica.models.store import prepare
version = prepare(Path(sys.argv[1]), data_dir=Path(sys.argv[2]), score_floor=0.05, max_detections=1000, norm_eps=0.0)
(found,) = load_detector(version).detect([np.zeros((20, 700, 3), np.uint8)])
print(version.id, len(found) >= 0)
print([name for name in ("torch", "torchvision", "onnx", "label_studio_sdk") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tutorial.weights), str(tutorial.data_dir)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.splitlines() == [f"{tutorial.version.id} True", "[]"], done.stderr

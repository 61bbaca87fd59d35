"""Networks of others, from the file to boxes in the photograph's pixels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreign_builder import COLOURS, METADATA, ULTRALYTICS, onnx, write_foreign
from spica.boxes import Detections
from spica.detectors import foreign
from spica.detectors.contract import RGBImage
from spica.detectors.foreign_detector import ForeignDetector
from spica.detectors.weights import inspect
from spica.errors import DetectorContractError, WeightsError
from spica.models import store
from spica.models.card import read_card, weights_info
from spica.models.load import load_detector
from spica.models.version import ModelVersion

LAYOUTS = tuple(METADATA)
RED, GREEN = 204, 153
"""Brightness of the rectangles: scores of 0.8 and 0.6."""

Box = tuple[int, int, int, int]


def photo(height: int, width: int, red: Box, green: Box) -> RGBImage:
    """Black, with a red and a green rectangle (left, top, right, bottom)."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel, value, (left, top, right, bottom) in ((0, RED, red), (1, GREEN, green)):
        image[top:bottom, left:right, channel] = value
    return image


PHOTOS = {
    "wide": (photo(128, 512, (64, 32, 192, 96), (320, 16, 496, 64)), (64, 32, 192, 96), (320, 16, 496, 64)),
    "tall": (photo(512, 128, (16, 64, 64, 208), (48, 320, 112, 480)), (16, 64, 64, 208), (48, 320, 112, 480)),
    "as it is": (photo(64, 64, (0, 0, 24, 40), (40, 8, 64, 56)), (0, 0, 24, 40), (40, 8, 64, 56)),
    "small": (photo(16, 16, (2, 2, 8, 6), (8, 8, 16, 16)), (2, 2, 8, 6), (8, 8, 16, 16)),
}


def opened(path: Path, score_floor: float = 0.05, max_detections: int | None = 1000) -> ForeignDetector:
    classes = inspect(path).classes
    return ForeignDetector(path, classes, score_floor=score_floor, max_detections=max_detections)


def boxes(found: Detections) -> list[list[float]]:
    return [[float(side) for side in box] for box in found.boxes_xyxy]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ForeignDetector]:
    """One of each layout."""
    folder = tmp_path_factory.mktemp("foreign")
    return {name: opened(write_foreign(folder / f"{name.replace(' ', '_')}.onnx", name)) for name in LAYOUTS}


@pytest.mark.parametrize("picture", PHOTOS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_are_in_the_photographs_pixels(layout: str, picture: str, detectors: dict[str, ForeignDetector]) -> None:
    """Each layout gives each rectangle once, where it is, with its class and score, whatever the photograph's shape."""
    image, red, green = PHOTOS[picture]
    (found,) = detectors[layout].detect([image])
    certainty = 0.9 if layout == "objectness" else 1.0
    pixel = max(image.shape[:2]) / 64  # of the network's input, in the photograph: edges are blurred by so much
    tolerance = 0.01 if layout != "deployed" and layout != "logits" and pixel >= 1 else max(pixel, 0.6)
    assert found.class_ids.tolist() == [0, 1]
    assert np.abs(np.array(boxes(found)) - [red, green]).max() <= tolerance
    assert np.allclose(found.scores, [0.8 * certainty, 0.6 * certainty], atol=0.005)


def test_deimv2_around_dinov3_takes_normalised_pictures(tmp_path: Path) -> None:
    """DEIMv2 with DINOv3 has D-FINE's inputs and outputs, and sees what it was trained on: ImageNet's mean, not 0."""
    image, red, green = PHOTOS["as it is"]
    (found,) = opened(write_foreign(tmp_path / "deimv2.onnx", "deployed", dinov3=True)).detect([image])
    assert np.abs(np.array(boxes(found)) - [red, green]).max() <= 0.6
    assert np.allclose(found.scores, [0.8, 0.6], atol=0.005)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pixel(layout: str, detectors: dict[str, ForeignDetector]) -> None:
    """A photograph of one pixel is one box; a black one has none."""
    (red,), (black,) = (detectors[layout].detect([np.full((1, 1, 3), [value, 0, 0], np.uint8)]) for value in (204, 0))
    assert boxes(red) == [[0, 0, 1, 1]]
    assert red.class_ids.tolist() == [0]
    assert len(black) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strips(layout: str, detectors: dict[str, ForeignDetector]) -> None:
    """Photographs that are a thousand times as long as wide are answered, inside their edges."""
    long = np.zeros((3, 6000, 3), np.uint8)
    long[:, :4500, 2] = 255
    found, turned = detectors[layout].detect([long, long.transpose(1, 0, 2)])
    assert found.class_ids.tolist() == turned.class_ids.tolist() == [2]
    assert abs(found.boxes_xyxy[0, 2] - 4500) < 150
    assert boxes(turned)[0][2] <= 3


def test_no_images_no_answers(detectors: dict[str, ForeignDetector]) -> None:
    """An empty call gives an empty list."""
    assert detectors["anchors"].detect([]) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["free", "half"])
def test_free_sizes_and_float16(kind: str, layout: str, tmp_path: Path, detectors: dict[str, ForeignDetector]) -> None:
    """Graphs without fixed sizes, and those in float16, answer as the others do."""
    path = write_foreign(
        tmp_path / "model.onnx",
        layout,
        metadata={**METADATA[layout], "imgsz": "[64, 64]"},
        free=kind == "free",
        half=kind == "half",
    )
    image = PHOTOS["tall"][0]
    (found,), (expected,) = opened(path).detect([image]), detectors[layout].detect([image])
    assert found.class_ids.tolist() == expected.class_ids.tolist()
    assert np.allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=0.01 if kind == "free" else 1)
    assert np.allclose(found.scores, expected.scores, atol=0.005)


def test_another_shape_of_input(tmp_path: Path) -> None:
    """An input that is not square is filled as far as the photograph goes, the rest is border on both sides."""
    path = write_foreign(tmp_path / "model.onnx", "anchors", height=64, width=128)
    (found,) = opened(path).detect([photo(128, 128, (0, 0, 32, 32), (96, 96, 128, 128))])
    assert boxes(found) == [[0, 0, 32, 32], [96, 96, 128, 128]]


def test_floor_and_limit(tmp_path: Path) -> None:
    """Boxes below the floor are not answered, and the limit keeps the best."""
    image = PHOTOS["as it is"][0]
    path = write_foreign(tmp_path / "model.onnx", "rows")
    assert [len(opened(path, score_floor=floor).detect([image])[0]) for floor in (0.0, 0.59, 0.7, 0.9)] == [2, 2, 1, 0]
    assert opened(path, max_detections=1).detect([image])[0].class_ids.tolist() == [0]


@pytest.mark.parametrize("layout", ["rows", "query rows", "deployed"])
def test_classes_that_do_not_exist(layout: str, tmp_path: Path) -> None:
    """A network that answers a class beyond its names breaks the contract, and it is said."""
    path = write_foreign(tmp_path / "model.onnx", layout, class_offset=2)
    with pytest.raises(DetectorContractError, match="breaks its contract"):
        opened(path).detect([PHOTOS["as it is"][0]])


# --- through the store


def prepared(weights: Path, data_dir: Path) -> ModelVersion:
    return store.prepare(weights, data_dir=data_dir, score_floor=0.25, max_detections=7, norm_eps=0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_file_to_the_boxes(layout: str, tmp_path: Path) -> None:
    """A file becomes a version with the user's floor and limit, which is served with its names and a compiled cache."""
    weights = write_foreign(tmp_path / "小麦 network.onnx", layout)
    version = prepared(weights, tmp_path / "data")
    card = version.card
    named = layout not in ("logits", "dets")
    assert card.classes == (COLOURS if named else ("", "", ""))
    assert (card.score_floor, card.max_detections, set(card.files)) == (0.25, 7, {"model.onnx"})
    assert card.architecture in foreign.ARCHITECTURES
    image = PHOTOS["as it is"][0]
    first, again = (load_detector(version, threads=1, device="cpu").detect([image])[0] for _ in range(2))
    assert boxes(first) == boxes(again)
    assert len(first) == 2
    assert list(version.cache_dir.rglob("*.blob"))


def test_another_floor_is_another_version(tmp_path: Path) -> None:
    """The floor and the limit are part of a version, since its answers depend on them."""
    weights = write_foreign(tmp_path / "model.onnx", "anchors")
    ids = {
        store.identify(weights, data_dir=tmp_path, score_floor=floor, max_detections=limit, norm_eps=0.0).id
        for floor, limit in ((0.05, 1000), (0.1, 1000), (0.05, 500))
    }
    assert len(ids) == 3


def with_data_file(path: Path, location: str) -> Path:
    """The graph with its numbers in a file beside it."""
    write_foreign(path, "anchors")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="numbers.data", size_threshold=0)
    if location != "numbers.data":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_numbers_in_another_file(tmp_path: Path) -> None:
    """Numbers that are kept in a file beside the graph come with it into the version, and belong to its content."""
    (tmp_path / "export").mkdir()
    weights = with_data_file(tmp_path / "export" / "model.onnx", "numbers.data")
    before = inspect(weights)
    version = prepared(weights, tmp_path / "data")
    assert set(version.card.files) == {"model.onnx", "numbers.data"}
    assert len(load_detector(version, device="cpu").detect([PHOTOS["as it is"][0]])[0]) == 2
    assert read_card(version.folder) == version.card
    numbers = weights.with_name("numbers.data")
    numbers.write_bytes(numbers.read_bytes() + b" ")
    assert inspect(weights).sha256 != before.sha256


@pytest.mark.parametrize(
    "location",
    [
        "../numbers.data",
        "/etc/passwd",
        "sub/numbers.data",
        "..\\numbers.data",
        "C:\\numbers.data",
        "C:numbers.data",
        "..",
        "",
        "model.json",
        "nul\0.data",
    ],
)
def test_numbers_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    """A graph can't make us read files outside its folder, or files that mean something in a version's."""
    weights = with_data_file(tmp_path / "network.onnx", location)
    with pytest.raises(WeightsError, match="a place that is not allowed"):
        inspect(weights)


def test_a_missing_data_file(tmp_path: Path) -> None:
    """A graph without the file that its numbers are in is refused, and the file is named."""
    weights = with_data_file(tmp_path / "network.onnx", "numbers.data")
    (tmp_path / "numbers.data").unlink()
    with pytest.raises(WeightsError, match=r"a part of this network is missing\n(.|\n)*numbers\.data"):
        inspect(weights)


def test_a_data_file_that_the_card_does_not_list(tmp_path: Path) -> None:
    """A version whose numbers are in a file that nobody has checked is refused."""
    (tmp_path / "export").mkdir()
    version = prepared(with_data_file(tmp_path / "export" / "model.onnx", "numbers.data"), tmp_path / "data")
    card = replace(version.card, files={"model.onnx": version.card.files["model.onnx"]})
    (version.folder / "model.json").write_text(card.as_json(), "utf-8")
    with pytest.raises(WeightsError, match="other files"):
        weights_info(version.folder)


def test_a_card_with_other_classes(tmp_path: Path) -> None:
    """A card that tells of more classes than the network has is noticed before anything is served."""
    with pytest.raises(WeightsError, match="another number of classes"):
        ForeignDetector(write_foreign(tmp_path / "model.onnx", "anchors"), ("wheat",))


def test_what_openvino_cannot_run(tmp_path: Path) -> None:
    """A graph with an operator that does not exist is a weights error with the file's name."""
    path = write_foreign(tmp_path / "model.onnx", "anchors")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Divine"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"OpenVINO can't run this network\n(.|\n)*model\.onnx"):
        opened(path)


def test_a_file_that_lies_about_its_layout(tmp_path: Path) -> None:
    """Sizes that turn out otherwise than the file says are an error, not boxes."""
    path = write_foreign(tmp_path / "model.onnx", "rows", free=True, metadata={**ULTRALYTICS, "imgsz": "64"})
    model = onnx.load(path)
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    path.write_bytes(model.SerializeToString())
    assert len(opened(path).detect([PHOTOS["as it is"][0]])[0]) == 2  # OpenVINO knows the sizes that the file hides
    onnx.helper.set_model_props(model, {**ULTRALYTICS, "imgsz": "64", "names": "{0: 'a'}"})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DetectorContractError):
        opened(path).detect([PHOTOS["as it is"][0]])


def test_a_look_imports_nothing_heavy(tmp_path: Path) -> None:
    """A file of others is recognised without OpenVINO, onnx, OpenCV or torch."""
    script = (
        "import sys, pathlib; from spica.detectors.weights import inspect; "
        "print(inspect(pathlib.Path(sys.argv[1])).architecture); "
        "print([name for name in ('torch', 'openvino', 'onnx', 'cv2') if name in sys.modules])"
    )
    path = write_foreign(tmp_path / "model.onnx", "anchors")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.splitlines() == ["YOLO (Ultralytics)", "[]"], done.stderr

"""Networks of others, from the file to boxes in the photograph's pixels."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exported_builder import COLOURS, METADATA, ULTRALYTICS, onnx, write_exported
from spica.boxes import Detections
from spica.detectors import exported
from spica.detectors.contract import RGBImage
from spica.detectors.exported import ExportedModel
from spica.detectors.graph import data_files
from spica.detectors.openvino import openvino_core
from spica.detectors.weights import inspect
from spica.errors import DetectorContractError, WeightsError
from spica.models import store
from spica.models.card import describe_files, read_card
from spica.models.load import load_detector
from spica.models.version import ModelVersion, weights_info

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


def opened(path: Path, score_floor: float = 0.05, max_detections: int | None = 1000) -> ExportedModel:
    classes = inspect(path).classes
    return ExportedModel(path, classes, score_floor=score_floor, max_detections=max_detections)


def boxes(found: Detections) -> list[list[float]]:
    return [[float(side) for side in box] for box in found.boxes_xyxy]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedModel]:
    """One of each layout."""
    folder = tmp_path_factory.mktemp("foreign")
    return {name: opened(write_exported(folder / f"{name.replace(' ', '_')}.onnx", name)) for name in LAYOUTS}


@pytest.mark.parametrize("picture", PHOTOS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_are_in_the_photographs_pixels(layout: str, picture: str, detectors: dict[str, ExportedModel]) -> None:
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
    (found,) = opened(write_exported(tmp_path / "deimv2.onnx", "deployed", dinov3=True)).detect([image])
    assert np.abs(np.array(boxes(found)) - [red, green]).max() <= 0.6
    assert np.allclose(found.scores, [0.8, 0.6], atol=0.005)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pixel(layout: str, detectors: dict[str, ExportedModel]) -> None:
    """A photograph of one pixel is one box; a black one has none."""
    (red,), (black,) = (detectors[layout].detect([np.full((1, 1, 3), [value, 0, 0], np.uint8)]) for value in (204, 0))
    assert boxes(red) == [[0, 0, 1, 1]]
    assert red.class_ids.tolist() == [0]
    assert len(black) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strips(layout: str, detectors: dict[str, ExportedModel]) -> None:
    """Photographs that are a thousand times as long as wide are answered, inside their edges."""
    long = np.zeros((3, 6000, 3), np.uint8)
    long[:, :4500, 2] = 255
    found, turned = detectors[layout].detect([long, long.transpose(1, 0, 2)])
    assert found.class_ids.tolist() == turned.class_ids.tolist() == [2]
    assert abs(found.boxes_xyxy[0, 2] - 4500) < 150
    assert boxes(turned)[0][2] <= 3


def test_no_images_no_answers(detectors: dict[str, ExportedModel]) -> None:
    """An empty call gives an empty list."""
    assert detectors["anchors"].detect([]) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["free", "half"])
def test_free_sizes_and_float16(kind: str, layout: str, tmp_path: Path, detectors: dict[str, ExportedModel]) -> None:
    """Graphs without fixed sizes, and those in float16, answer as the others do."""
    path = write_exported(
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
    path = write_exported(tmp_path / "model.onnx", "anchors", height=64, width=128)
    (found,) = opened(path).detect([photo(128, 128, (0, 0, 32, 32), (96, 96, 128, 128))])
    assert boxes(found) == [[0, 0, 32, 32], [96, 96, 128, 128]]


def test_floor_and_limit(tmp_path: Path) -> None:
    """Boxes below the floor are not answered, and the limit keeps the best."""
    image = PHOTOS["as it is"][0]
    path = write_exported(tmp_path / "model.onnx", "rows")
    assert [len(opened(path, score_floor=floor).detect([image])[0]) for floor in (0.0, 0.59, 0.7, 0.9)] == [2, 2, 1, 0]
    assert opened(path, max_detections=1).detect([image])[0].class_ids.tolist() == [0]


@pytest.mark.parametrize("layout", ["rows", "query rows", "deployed"])
def test_classes_that_do_not_exist(layout: str, tmp_path: Path) -> None:
    """A network that answers a class beyond its names breaks the contract, and it is said."""
    path = write_exported(tmp_path / "model.onnx", layout, class_offset=2)
    with pytest.raises(DetectorContractError, match="breaks its contract"):
        opened(path).detect([PHOTOS["as it is"][0]])


# --- through the store


def prepared(weights: Path, data_dir: Path) -> ModelVersion:
    return store.prepare(weights, data_dir=data_dir, score_floor=0.25, max_detections=7, norm_eps=0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_file_to_the_boxes(layout: str, tmp_path: Path) -> None:
    """A file becomes a version with the user's floor and limit, which is served with its names and a compiled cache."""
    weights = write_exported(tmp_path / "小麦 network.onnx", layout)
    version = prepared(weights, tmp_path / "data")
    card = version.card
    named = layout not in ("logits", "dets")
    assert card.classes == (COLOURS if named else ("", "", ""))
    assert (card.score_floor, card.max_detections, set(card.files)) == (0.25, 7, {"model.xml", "model.bin"})
    assert card.architecture in exported.ARCHITECTURES
    image = PHOTOS["as it is"][0]
    first, again = (load_detector(version, threads=1, device="cpu").detect([image])[0] for _ in range(2))
    assert boxes(first) == boxes(again)
    assert len(first) == 2
    assert list(version.cache_dir.rglob("*.blob"))


def test_another_floor_is_another_version(tmp_path: Path) -> None:
    """The floor and the limit are part of a version, since its answers depend on them."""
    weights = write_exported(tmp_path / "model.onnx", "anchors")
    ids = {
        store.identify(weights, data_dir=tmp_path, score_floor=floor, max_detections=limit, norm_eps=0.0).id
        for floor, limit in ((0.05, 1000), (0.1, 1000), (0.05, 500))
    }
    assert len(ids) == 3


def with_data_file(path: Path, location: str) -> Path:
    """The graph with its numbers in a file beside it."""
    write_exported(path, "anchors")
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
    assert set(version.card.files) == {"model.xml", "model.bin"}
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


def earlier_version(weights: Path, tmp_path: Path) -> Path:
    """The folder of a version as the release before wrote it: the ONNX file itself, and the data beside it."""
    version = prepared(weights, tmp_path / "data")
    folder = tmp_path / "earlier"
    folder.mkdir()
    names = ("model.onnx", *(file.name for file in data_files(weights)))
    for name, source in zip(names, (weights, *data_files(weights)), strict=True):
        shutil.copyfile(source, folder / name)
    card = replace(version.card, files=describe_files(folder, names))
    (folder / "model.json").write_text(card.as_json(), "utf-8")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_versions_of_the_release_before_still_open(layout: str, tmp_path: Path) -> None:
    """A version that is an ONNX file gives the boxes that it gives as IR."""
    weights = write_exported(tmp_path / "network.onnx", layout)
    folder = earlier_version(weights, tmp_path)
    assert weights_info(folder).format == "onnx"
    image = PHOTOS["tall"][0]
    before, now = (
        load_detector(prepared(path, tmp_path / "data"), device="cpu").detect([image])[0] for path in (folder, weights)
    )
    assert len(now) == 2
    assert boxes(before) == boxes(now)
    assert before.scores.tolist() == now.scores.tolist()


def test_a_data_file_that_the_card_does_not_list(tmp_path: Path) -> None:
    """A version whose numbers are in a file that nobody has checked is refused."""
    (tmp_path / "export").mkdir()
    folder = earlier_version(with_data_file(tmp_path / "export" / "model.onnx", "numbers.data"), tmp_path)
    card = read_card(folder)
    (folder / "model.json").write_text(replace(card, files={"model.onnx": card.files["model.onnx"]}).as_json(), "utf-8")
    with pytest.raises(WeightsError, match="other files"):
        weights_info(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_download_that_is_links(tmp_path: Path) -> None:
    """Files that are links into a cache, as Hugging Face's downloads are, are read through them."""
    (tmp_path / "cache").mkdir()
    with_data_file(tmp_path / "cache" / "model.onnx", "numbers.data")
    for name in ("model.onnx", "numbers.data"):
        (tmp_path / "cache" / name).rename(tmp_path / "cache" / f"{name}-blob")
        (tmp_path / name).symlink_to(tmp_path / "cache" / f"{name}-blob")
    assert len(opened(tmp_path / "model.onnx").detect([PHOTOS["as it is"][0]])[0]) == 2


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "anchors",
            {
                "model_type": "YOLO",
                "labels": "red green_apple 小麦",
                "resize_type": "fit_to_window_letterbox",
                "pad_value": "114",
                "scale_values": "255 255 255",
                "mean_values": "0 0 0",
                "iou_threshold": "0.7",
                "reverse_input_channels": "True",
            },
        ),
        (
            "dets",
            {
                "model_type": "RF-DETR",
                "labels": "red green_apple 小麦",
                "resize_type": "standard",
                "scale_values": "58.395 57.12 57.375",
                "mean_values": "123.675 116.28 103.53",
                "reverse_input_channels": "True",
            },
        ),
    ],
)
def test_the_stored_graph_says_how_it_is_used(layout: str, expected: dict[str, str], tmp_path: Path) -> None:
    """A stored network carries openvino-model-api's words, and takes its names from nothing but the file."""
    metadata = {**METADATA[layout], "names": "['red', 'green apple', '小麦']", "odd key <": "\x01"}
    weights = write_exported(tmp_path / "network.onnx", layout, metadata=metadata)
    version = prepared(weights, tmp_path / "data")
    model = openvino_core().read_model(version.folder / "model.xml")
    assert {key: value.astype(str) for key, value in model.rt_info["model_info"].items()} == expected
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.xml", "model.bin"):
        shutil.copyfile(version.folder / name, alone / name)
    info = inspect(alone / "model.xml")
    assert (info.architecture, info.classes) == (version.card.architecture, ("red", "green apple", "小麦"))
    again = prepared(alone / "model.xml", tmp_path / "data")
    assert len(load_detector(again, device="cpu").detect([PHOTOS["as it is"][0]])[0]) == 2


def test_a_card_with_other_classes(tmp_path: Path) -> None:
    """A card that tells of more classes than the network has is noticed before anything is served."""
    with pytest.raises(WeightsError, match="another number of classes"):
        ExportedModel(write_exported(tmp_path / "model.onnx", "anchors"), ("wheat",))


def test_what_openvino_cannot_run(tmp_path: Path) -> None:
    """A graph with an operator that does not exist is a weights error with the file's name."""
    path = write_exported(tmp_path / "model.onnx", "anchors")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Divine"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"OpenVINO can't read this network\n(.|\n)*model\.onnx"):
        opened(path)


def test_a_file_that_lies_about_its_layout(tmp_path: Path) -> None:
    """Sizes that turn out otherwise than the file says are an error, not boxes."""
    path = write_exported(tmp_path / "model.onnx", "rows", free=True, metadata={**ULTRALYTICS, "imgsz": "64"})
    model = onnx.load(path)
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    path.write_bytes(model.SerializeToString())
    assert len(opened(path).detect([PHOTOS["as it is"][0]])[0]) == 2  # OpenVINO knows the sizes that the file hides
    onnx.helper.set_model_props(model, {**ULTRALYTICS, "imgsz": "64", "names": "{0: 'a'}"})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DetectorContractError):
        opened(path).detect([PHOTOS["as it is"][0]])

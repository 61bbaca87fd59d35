"""Every architecture: built as torchvision builds it, and its graph against torch."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from spica.boxes import Detections
from spica.detectors import networks
from spica.detectors.architecture import FULL_TAIL, names, recognise
from spica.detectors.comparison import Comparison, compare, rendered_images
from spica.detectors.contract import RGBImage
from spica.detectors.convert import ScaledSize, _set_floor, _torch_answer
from spica.detectors.openvino import OpenVINODetector, openvino_core, save_graph
from spica.detectors.torch_gpu import TorchDetector
from spica.errors import WeightsError
from untrained import few_proposals, spread_state_dict
from weights_builder import MAX_DETECTIONS

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

FLOOR = 0.05
CLASSES = ("spike", "葉")
FIXED_SIZE = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", FULL_TAIL)
LIGHT = "ssdlite320_mobilenet_v3_large"
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
OWN_SIZE = (*FIXED_SIZE, SMALL)
EVERY = [pytest.param(name, marks=() if name in (LIGHT, SMALL) else pytest.mark.exhaustive) for name in names()]
"""Exported in every run: one network of one stage and one of two; the others are for `make test-all`."""
RAISED = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn")
TWO_STAGES = tuple(name for name in names() if name.startswith("fasterrcnn"))
ONE_STAGE = tuple(name for name in names() if name not in TWO_STAGES)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are small, and beside other tests further threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Exported:
    """A network in torch, its graph, and its weights."""

    model: Any
    graph: Path
    state_dict: dict[str, Any]
    input_size: tuple[int, int] | None

    @functools.cached_property
    def served(self) -> OpenVINODetector:
        return OpenVINODetector(self.graph, CLASSES)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The network of a name with spread scores, exported once; heavy ones look at small images."""

    @functools.cache
    def export(architecture: str) -> Exported:
        from spica.detectors.convert import export_onnx

        size = None if architecture in OWN_SIZE else (160, 256)
        state_dict = spread_state_dict(architecture, len(CLASSES) + 1, input_size=size)
        model = networks.build_from(
            state_dict,
            architecture=architecture,
            score_floor=FLOOR,
            max_detections=MAX_DETECTIONS,
            input_size=size,
        )
        if size is not None:
            few_proposals(model)
        folder = tmp_path_factory.mktemp(architecture)
        with torch.no_grad():
            graph = openvino_core().read_model(io.BytesIO(export_onnx(model)))
        save_graph(graph, folder / "model.xml", {"max_aspect": str(networks.max_aspect(model))})
        return Exported(model, folder / "model.xml", state_dict, size)

    return export


def noise(height: int, width: int) -> RGBImage:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def photograph() -> RGBImage:
    return next(rendered_images())


def enlarged(width: int, height: int) -> RGBImage:
    with Image.fromarray(photograph()[:300, :400]) as small:
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def differences(network: Exported, image: RGBImage) -> tuple[Comparison, Detections]:
    expected = _torch_answer(network.model, image)
    (got,) = network.served.detect([image])
    return compare(expected, got, floor=FLOOR, limit=MAX_DETECTIONS), got


@pytest.mark.parametrize("architecture", EVERY)
def test_the_graph_answers_as_torch(architecture: str, exported: Any) -> None:
    """Each network's graph gives torch's boxes of both classes, on images of several sizes."""
    network = exported(architecture)
    images = photograph()[:200, :300], photograph()[:64], photograph()[:, :90]
    found = [differences(network, image) for image in images]
    assert all(comparison.same for comparison, _ in found), [comparison for comparison, _ in found]
    assert sum(len(got) for _, got in found) > 50
    assert {class_id for _, got in found for class_id in got.class_ids} == {0, 1}


@pytest.mark.parametrize("architecture", EVERY)
def test_the_floor_of_every_network_can_be_changed(architecture: str, exported: Any) -> None:
    """Wherever a graph compares scores with the floor, it is changed: no box has more than the highest score."""
    strict = OpenVINODetector(exported(architecture).graph, CLASSES, edit=lambda model: _set_floor(model, FLOOR, 1.0))
    assert [len(found) for found in strict.detect([photograph()[:64]])] == [0]


@pytest.mark.parametrize("architecture", [LIGHT, SMALL])
def test_unusual_images(architecture: str, exported: Any, tmp_path: Path) -> None:
    """Images of one pixel and of twelve million, grey and empty ones are answered as by the detector for CUDA."""
    network = exported(architecture)
    in_torch = detector(network, architecture, tmp_path)
    images = {
        "one pixel": noise(1, 1),
        "4000 x 3000": enlarged(4000, 3000),
        "a size that 32 bits round to another": enlarged(2286, 1641),
        "grey": np.repeat(photograph()[:, :, :1], 3, axis=2),
        "white": np.full((40, 60, 3), 255, np.uint8),
    }
    answers = in_torch.detect(list(images.values())), network.served.detect(list(images.values()))
    for (name, image), expected, got in zip(images.items(), *answers, strict=True):
        scale = np.float32(min(1, 640 / max(image.shape)))  # the networks see no more; half a pixel is one of theirs
        seen = (replace(found, boxes_xyxy=found.boxes_xyxy * scale) for found in (expected, got))
        assert compare(*seen, floor=FLOOR, limit=MAX_DETECTIONS).same, name


@pytest.mark.parametrize("image", [noise(1, 900), noise(901, 1)], ids=["wide", "high"])
def test_strips_are_not_shrunk_to_nothing(image: RGBImage, exported: Any, tmp_path: Path) -> None:
    """A network for small images answers a strip of one pixel's width, in torch and as a graph."""
    network = exported(SMALL)
    for served in (network.served, detector(network, SMALL, tmp_path)):
        (found,) = served.detect([image])
        assert (found.boxes_xyxy <= [image.shape[1], image.shape[0]] * 2).all()


def detector(network: Exported, architecture: str, folder: Path, **options: Any) -> TorchDetector:
    """The detector for CUDA, here on the CPU."""
    torch.save(network.state_dict, folder / "w.pth")
    return TorchDetector(
        folder / "w.pth",
        CLASSES,
        architecture=architecture,
        norm_eps=None,
        score_floor=FLOOR,
        max_detections=MAX_DETECTIONS,
        device="cpu",
        **options,
    )


@given(st.integers(1, 12000), st.integers(1, 12000), st.sampled_from([(800, 1333), (320, 640), (512, 853)]))
@example(3000, 4000, (800, 1333))
@example(1599, 1381, (512, 853))
@settings(deadline=None, max_examples=300)
def test_images_are_scaled_to_torchs_size(height: int, width: int, target: tuple[int, int]) -> None:
    """The size worked out in whole numbers is the one that torchvision gets in 64-bit floats, rounding included."""
    scale = min(target[0] / min(height, width), target[1] / max(height, width))
    got = _scaled_size(target)(torch.tensor([height, width])).tolist()
    assert got == [math.floor(height * scale), math.floor(width * scale)]


@functools.cache
def _scaled_size(target: tuple[int, int]) -> ScaledSize:
    return ScaledSize(*target)


@pytest.mark.exhaustive
def test_hundreds_of_boxes(exported: Any) -> None:
    """A dense scene is not cut at the 200 or 300 boxes of torchvision's limits."""
    comparison, got = differences(exported("ssd300_vgg16"), photograph())
    assert len(got) > 800
    assert comparison.same


@pytest.mark.parametrize("architecture", [name for name in EVERY if name.values[0] in (LIGHT, *RAISED)])
def test_raised_limits_keep_torchvisions_boxes(architecture: str, exported: Any) -> None:
    """Boxes that torchvision's own limits let through are all answered, first and in the same order."""
    from torchvision.models import get_model

    network = exported(architecture)
    min_size, max_size = network.input_size or (None, None)
    sizes = {"min_size": min_size, "max_size": max_size} if min_size else {}
    theirs = get_model(architecture, weights=None, weights_backbone=None, num_classes=3, score_thresh=FLOOR, **sizes)
    theirs.load_state_dict(network.state_dict)
    expected, got = (_torch_answer(model.eval(), photograph()) for model in (theirs, network.model))
    assert len(expected) > 10
    assert len(got) >= len(expected)
    kept = {tuple(box) for box in got.boxes_xyxy}
    assert all(tuple(box) in kept for box in expected.boxes_xyxy)


@pytest.mark.parametrize("architecture", names())
def test_limits_reach_every_network(architecture: str) -> None:
    """Floor and limit go into each network, and no limit before them is lower than it must be."""
    with torch.device("meta"):
        model: Any = networks.build(architecture, 2, score_floor=0.125, max_detections=300)
    assert model.training
    for limit, proposals in ((300, 300), (1000, 1000), (5000, 1000)):
        networks.limit(model, score_floor=0.125, max_detections=limit)
        part = model.roi_heads if architecture in TWO_STAGES else model
        assert (part.score_thresh, part.detections_per_img) == (0.125, limit)
        if architecture in TWO_STAGES:
            assert model.rpn._post_nms_top_n["testing"] >= proposals
            assert model.rpn._pre_nms_top_n["testing"] >= proposals
        else:
            assert model.topk_candidates >= 10 * limit


@pytest.mark.parametrize("architecture", names())
def test_frozen_norms_take_their_own_eps(architecture: str) -> None:
    """A frozen network has no BatchNorm2d left, and the setting for eps reaches those two alone that depend on it."""
    with torch.device("meta"):
        batch, frozen = (networks.build(architecture, 2, norm=norm, norm_eps=0.25) for norm in ("batch", "frozen"))
    own = {layer.eps for layer in networks._norms(batch)}
    assert 0.25 not in own
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in frozen.modules())
    settable = architecture in ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
    assert {layer.eps for layer in networks._norms(frozen)} == ({0.25} if settable else own)


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision is given a backbone fresh from its initialisation where it would download a trained one."""
    from torchvision import models

    def made(url: str, **_: object) -> dict[str, Any]:
        model = models.mobilenet_v3_large(weights=None) if "mobilenet" in url else models.resnet50(weights=None)
        return {key: value for key, value in model.state_dict().items() if "num_batches" not in key}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", made)


@pytest.mark.parametrize("architecture", ["fasterrcnn_mobilenet_v3_large_fpn", "fcos_resnet50_fpn"])
def test_frozen_networks_are_torchvisions(architecture: str, no_download: None) -> None:
    """What torchvision builds around a trained backbone has the layers, eps and keys of our frozen network."""
    from torchvision.models import get_model

    theirs = get_model(architecture, weights=None, weights_backbone="DEFAULT", num_classes=2)
    ours = networks.build(architecture, 2, norm="frozen")
    assert [(name, type(layer), getattr(layer, "eps", 0)) for name, layer in ours.named_modules()] == [
        (name, type(layer), getattr(layer, "eps", 0)) for name, layer in theirs.named_modules()
    ]
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_the_full_tail_is_torchvisions(no_download: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSDlite around a trained backbone is recognised, and answers as torchvision's own with the same weights."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", functools.partialmethod(_load_loosely))
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone="DEFAULT", num_classes=3, score_thresh=FLOOR)
    monkeypatch.undo()
    found = recognise({key: tuple(value.shape) for key, value in theirs.state_dict().items()})
    assert not isinstance(found, str)
    assert (found.architecture, found.num_classes, found.norm) == (FULL_TAIL, 2, "batch")
    state_dict = spread_state_dict(FULL_TAIL, 3)
    theirs.load_state_dict(state_dict)
    ours = networks.build_from(state_dict, score_floor=FLOOR, max_detections=10)
    theirs.eval().detections_per_img = 10
    ours_found, theirs_found = _torch_answer(ours, photograph()), _torch_answer(theirs, photograph())
    assert len(ours_found) == 10
    assert np.array_equal(ours_found.boxes_xyxy, theirs_found.boxes_xyxy)
    assert np.array_equal(ours_found.scores, theirs_found.scores)


_load_state_dict = torch.nn.Module.load_state_dict


def _load_loosely(module: Any, state_dict: Any, **_: object) -> object:
    return _load_state_dict(module, state_dict, strict=False)  # the made-up backbone counts no batches


@pytest.mark.parametrize("fails", [False, True], ids=["together", "too little memory"])
def test_batches_answer_as_single_images(
    fails: bool, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours of one size are computed together, or singly if memory is short, and every image has its own boxes."""
    network = exported(SMALL)
    images = [photograph(), photograph()[::-1].copy(), noise(90, 120), photograph()[:, ::-1].copy()]
    alone = detector(network, SMALL, tmp_path).detect(images)
    together = detector(network, SMALL, tmp_path, batch=3)
    given: list[int] = []
    answers = together._forward

    def counted(images: Any) -> Any:
        given.append(len(images))
        if fails and len(images) > 1:
            raise torch.OutOfMemoryError
        return answers(images)

    monkeypatch.setattr(together, "_forward", counted)
    for got, expected in zip(together.detect(images), alone, strict=True):
        assert len(expected) > 0
        np.testing.assert_allclose(got.boxes_xyxy, expected.boxes_xyxy, atol=0.05)
        np.testing.assert_allclose(got.scores, expected.scores, atol=1e-4)
    assert given == ([2, 1, 1, 1, 1] if fails else [2, 1, 1])


def test_half_precision_keeps_the_contract(exported: Any, tmp_path: Path) -> None:
    """In 16 bits the detector for CUDA, here on the CPU, finds most of the boxes of 32 bits."""
    network = exported(SMALL)
    half = detector(network, SMALL, tmp_path, bf16=True)
    (got,), expected = half.detect([photograph()]), _torch_answer(network.model, photograph())
    assert got.scores.dtype == got.boxes_xyxy.dtype == np.float32
    assert abs(len(got) - len(expected)) <= 0.3 * len(expected)
    assert not np.array_equal(got.scores, expected.scores)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param({"architecture": "yolo"}, "no such architecture", id="an unknown name"),
        pytest.param({"architecture": LIGHT, "min_size": 640}, "always scaled to the same size", id="a fixed size"),
    ],
)
def test_networks_that_cannot_be_built(arguments: dict[str, Any], told: str) -> None:
    """A name that is not known, or a size for a network of fixed size, is refused."""
    with pytest.raises(WeightsError, match=told):
        networks.build(num_outputs=2, **arguments)


def test_other_weights_are_refused() -> None:
    """Tensors that are no network's are refused with their names."""
    with pytest.raises(WeightsError, match="not the weights of") as refused:
        networks.build_from({"fc.weight": torch.zeros(2, 3)})
    assert "image classifier" in str(refused.value)

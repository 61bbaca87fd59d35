from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from spica.detectors.architecture import (
    FASTER_RCNN,
    Norm,
    Recognised,
    expected_shapes,
    find_state_dict,
    names,
    own_eps,
    recognise,
)

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]
OTHERS = {
    "maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn": "keypointrcnn_resnet50_fpn",
    "resnet50": "an image classifier",
    "mobilenet_v3_small": "an image classifier",
    "vit_b_16": "an image classifier",
}
SAME_SHAPES = ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn")


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def is_shape(value: object) -> bool:
    return isinstance(value, tuple)


def test_the_table_is_the_networks() -> None:
    """architectures.json is what scripts/write_architectures.py writes today."""
    pytest.importorskip("torch", reason="needs the extra spica[train]")
    script = runpy.run_path(str(ROOT / "scripts" / "write_architectures.py"))
    written = script["PATH"].read_text("utf-8")
    assert written == script["text"](), "run scripts/write_architectures.py"


@pytest.mark.parametrize("architecture", names())
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_shapes_are_the_networks(architecture: str, norm: Norm) -> None:
    """The keys and shapes expected without torch are those that the network itself has, and tell which it is."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from spica.detectors.networks import build

    with torch.device("meta"):
        theirs = shapes_of(build(architecture, 91, norm=norm))
    assert expected_shapes(architecture, 91, norm) == theirs
    found = recognise(theirs)
    assert isinstance(found, Recognised)
    assert architecture in (found.architecture, *found.others)
    assert found.num_classes == 90
    assert found.norm == (norm if own_eps(architecture) is not None else "batch")


def test_two_networks_have_the_same_shapes() -> None:
    """Where shapes fit two networks, the first is taken and the other is named, unless one is asked for."""
    shapes = expected_shapes(SAME_SHAPES[0], 4, "frozen")
    assert recognise(shapes) == Recognised(SAME_SHAPES[0], 3, "frozen", SAME_SHAPES[1:])
    assert recognise(shapes, SAME_SHAPES[1]) == Recognised(SAME_SHAPES[1], 3, "frozen", SAME_SHAPES[:1])


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        pytest.param("ssd300_vgg16", "not of ssd300_vgg16", id="another network"),
        pytest.param("yolo", "'yolo' is no architecture that is known here", id="an unknown name"),
    ],
)
def test_the_wanted_network_must_fit(wanted: str, told: str) -> None:
    """A network that is asked for, but whose shapes these are not, is refused."""
    assert told in str(recognise(expected_shapes(SAME_SHAPES[0], 4, "frozen"), wanted))


@pytest.mark.parametrize(("builder", "told"), OTHERS.items(), ids=OTHERS.keys())
def test_other_networks_are_named(builder: str, told: str) -> None:
    """Weights of another network are refused with its name and some of its keys."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from torchvision.models import get_model

    backbone = {"weights_backbone": None} if "rcnn" in builder else {}
    with torch.device("meta"):
        shapes = shapes_of(get_model(builder, weights=None, **backbone))
    reason = recognise(shapes)
    assert isinstance(reason, str)
    assert told in reason
    assert any(key in reason for key in shapes)


def test_a_deeper_resnet_is_named() -> None:
    """A Faster R-CNN with ResNet-101 is told from one with ResNet-50."""
    shapes = expected_shapes(FASTER_RCNN, 2, "frozen") | {"backbone.body.layer3.22.conv1.weight": (256, 1024, 1, 1)}
    assert "ResNet-101" in str(recognise(shapes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"backbone.body.conv1.weight": (64, 1, 7, 7)}, "(64, 1, 7, 7)", id="grey input"),
        pytest.param({"rpn.head.cls_logits.weight": (9, 256, 1, 1)}, "rpn.head.cls_logits.weight", id="other anchors"),
        pytest.param({"roi_heads.box_predictor.cls_score.weight": ()}, "()", id="a scalar for the scores"),
        pytest.param({"total_ops": (1,)}, "nearly a fasterrcnn_resnet50_fpn; keys that don't", id="a key too many"),
        pytest.param({"roi_heads.box_head.fc6.bias": None}, "roi_heads.box_head.fc6.bias", id="a key too few"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, tuple[int, ...] | None], told: str) -> None:
    """A key or shape that does not fit is in the refusal."""
    shapes = {
        key: shape for key, shape in (expected_shapes(FASTER_RCNN, 2, "frozen") | change).items() if shape is not None
    }
    assert told in str(recognise(shapes))


def test_a_class_is_needed() -> None:
    """Weights for the background alone are refused."""
    assert "at least 2" in str(recognise(expected_shapes(FASTER_RCNN, 1, "frozen")))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["transformer.encoder.layers.0.norm1.weight", "class_embed.weight", "bbox_embed.layers.0.bias"], "DETR"),
        (["model.0.conv.weight", "model.1.conv.weight", "model.22.cv2.0.0.conv.weight"], "a YOLO network"),
        (["model.decoder.bbox_embed.0.layers.0.weight", "model.backbone.x"], "RT-DETR"),
        (["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"], "detectron2"),
        (["backbone.conv1.weight", "bbox_head.fc_cls.weight"], "mmdetection"),
        (["encoder.weight"], "no network that is known here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_detectors_of_other_families_are_guessed(keys: list[str], told: str) -> None:
    """Weights of detectors outside torchvision are refused with their family's name."""
    reason = str(recognise(dict.fromkeys(keys, (1,))))
    assert told in reason
    assert keys[0] in reason


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_keys_before_torchvision_0_13(norm: Norm) -> None:
    """RetinaNet's published weights have their old keys to this day; FCOS always had such keys and keeps them."""
    present = expected_shapes("retinanet_resnet50_fpn", 91, norm)
    old = {}
    for key, shape in present.items():
        parts = key.split(".")
        if parts[0] == "head" and parts[2] == "conv":
            key = ".".join([*parts[:3], str(2 * int(parts[3])), parts[5]])
        old[key.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.")] = shape
    assert old != present
    assert find_state_dict(old, is_tensor=is_shape) == present
    fcos = expected_shapes("fcos_resnet50_fpn", 91, norm)
    assert find_state_dict(fcos, is_tensor=is_shape) == fcos


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda shapes: shapes, id="as it is"),
        pytest.param(lambda shapes: {"model": shapes, "epoch": 3}, id="under model"),
        pytest.param(lambda shapes: {"state_dict": shapes, "optimizer": {"lr": 1}}, id="under state_dict"),
        pytest.param(lambda shapes: {"model_state_dict": shapes}, id="under model_state_dict"),
        pytest.param(lambda shapes: {f"module.{key}": shape for key, shape in shapes.items()}, id="DataParallel"),
        pytest.param(
            lambda shapes: {"state_dict": {f"model.module.{key}": shape for key, shape in shapes.items()}},
            id="Lightning and DataParallel",
        ),
        pytest.param(
            lambda shapes: {"n_averaged": ()} | {f"module.{key}": shape for key, shape in shapes.items()},
            id="an average of the weights",
        ),
        pytest.param(
            lambda shapes: {"state_dict": {f"detector._orig_mod.{key}": shape for key, shape in shapes.items()}},
            id="Lightning with another attribute and torch.compile",
        ),
        pytest.param(
            lambda shapes: {
                key.replace("_blocks.0.0.", "_blocks.0.").replace("conv.0.0.", "conv."): shape
                for key, shape in shapes.items()
            },
            id="keys before torchvision 0.13",
        ),
    ],
)
def test_the_state_dict_is_found(wrap: Any) -> None:
    """The state_dict is found where training scripts leave it, under its present names."""
    shapes = expected_shapes(FASTER_RCNN, 2, "frozen")
    assert find_state_dict(wrap(shapes), is_tensor=is_shape) == shapes


@pytest.mark.parametrize("found", [None, [], {}, {"model": {}}, {"epoch": 3}, {1: (2,)}], ids=repr)
def test_no_state_dict_is_none(found: object) -> None:
    """What holds no dict of tensors gives None."""
    assert find_state_dict(found, is_tensor=is_shape) is None

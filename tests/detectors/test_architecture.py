from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

from spica.detectors.architecture import FASTER_RCNN, Norm, Recognised, names, own_eps, recognise  # noqa: E402
from spica.detectors.checkpoint import find_state_dict  # noqa: E402
from spica.detectors.networks import build, build_from  # noqa: E402
from spica.errors import WeightsError  # noqa: E402
from weights_builder import shapes_of  # noqa: E402

pytestmark = pytest.mark.torch
NORMS: tuple[Norm, ...] = ("frozen", "batch")
OTHERS = {
    "maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn": "keypointrcnn_resnet50_fpn",
    "resnet50": "an image classifier",
    "mobilenet_v3_small": "an image classifier",
    "vit_b_16": "an image classifier",
}
SAME_SHAPES = ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn")


def is_shape(value: object) -> bool:
    return isinstance(value, tuple)


@pytest.mark.parametrize("architecture", names())
def test_every_network_is_recognised(architecture: str) -> None:
    """Its weights are taken for its own, with their number of classes and kind of norm, and for no other's."""
    for norm in NORMS:
        found = recognise(shapes_of(architecture, 91, norm))
        assert isinstance(found, Recognised)
        fitting = (found.architecture, *found.others)
        assert fitting == (SAME_SHAPES if architecture in SAME_SHAPES else (architecture,))
        assert found.num_classes == 90
        assert found.norm == (norm if own_eps(architecture) is not None else "batch")


@pytest.mark.parametrize("architecture", names())
def test_the_eps_is_the_networks(architecture: str) -> None:
    """What is written into cards is what the network is built with."""
    with torch.device("meta"):
        layers = [layer for layer in build(architecture, 2).modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert {layer.eps for layer in layers} == ({own_eps(architecture)} - {None})


def test_two_networks_have_the_same_shapes() -> None:
    """Where shapes fit two networks, the first is taken and the other is named, unless one is asked for."""
    shapes = shapes_of(SAME_SHAPES[0], 4, "frozen")
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
    assert told in str(recognise(shapes_of(SAME_SHAPES[0], 4, "frozen"), wanted))


@pytest.mark.parametrize(("builder", "told"), OTHERS.items(), ids=OTHERS.keys())
def test_other_networks_are_named(builder: str, told: str) -> None:
    """Weights of another network are refused with its name and some of its keys."""
    from torchvision.models import get_model

    backbone = {"weights_backbone": None} if "rcnn" in builder else {}
    with torch.device("meta"):
        state_dict = get_model(builder, weights=None, **backbone).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    reason = recognise(shapes)
    assert isinstance(reason, str)
    assert told in reason
    assert any(key in reason for key in shapes)


def test_a_deeper_resnet_is_named() -> None:
    """A Faster R-CNN with ResNet-101 is told from one with ResNet-50."""
    shapes = shapes_of(FASTER_RCNN, 2, "frozen") | {"backbone.body.layer3.22.conv1.weight": (256, 1024, 1, 1)}
    assert "ResNet-101" in str(recognise(shapes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"roi_heads.box_predictor.cls_score.weight": ()}, "0 class", id="a scalar for the scores"),
        pytest.param({"roi_heads.box_head.fc6.weight": None}, "another backbone", id="another box head"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, tuple[int, ...] | None], told: str) -> None:
    """Weights without what makes the network are refused before torch is asked."""
    shapes = {key: shape for key, shape in (shapes_of(FASTER_RCNN, 2, "frozen") | change).items() if shape is not None}
    assert told in str(recognise(shapes))


def test_other_anchors_are_refused() -> None:
    """Rows of the head that are no multiple of the anchors belong to a network with others."""
    head = {"head.classification_head.cls_logits.weight": (31, 256, 3, 3)}
    assert "9 anchors" in str(recognise(shapes_of("retinanet_resnet50_fpn", 2, "frozen") | head))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"backbone.body.conv1.weight": (64, 1, 7, 7)}, "backbone.body.conv1.weight", id="grey input"),
        pytest.param({"total_ops": (1,)}, "total_ops", id="a key too many"),
        pytest.param({"roi_heads.box_head.fc6.bias": None}, "roi_heads.box_head.fc6.bias", id="a key too few"),
    ],
)
def test_what_torch_does_not_load_is_named(change: dict[str, tuple[int, ...] | None], told: str) -> None:
    """A key or shape that does not fit is in the refusal, though the rest looks like the network."""
    shapes = shapes_of(FASTER_RCNN, 2, "frozen") | change
    state_dict = {key: torch.zeros(shape) for key, shape in shapes.items() if shape is not None}
    with pytest.raises(WeightsError, match="nearly the weights of fasterrcnn_resnet50_fpn") as refused:
        build_from(state_dict)
    assert told in str(refused.value.got)


def test_a_class_is_needed() -> None:
    """Weights for the background alone are refused."""
    assert "at least 2" in str(recognise(shapes_of(FASTER_RCNN, 1, "frozen")))


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
    present = shapes_of("retinanet_resnet50_fpn", 91, norm)
    old = {}
    for key, shape in present.items():
        parts = key.split(".")
        if parts[0] == "head" and parts[2] == "conv":
            key = ".".join([*parts[:3], str(2 * int(parts[3])), parts[5]])
        old[key.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.")] = shape
    assert old != present
    assert find_state_dict(old, is_tensor=is_shape) == present
    fcos = shapes_of("fcos_resnet50_fpn", 91, norm)
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
    shapes = shapes_of(FASTER_RCNN, 2, "frozen")
    assert find_state_dict(wrap(shapes), is_tensor=is_shape) == shapes


@pytest.mark.parametrize("found", [None, [], {}, {"model": {}}, {"epoch": 3}, {1: (2,)}], ids=repr)
def test_no_state_dict_is_none(found: object) -> None:
    """What holds no dict of tensors gives None."""
    assert find_state_dict(found, is_tensor=is_shape) is None

from __future__ import annotations

from typing import Any

import pytest

from spica.detectors.architecture import FasterRCNN, Norm, expected_shapes, find_state_dict, recognise

pytestmark = pytest.mark.torch
OTHERS = {
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn",
    "maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn": "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn": "fcos_resnet50_fpn",
    "ssd300_vgg16": "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large": "ssdlite320_mobilenet_v3_large",
    "resnet50": "an image classifier",
    "mobilenet_v3_small": "an image classifier",
}


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def is_shape(value: object) -> bool:
    return isinstance(value, tuple)


@pytest.mark.parametrize("num_classes", [2, 4, 91])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_shapes_are_torchvisions(num_classes: int, norm: Norm) -> None:
    """The keys and shapes expected without torch are those that torchvision's own network has."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from torchvision.models.detection import FasterRCNN as Model
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    layer = FrozenBatchNorm2d if norm == "frozen" else torch.nn.BatchNorm2d
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=layer)
        theirs = shapes_of(Model(backbone, num_classes))
    assert expected_shapes(num_classes, norm) == theirs
    assert len(theirs) == (295 if norm == "frozen" else 348)
    assert recognise(theirs) == FasterRCNN(num_classes - 1, norm)


@pytest.mark.parametrize(("builder", "told"), OTHERS.items(), ids=OTHERS.keys())
def test_other_networks_are_named(builder: str, told: str) -> None:
    """Weights of another network are refused with its name and some of its keys."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from torchvision.models import get_model

    backbone = {} if builder[-5:] == "net50" or "small" in builder else {"weights_backbone": None}
    with torch.device("meta"):
        shapes = shapes_of(get_model(builder, weights=None, **backbone))
    reason = recognise(shapes)
    assert isinstance(reason, str)
    assert told in reason
    assert any(key in reason for key in shapes)


def test_a_deeper_resnet_is_named() -> None:
    """A Faster R-CNN with ResNet-101 is told from one with ResNet-50."""
    shapes = expected_shapes(2, "frozen") | {"backbone.body.layer3.22.conv1.weight": (256, 1024, 1, 1)}
    assert "ResNet-101" in str(recognise(shapes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"backbone.body.conv1.weight": (64, 1, 7, 7)}, "(64, 1, 7, 7)", id="grey input"),
        pytest.param({"rpn.head.cls_logits.weight": (9, 256, 1, 1)}, "rpn.head.cls_logits.weight", id="other anchors"),
        pytest.param({"roi_heads.box_predictor.cls_score.weight": ()}, "()", id="a scalar for the scores"),
        pytest.param({"total_ops": (1,)}, "total_ops", id="a key too many"),
        pytest.param({"roi_heads.box_head.fc6.bias": None}, "roi_heads.box_head.fc6.bias", id="a key too few"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, tuple[int, ...] | None], told: str) -> None:
    """A key or shape that does not fit is in the refusal."""
    shapes = {key: shape for key, shape in (expected_shapes(2, "frozen") | change).items() if shape is not None}
    assert told in str(recognise(shapes))


def test_a_class_is_needed() -> None:
    """Weights for the background alone are refused."""
    assert "at least 2" in str(recognise(expected_shapes(1, "frozen")))


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
    shapes = expected_shapes(2, "frozen")
    assert find_state_dict(wrap(shapes), is_tensor=is_shape) == shapes


@pytest.mark.parametrize("found", [None, [], {}, {"model": {}}, {"epoch": 3}, {1: (2,)}], ids=repr)
def test_no_state_dict_is_none(found: object) -> None:
    """What holds no dict of tensors gives None."""
    assert find_state_dict(found, is_tensor=is_shape) is None

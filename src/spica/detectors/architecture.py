"""Which network a state_dict belongs to, by a few of its keys and shapes; that all of them fit, torch proves when the
weights are loaded (``load_state_dict``, strict).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Norm = Literal["frozen", "batch"]
Shape = tuple[int, ...]

FASTER_RCNN: Final = "fasterrcnn_resnet50_fpn"
"""torchvision's name of the tutorial's network."""

FASTER_RCNN_LITE: Final = "fasterrcnn_efficientnet_lite0_fpn"
"""Spica's own network, named as torchvision's are."""

FULL_TAIL: Final = "ssdlite320_mobilenet_v3_large_full_tail"
"""torchvision's ``ssdlite320_mobilenet_v3_large`` around a backbone trained on ImageNet, which has wider last layers
than the one with COCO weights."""

_EPS_SETTABLE = (FASTER_RCNN, "retinanet_resnet50_fpn")
"""torchvision gives these two eps 0 with its COCO weights and 1e-5 else (``overwrite_eps`` in faster_rcnn.py and
retinanet.py of torchvision/models/detection), and a file doesn't say which one it was trained with."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the weights of a network say.

    Attributes:
        architecture: torchvision's name, or Spica's own.
        num_classes: without the background, at least 1.
        norm: ``batch`` if its batch norm layers count batches, or if it has none; else ``frozen``.
        others: architectures that have the same keys and shapes and would answer differently.
    """

    architecture: str
    num_classes: int
    norm: Norm
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Network:
    """How a network is known.

    Attributes:
        keys: which it has, and no other network here has all of them; with the first side of the shape where keys alone
            fit two networks.
        head: key of the layer whose first side counts ``anchors`` times the classes and the background.
        anchors: of each place on the feature map.
        eps: of its batch norm as it is trained; None without any.
    """

    keys: Mapping[str, int | None]
    head: str
    anchors: int = 1
    eps: float | None = 1e-5


_BOX_HEAD = "roi_heads.box_predictor.cls_score.weight"
_CLASS_HEAD = "head.classification_head.cls_logits.weight"
_SSD_HEAD = "head.classification_head.module_list.0"
_SSDLITE_TAIL = "backbone.features.1.3.0.weight"
_RESNET50 = {"backbone.body.layer4.2.conv3.weight": None}
_MLP_HEAD = {"roi_heads.box_head.fc6.weight": None}
_MOBILENET = {"backbone.body.16.0.weight": None, **_MLP_HEAD}
_NETWORKS: Final[Mapping[str, _Network]] = {
    FASTER_RCNN: _Network({**_RESNET50, **_MLP_HEAD}, _BOX_HEAD),
    "fasterrcnn_resnet50_fpn_v2": _Network({**_RESNET50, "roi_heads.box_head.0.0.weight": None}, _BOX_HEAD),
    "fasterrcnn_mobilenet_v3_large_fpn": _Network(_MOBILENET, _BOX_HEAD),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _Network(_MOBILENET, _BOX_HEAD),
    "ssdlite320_mobilenet_v3_large": _Network({_SSDLITE_TAIL: 480}, f"{_SSD_HEAD}.1.weight", 6, 1e-3),
    "ssd300_vgg16": _Network({"backbone.scale_weight": None}, f"{_SSD_HEAD}.weight", 4, None),
    "retinanet_resnet50_fpn": _Network(
        {**_RESNET50, "head.classification_head.conv.0.0.bias": None}, _CLASS_HEAD, anchors=9
    ),
    "retinanet_resnet50_fpn_v2": _Network(
        {**_RESNET50, "head.classification_head.conv.0.1.weight": None}, _CLASS_HEAD, anchors=9
    ),
    "fcos_resnet50_fpn": _Network({**_RESNET50, "head.regression_head.bbox_ctrness.weight": None}, _CLASS_HEAD),
    FULL_TAIL: _Network({_SSDLITE_TAIL: 960}, f"{_SSD_HEAD}.1.weight", 6, 1e-3),
    FASTER_RCNN_LITE: _Network({"backbone.body.blocks.15.project.conv.weight": None, **_MLP_HEAD}, _BOX_HEAD, eps=1e-3),
}

_BEYOND = (
    (".roi_heads.mask_predictor.", "torchvision's maskrcnn_resnet50_fpn"),
    (".roi_heads.keypoint_predictor.", "torchvision's keypointrcnn_resnet50_fpn"),
    (".backbone.body.layer3.22.", "a network with ResNet-101"),
)
"""Parts of keys, each after a dot, that no network here has, though the rest may fit; and whose they are."""

_SIGNS = (
    *_BEYOND,
    (".roi_heads.box_predictor.", "a Faster R-CNN with another backbone"),
    (".head.regression_head.bbox_ctrness", "an FCOS with another backbone"),
    (".head.classification_head.module_list", "an SSD with another backbone"),
    (".head.classification_head.cls_logits", "a RetinaNet with another backbone"),
    (".decoder.dec_bbox_head.", "RT-DETR or D-FINE"),
    (".dec_bbox_head.", "RT-DETR or D-FINE"),
    (".model.decoder.bbox_embed.", "RT-DETR or D-FINE of the library transformers"),
    (".bbox_predictor.layers.", "DETR of the library transformers"),
    (".class_labels_classifier.", "DETR of the library transformers"),
    (".refpoint_embed.", "RF-DETR"),
    (".transformer.encoder.", "DETR"),
    (".transformer.decoder.", "DETR"),
    (".bbox_head.", "a detector of the library mmdetection"),
    (".proposal_generator.", "a detector of the library detectron2"),
    (".bifpn.", "EfficientDet"),
    (".0.conv.weight", "a YOLO network"),
    (".backbone.backbone.stem.", "YOLOX"),
    (".heads.head.weight", "an image classifier (a vision transformer)"),
    (".classifier.", "an image classifier"),
    (".fc.weight", "an image classifier (ResNet)"),
    (".head.weight", "an image classifier"),
)
"""Parts of keys, each after a dot, and whose they are, the most particular first."""


def names() -> tuple[str, ...]:
    """All architectures that are recognised."""
    return tuple(_NETWORKS)


def own_eps(architecture: str) -> float | None:
    """Eps of the batch norm that the architecture is trained with; None if it has no batch norm."""
    return _NETWORKS[architecture].eps


def eps_is_a_setting(architecture: str, norm: Norm) -> bool:
    """Whether eps of the batch norm depends on how the weights were trained, which the file does not say."""
    return norm == "frozen" and architecture in _EPS_SETTABLE


def recognise(shapes: Mapping[str, Shape], wanted: str | None = None) -> Recognised | str:
    """The network that these weights look like, or, in a few words, why they are none's.

    Args:
        shapes: by key, as :func:`spica.detectors.checkpoint.find_state_dict` names them.
        wanted: the architecture to take where several look the same; None takes the first of them. One that these
            weights don't look like is refused.
    """
    if wanted is not None and wanted not in _NETWORKS:
        return f"{wanted!r} is no architecture that is known here; known are {', '.join(_NETWORKS)}"
    fitting = [name for name, network in _NETWORKS.items() if _fits(network, shapes)]
    if not fitting or _whose(shapes, _BEYOND):
        guess = _whose(shapes, _SIGNS)
        first = ", ".join(key[:80] for key in sorted(shapes)[:3])
        more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        return f"{f'this looks like {guess}' if guess else 'no network that is known here'}; its keys are {first}{more}"
    if wanted is not None and wanted not in fitting:
        return f"they are those of {' or '.join(fitting)}, not of {wanted}"
    name = wanted or fitting[0]
    network = _NETWORKS[name]
    rows = shapes[network.head][0] if shapes[network.head] else 0
    outputs, rest = divmod(rows, network.anchors)
    if rest:
        return f"nearly a {name}: {network.head} has {rows} rows, which is no multiple of its {network.anchors} anchors"
    if outputs < 2:
        return f"{name} with {outputs} class, the background included; at least 2 are needed"
    counts = network.eps is None or any(key.endswith(".num_batches_tracked") for key in shapes)
    others = tuple(other for other in fitting if other != name)
    return Recognised(name, outputs - 1, "batch" if counts else "frozen", others)


def _fits(network: _Network, shapes: Mapping[str, Shape]) -> bool:
    return network.head in shapes and all(
        key in shapes and side in (None, *shapes[key][:1]) for key, side in network.keys.items()
    )


def _whose(keys: Iterable[str], signs: Iterable[tuple[str, str]]) -> str | None:
    """The network outside of those here that these keys are of."""
    dotted = [f".{key}" for key in keys]
    return next((whose for sign, whose in signs if any(sign in key for key in dotted)), None)

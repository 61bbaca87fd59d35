import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

from spica.detectors import networks  # noqa: E402 - after the check for torch
from spica.detectors.architecture import FASTER_RCNN_LITE, Recognised, recognise  # noqa: E402
from spica.detectors.comparison import compare, rendered_images  # noqa: E402
from spica.detectors.efficientnet_lite import load_backbone  # noqa: E402
from spica.detectors.openvino import openvino_core  # noqa: E402
from spica.detectors.postprocess import postprocess  # noqa: E402

pytestmark = pytest.mark.torch


def test_it_is_recognised_by_its_shapes() -> None:
    """Weights of Spica's own network are told from all others, with the number of classes and the kind of norm."""
    for norm in ("frozen", "batch"):
        with torch.device("meta"):
            state = networks.build(FASTER_RCNN_LITE, 4, norm=norm).state_dict()
        found = recognise({key: tuple(value.shape) for key, value in state.items()})
        assert found == Recognised(FASTER_RCNN_LITE, 3, norm)


def test_its_eps_is_its_own() -> None:
    """The eps of the norm layers is the published one, whatever eps torchvision's networks are given."""
    model = networks.build(FASTER_RCNN_LITE, 2, norm="frozen", norm_eps=0.0)
    assert {layer.eps for layer in model.modules() if hasattr(layer, "eps")} == {1e-3}


def test_the_published_backbone_fits() -> None:
    """ImageNet's weights cover the whole body, and nothing else."""
    body = {key for key in networks.build(FASTER_RCNN_LITE, 2, norm="frozen").state_dict() if ".body." in key}
    found = load_backbone(count_batches=False)
    assert found is not None
    assert found.keys() == body


def test_folded_norms_compute_the_same() -> None:
    """The frozen norms, whose factors go into the convolutions, give what batch norm in evaluation gives."""
    frozen, batch = (networks.build(FASTER_RCNN_LITE, 2, norm=norm).eval() for norm in ("frozen", "batch"))
    for counts, model in ((False, frozen), (True, batch)):
        backbone = load_backbone(count_batches=counts) or {}
        model.load_state_dict({**model.state_dict(), **backbone})
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = (model.get_submodule("backbone.body")(image) for model in (frozen, batch))
    for level in one:
        scale = float(other[level].abs().max())
        assert float((one[level] - other[level]).abs().max()) < 1e-4 * scale


def test_the_exported_graph_gives_its_answers() -> None:
    """As an ONNX graph in OpenVINO the network finds the boxes that it finds in torch."""
    from spica.detectors.convert import export_onnx

    torch.manual_seed(0)
    model = networks.build(FASTER_RCNN_LITE, 3, norm="frozen", min_size=192, max_size=256)
    state = {**model.state_dict(), **(load_backbone(count_batches=False) or {})}
    state["roi_heads.box_predictor.cls_score.weight"] *= 20  # else all scores are the same
    model.load_state_dict(state)
    core = openvino_core()
    graph = core.read_model(io.BytesIO(export_onnx(model.eval())))
    served = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = next(rendered_images())
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(torch.float32) / 255
    with torch.inference_mode():
        (answer,) = model([pixels])
    got = served(pixels.numpy())
    names = ("boxes", "labels", "scores")
    expected = postprocess(*(answer[name].numpy() for name in names), width=width, height=height)
    converted = postprocess(*(np.array(got[name]) for name in names), width=width, height=height)
    assert len(expected) > 20
    assert compare(expected, converted, floor=0.05, limit=1000).same

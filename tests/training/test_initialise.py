import hashlib
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self

import pytest

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

from safetensors.torch import save_file  # noqa: E402 - after the check for torch

from spica.detectors import networks  # noqa: E402 - after the check for torch
from spica.detectors.architecture import FASTER_RCNN_LITE  # noqa: E402
from spica.detectors.weights import inspect  # noqa: E402
from spica.errors import TrainingError, WeightsError  # noqa: E402
from spica.training import initialise  # noqa: E402
from spica.training.recipe import Recipe  # noqa: E402
from weights_builder import write_tutorial_weights  # noqa: E402

pytestmark = pytest.mark.torch

OWN = Recipe(min_size=128, max_size=160)
IMAGE = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(3))


def _written(folder: Path, classes: tuple[str, ...], architecture: str = FASTER_RCNN_LITE) -> Path:
    torch.manual_seed(7)
    model = networks.build(architecture, len(classes) + 1, norm="frozen")
    path = folder / "trained.safetensors"
    metadata = {
        "spica.architecture": architecture,
        "spica.classes": json.dumps(classes),
        "spica.norm": "frozen",
        "spica.norm_eps": "0.001",
        "spica.input_size": "[128, 160]",
    }
    save_file(model.state_dict(), path, metadata)
    return path


@pytest.mark.parametrize(
    "architecture",
    [FASTER_RCNN_LITE, "fcos_resnet50_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large"],
)
def test_rows_of_known_classes_are_kept(architecture: str) -> None:
    """When classes come, go and change places or case, the raw outputs of a class that stays do not change."""
    old, new = ("Spike", "leaf"), ("weed", "leaf", "spike")
    torch.manual_seed(1)
    small, large = (networks.build(architecture, len(names) + 1).eval() for names in (old, new))
    for name, parameter in small.named_parameters():
        if "cls_logits" in name or "classification_head.module_list" in name or "box_predictor" in name:
            torch.nn.init.normal_(parameter)  # fresh from the initialisation all biases are the same
    state = initialise.grown(
        small.state_dict(), large.state_dict(), architecture=architecture, norm="batch", known=old, classes=new
    )
    large.load_state_dict(state)
    one, other = (_scores(model) for model in (small, large))
    for name in old:
        torch.testing.assert_close(
            one[..., old.index(name) + 1], other[..., new.index(name.lower()) + 1], rtol=1e-3, atol=1e-3
        )
    assert not torch.allclose(other[..., 1], one[..., 1], rtol=1e-2, atol=1e-2)


def _scores(model: Any) -> Any:
    """Raw outputs of the head by class, (…, classes and background), on features that are the same for each model."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        if hasattr(model, "roi_heads"):
            predictor = model.roi_heads.box_predictor
            features = torch.rand(5, predictor.cls_score.in_features, generator=generator)
            scores, boxes = predictor(features)
            return torch.cat([scores[:, None], boxes.reshape(5, -1, 4).transpose(1, 2)], dim=1)
        if hasattr(model.backbone, "fpn"):
            features = [torch.rand(1, 256, side, side, generator=generator) for side in (6, 3, 2, 1, 1)]
        else:
            features = list(model.backbone(torch.rand(1, 3, 128, 128, generator=generator)).values())
        return model.head(features)["cls_logits"]


def test_answers_of_old_classes_stay(tmp_path: Path) -> None:
    """A network that was grown by a class gives the same boxes for the old ones as before."""
    path = _written(tmp_path, ("spike", "leaf"))
    before = initialise.begin(OWN, ("spike", "leaf"), init=path).network.eval()
    after = initialise.begin(OWN, ("leaf", "spike", "weed"), init=path).network.eval()
    with torch.inference_mode():
        features = before.get_submodule("backbone")(IMAGE[None])
        grown = after.get_submodule("backbone")(IMAGE[None])
    assert all(torch.equal(features[level], grown[level]) for level in features)
    one, other = _scores(before), _scores(after)
    torch.testing.assert_close(one[..., [0, 1, 2]], other[..., [0, 2, 1]])  # not bit by bit: matrices of other sizes


def test_it_goes_on_looking_at_images_as_it_did(tmp_path: Path) -> None:
    """A training that begins with weights keeps their input size, unless the recipe gives another one."""
    path = _written(tmp_path, ("spike",))
    start = initialise.begin(Recipe(), ("spike",), init=path)
    assert start.sizes == (128, 160)
    assert initialise.begin(Recipe(min_size=64), ("spike",), init=path).sizes == (64, 107)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """Weights of one architecture can't begin the training of another; the message names both."""
    path = _written(tmp_path, ("spike",))
    with pytest.raises(WeightsError) as failure:
        initialise.begin(Recipe(architecture="fasterrcnn_resnet50_fpn"), ("spike",), init=path)
    assert FASTER_RCNN_LITE in (failure.value.got or "")
    assert "fasterrcnn_resnet50_fpn" in (failure.value.got or "")


def test_classes_without_names(tmp_path: Path) -> None:
    """A file without names: as many classes are the same ones, else their names must be given, and must fit."""
    path = write_tutorial_weights(tmp_path / "gwhd.pth", 2)
    recipe = Recipe(architecture="fasterrcnn_resnet50_fpn")
    initialise.begin(recipe, ("spike",), init=path)
    with pytest.raises(TrainingError, match="no names") as failure:
        initialise.begin(recipe, ("spike", "leaf"), init=path)
    assert "--init-labels" in (failure.value.hint or "")
    with pytest.raises(TrainingError, match="don't fit"):
        initialise.begin(recipe, ("spike", "leaf"), init=path, init_classes=["a", "b"])
    start = initialise.begin(recipe, ("leaf", "spike"), init=path, init_classes=["spike"])
    trained = torch.load(path, weights_only=True)["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(start.network.state_dict()["roi_heads.box_predictor.cls_score.bias"][[0, 2]], trained)
    assert any("leaf" in note for note in start.notes)


def test_an_exported_graph_can_not_be_trained(tmp_path: Path) -> None:
    """A graph has no weights to go on with: that is said in a sentence."""
    path = _written(tmp_path, ("spike",))
    info = replace(inspect(path), format="onnx", source=None)
    assert "exported graph" in (initialise.obstacle(info) or "")


@pytest.mark.parametrize(("stages", "learning"), [(0, 5), (2, 3), (5, 0)])
@pytest.mark.parametrize("architecture", [FASTER_RCNN_LITE, "fasterrcnn_resnet50_fpn"])
def test_frozen_stages_do_not_learn(architecture: str, stages: int, learning: int) -> None:
    """Of five stages, those that are frozen have no parameter that learns, and the others all of theirs."""
    model = networks.build(architecture, 2, norm="frozen")
    initialise.freeze(model, stages)
    body: Any = model.get_submodule("backbone.body")
    if architecture == FASTER_RCNN_LITE:
        bounds = [(0, 3), (3, 5), (5, 11), (11, 16)]
        parts = [body.stem, *(body.blocks[begin:end] for begin, end in bounds)]
    else:
        parts = [body.conv1, body.layer1, body.layer2, body.layer3, body.layer4]
    found = [{parameter.requires_grad for parameter in part.parameters()} for part in parts]
    assert found == [{False}] * stages + [{True}] * learning
    assert all(parameter.requires_grad for parameter in model.get_submodule("backbone.fpn").parameters())


class _Web:
    """A server on the loopback that gives one file at every path."""

    def __init__(self, data: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _published(monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    """Weights of torchvision's smallest network, as if they were at this address."""
    from torchvision.models import get_model_weights

    weights = get_model_weights("ssdlite320_mobilenet_v3_large").DEFAULT
    monkeypatch.setattr(weights.value, "url", url, raising=False)
    monkeypatch.setattr(type(weights), "url", url, raising=False)
    return weights


def test_published_weights_come_from_the_web_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's weights are downloaded, checked, kept, and not asked for again; a class of COCO's keeps its row."""
    path = tmp_path / "coco.pth"
    torch.save(networks.build("ssdlite320_mobilenet_v3_large", 91).state_dict(), path)
    data = path.read_bytes()
    name = f"ssdlite-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    recipe = Recipe(architecture="ssdlite320_mobilenet_v3_large")
    with _Web(data) as web:
        weights = _published(monkeypatch, f"{web.url}/{name}")
        start = initialise.begin(recipe, ("person", "spike"))
    assert not start.random
    assert (tmp_path / "torch home" / "hub" / "checkpoints" / name).read_bytes() == data
    again = initialise.begin(recipe, ("person", "spike"))  # the server is gone
    key = "head.classification_head.module_list.0.1.bias"
    rows = torch.load(path, weights_only=True)[key].reshape(-1, 91)
    person = weights.meta["categories"].index("person")
    for each in (start, again):
        assert torch.equal(each.network.state_dict()[key].reshape(-1, 3)[:, 1], rows[:, person])


def test_without_a_network_it_begins_at_random_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights can't be had, the training begins with random numbers, and a note says how to have them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with _Web(b"") as web:
        url = web.url
    _published(monkeypatch, f"{url}/coco-00000000.pth")
    start = initialise.begin(Recipe(architecture="ssdlite320_mobilenet_v3_large"), ("spike",))
    assert start.random
    assert "--init" in start.notes[0]
    assert url in start.notes[0]


def test_a_wrong_download_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose digest is not the one in its name is not taken for the weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with _Web(b"a page of the hotel's network") as web:
        _published(monkeypatch, f"{web.url}/coco-00000000.pth")
        start = initialise.begin(Recipe(architecture="ssdlite320_mobilenet_v3_large"), ("spike",))
    assert start.random

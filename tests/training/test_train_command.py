"""`spica train` on images of a few pixels."""

import json
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("torch", reason="needs the extra spica[train]")

import torch

from project_keys import known
from spica.cli.options import add_commands
from spica.cli.train import train
from spica.errors import UsageError, WeightsError
from spica.training import holdout, loop, outputs
from spica.training.loop import StoppedError
from spica.training.progress import Epoch, Trained
from spica.training.recipe import Recipe
from training_data import wheat

pytestmark = pytest.mark.torch

FAST = ["--epochs", "2", "--batch", "2", "--size", "64", "--threads", "1"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Four images as COCO."""
    return _coco(tmp_path / "data", range(1000, 1004))


def _coco(folder: Path, seeds: range) -> Path:
    data = wheat(folder / "images", seeds, width=96, height=64)
    boxes = [(image, box) for image, each in enumerate(data.examples) for box in each.truth.boxes_xyxy.tolist()]
    told = {
        "images": [{"id": n, "file_name": e.name, "width": 96, "height": 64} for n, e in enumerate(data.examples)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": 1, "bbox": [x, y, right - x, bottom - y]}
            for n, (image, (x, y, right, bottom)) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "spike"}],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(told), "utf-8")
    return path


def _run(*arguments: object) -> Any:
    app = typer.Typer()
    add_commands(app, train)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_from_annotations_to_weights(coco: Path, tmp_path: Path) -> None:
    """Weights, a card for people and one for programs, and two figures are written, and nothing else stays."""
    out = tmp_path / "ears.pth"
    result = _run(coco, "--out", out, *FAST)
    assert result.exit_code == 0, result.output
    for word in ("epoch 2/2", "mAP50", "mAR", "spica up", "--labels spike"):
        assert word in result.output
    assert {path.name for path in tmp_path.iterdir()} - {"data"} == {path.name for path in outputs.paths(out)}
    state = torch.load(out, weights_only=True)
    assert isinstance(state, dict)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    card = json.loads((tmp_path / "ears.card.json").read_text("utf-8"))
    assert card["classes"] == ["spike"]
    assert card["training"]["images"] + card["validation"]["images"] == 4
    assert "spike" in (tmp_path / "ears.card.md").read_text("utf-8")
    for name in ("ears.curves.png", "ears.counts.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 1


def test_nothing_is_overwritten(coco: Path, tmp_path: Path) -> None:
    """What is there is left alone, unless --force is said; other mistakes are found before any work too."""
    out = tmp_path / "ears.pth"
    out.write_bytes(b"mine")
    result = _run(coco, "--out", out, *FAST)
    assert isinstance(result.exception, UsageError)
    assert "--force" in (result.exception.hint or "")
    assert out.read_bytes() == b"mine"
    for arguments in (["--out", "ears.txt"], ["--out", tmp_path / "no" / "ears.pth"]):
        assert isinstance(_run(coco, *arguments).exception, UsageError)
    assert isinstance(_run(coco, "--out", tmp_path / "x.pth", "--arch", "nothing").exception, WeightsError)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "ears.pth"}
    assert isinstance(_run("--out", tmp_path / "x.pth").exception, UsageError)
    assert isinstance(_run(coco, "--project", 1, "--out", tmp_path / "x.pth").exception, UsageError)


def test_without_torch_it_says_what_to_install(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages are missing, the message has the command that installs them."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    result = _run(coco, "--out", tmp_path / "x.pth")
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint == 'pip install "spica[train]"'


def test_stopped_by_hand_it_goes_on(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it in order and tells of --resume, with which it goes on after the last whole epoch.

    Without --resume what was learned is not thrown away, either.
    """
    valid = _coco(tmp_path / "valid", range(2000, 2001))
    out = tmp_path / "ears.safetensors"
    real = loop.train
    resumed: list[bool] = []

    def interrupted(*arguments: Any, on_progress: Any, **options: Any) -> Any:
        def tell(progress: Any) -> None:
            on_progress(progress)
            if not resumed and progress.epoch == 2 and progress.step == 1:
                signal.raise_signal(signal.SIGINT)

        trained = real(*arguments, on_progress=tell, **options)
        resumed.append(trained.resumed)
        return trained

    monkeypatch.setattr(loop, "train", interrupted)
    result = _run(coco, "--valid", valid, "--out", out, *FAST)
    assert result.exit_code == 130
    assert "--resume" in result.output
    assert not out.exists()
    kept = {path.name for path in (tmp_path / "ears.safetensors.training").iterdir()}
    result = _run(coco, "--valid", valid, "--out", out, *FAST)
    assert isinstance(result.exception, UsageError)
    assert "--resume" in (result.exception.hint or "")
    assert {path.name for path in (tmp_path / "ears.safetensors.training").iterdir()} == kept
    resumed.append(False)  # from now on nobody interrupts
    result = _run(coco, "--valid", valid, "--out", out, *FAST, "--resume")
    assert result.exit_code == 0, result.output
    assert resumed == [False, True]
    assert out.is_file()


@pytest.mark.parametrize("others", [False, True], ids=["judged by the hold-out", "judged by others"])
def test_a_projects_hold_out_is_never_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """Of a project the images that its server holds out are judged by at most, and new ones are divided by its rule."""
    data = wheat(tmp_path / "photographs", range(1000, 1012), width=96, height=64)
    monkeypatch.setattr(sys.modules["spica.cli.data"], "fetch_project", lambda *_, **__: (data, known(7)))
    monkeypatch.setenv("SPICA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SPICA_HOLDOUT_MIN", "2")
    path = holdout.path_of(tmp_path, known(7))
    held = {data.examples[0].digest, data.examples[5].digest}  # not those that would be drawn
    sides = {each.digest: "holdout" if each.digest in held else "train" for each in data.examples[:6]}
    holdout.write(path, {digest: holdout.Decision(side) for digest, side in sides.items()})  # type: ignore[arg-type] # literals
    taken: list[Any] = []

    def stopped(learned: Any, judged: Any, *_: Any, chooses: bool, **__: Any) -> Any:
        taken.extend((learned, judged))
        assert chooses == others
        raise StoppedError("stopped", got="no epoch")

    monkeypatch.setattr(loop, "train", stopped)
    more = ["--valid", _coco(tmp_path / "valid", range(2000, 2001))] if others else []
    assert _run("--project", 7, "--out", tmp_path / "x.pth", *FAST, *more).exit_code == 130
    learned, judged = ({example.digest for example in part.examples} for part in taken)
    now = {digest for digest, placed in holdout.read(path).items() if placed.side == "holdout"}
    assert held <= now
    assert not learned & now
    assert learned | now == {example.digest for example in data.examples}
    assert bool(judged & now) != others


@pytest.mark.parametrize("given", ["nothing", "a project", "others"])
def test_only_images_given_for_it_choose_an_epoch(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Of two epochs with the first one best, the last is taken, unless --valid gives images to choose by."""
    scores = iter([0.9, 0.4])
    monkeypatch.setattr(loop, "evaluate", lambda *_: Mock(as_json=lambda: {"ap50": next(scores), "ap": 0.1}))
    data = wheat(tmp_path / "photographs", range(1000, 1004), width=96, height=64)
    monkeypatch.setattr(sys.modules["spica.cli.data"], "fetch_project", lambda *_, **__: (data, known(7)))
    monkeypatch.setenv("SPICA_DATA_DIR", str(tmp_path))
    source = ["--project", 7] if given == "a project" else [coco]
    more = ["--valid", _coco(tmp_path / "valid", range(2000, 2001)), "--patience", 2] if given == "others" else []
    result = _run(*source, "--out", tmp_path / "ears.pth", *FAST, *more)
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "ears.card.json").read_text("utf-8"))
    best, ap50 = (1, 0.9) if given == "others" else (2, 0.4)
    assert (card["training"]["best_epoch"], card["metrics"]["ap50"]) == (best, ap50)


def test_patience_needs_something_to_judge_by(coco: Path, tmp_path: Path) -> None:
    """Without --valid nothing stops early, and --patience is a mistake that is told."""
    result = _run(coco, "--out", tmp_path / "x.pth", *FAST, "--patience", 3)
    assert isinstance(result.exception, UsageError)
    assert "--valid" in (result.exception.hint or "")


@pytest.mark.parametrize("arch", [None, "ssdlite320_mobilenet_v3_large"])
def test_strips_and_single_pixels_are_learned_from(tmp_path: Path, arch: str | None) -> None:
    """Images of 3000 x 4, 4 x 3000, 2000 x 1 and 1 x 1 pixels are no obstacle, to learn from or to judge by."""
    sizes = [(3000, 4), (4, 3000), (2000, 1), (1, 1), (96, 64), (90, 64)]
    told: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "ear"}]}
    for number, (width, height) in enumerate(sizes, 1):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        told["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        box = [width // 3, 0, max(1, width // 10), height]
        told["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(told), "utf-8")
    more = ["--arch", arch, "--from-scratch"] if arch else ["--size", "64"]
    fast = ["--epochs", "2", "--batch", "2", "--threads", "1"]
    result = _run(path, "--valid", path, "--out", tmp_path / "ears.pth", *fast, *more)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads((tmp_path / "ears.card.json").read_text("utf-8"))["training"]["images"] == len(sizes)


@pytest.mark.slow
def test_the_tutorials_code_reads_our_weights(tmp_path: Path) -> None:
    """What is written for the tutorial's architecture loads strictly into its network, and answers."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    from weights_builder import write_tutorial_weights

    data = wheat(tmp_path / "images", range(1000, 1002), width=96, height=64)
    init = write_tutorial_weights(tmp_path / "init.pth", 2)
    recipe = Recipe(
        architecture="fasterrcnn_resnet50_fpn", epochs=1, batch=2, lr=1e-6, min_size=64, max_size=96, frozen=5
    )
    trained = loop.train(data, None, tmp_path / "work", recipe, init=init)
    out = outputs.write(trained, tmp_path / "gwhd.pth", data=data, valid=None, counts=None)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    model.load_state_dict(torch.load(out, map_location=torch.device("cpu")))
    model.eval()
    with torch.no_grad():
        (answer,) = model([torch.rand(3, 64, 96)])
    assert len(answer["boxes"]) > 0
    assert not (tmp_path / "gwhd.counts.png").exists()


def test_a_card_without_judgement(tmp_path: Path) -> None:
    """Without validation images the card says nothing of metrics, and its text still reads well."""
    data = wheat(tmp_path, range(1000, 1001), width=96, height=64)
    trained = Trained(
        tmp_path / "w", "a", ("spike",), "frozen", (Epoch(1, {"loss": 1.0}, 0.1, 2.0),), 2.0, 1, False, "s", Recipe()
    )
    card = outputs.card(trained, data, None, None)
    assert card["metrics"] is None
    text = outputs.as_text(card, "w.pth")
    assert "mAP" not in text
    assert "1 images" in text

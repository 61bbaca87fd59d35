"""`spica evaluate` as it is typed."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from annotated_images import small_set
from project_keys import known
from spica.cli.evaluate import evaluate
from spica.cli.options import add_commands
from spica.demo import model_folder
from spica.demo.field import render_field
from spica.errors import DataSetError, UsageError
from spica.training import holdout

pytestmark = pytest.mark.torch  # faster-coco-eval and matplotlib come with the extra spica[train]

NASTY = "<script>alert('ear')</script> 小麦"

app = typer.Typer()
add_commands(app, evaluate)


def run(*arguments: object) -> Result:
    """What the command printed and how it ended; errors that it would tell are raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered fields and their truth in COCO's format, of two classes; the second is not the model's."""
    folder = tmp_path_factory.mktemp("field")
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, seed in enumerate((900, 902, 904), 1):
        picture = render_field(seed, width=320, height=240)
        Image.fromarray(picture.pixels).save(folder / f"圃場 {number}.png")
        images.append({"id": number, "file_name": f"圃場 {number}.png", "width": 320, "height": 240})
        for left, top, right, bottom in picture.boxes_xyxy.tolist():
            class_id = 2 if left < 20 else 1
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": class_id,
                                "bbox": [left, top, right - left, bottom - top], "iscrowd": 0})  # fmt: skip
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "spike"}, {"id": 2, "name": NASTY}],
    }
    (folder / "truth.json").write_text(json.dumps(truth), "utf-8")
    return folder


class Page(HTMLParser):
    """What a page would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]


def test_everything_at_once(field: Path, tmp_path: Path) -> None:
    """The demo's detector is judged: tables, JSON and a page, which agree and need nothing else."""
    result = run(
        model_folder(),
        field / "truth.json",
        *("--data-dir", tmp_path, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html"),
    )
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert told["metrics"]["images"] == 3
    assert told["metrics"]["per_class"][0]["ap50"] > 0.7
    assert told["metrics"]["per_class"][1]["ap50"] == 0
    assert 0 < told["ap50_interval"][0] <= told["ap50_interval"][1] <= 1
    assert told["effort"]["seconds_per_image"] < told["effort"]["by_hand_seconds_per_image"]
    assert sum(row["objects"] for row in told["metrics"]["per_size"].values()) == told["metrics"]["objects"]
    assert f"{told['metrics']['ap50']:.3f}" in result.output
    assert "does not know <script>" in result.output

    html = (tmp_path / "a.html").read_text("utf-8")
    page = Page()
    page.feed(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("img") == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert f"{told['metrics']['ap50']:.3f}" in html
    assert "&lt;script&gt;alert(&#39;ear&#39;)&lt;/script&gt; 小麦" in html


def test_only_json(field: Path, tmp_path: Path) -> None:
    """With `--json -` standard output is JSON and nothing else; the threshold is the one that was asked for."""
    result = run(model_folder(), field / "truth.json", "--data-dir", tmp_path, "--json", "-", "--threshold", 0.9)
    told = json.loads(result.stdout)
    assert told["counting"]["threshold"] == 0.9
    assert told["counting"]["bias"] < 0


def test_copies_do_not_make_it_surer(field: Path, tmp_path: Path) -> None:
    """With each image there twice, in another encoding, the interval of AP50 is that of the images once."""
    truth = json.loads((field / "truth.json").read_text("utf-8"))
    for each in list(truth["images"]):
        with Image.open(field / each["file_name"]) as image:
            image.save(tmp_path / each["file_name"])
            image.save(tmp_path / f"c{each['id']}.bmp")
        truth["images"].append({**each, "id": each["id"] + 10, "file_name": f"c{each['id']}.bmp"})
    truth["annotations"] += [
        {**each, "id": each["id"] + 1000, "image_id": each["image_id"] + 10} for each in truth["annotations"]
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth), "utf-8")
    once, twice = (
        json.loads(run(model_folder(), folder / "truth.json", "--data-dir", tmp_path, "--json", "-").stdout)
        for folder in (field, tmp_path)
    )
    assert twice["metrics"]["images"] == 6
    assert twice["ap50_interval"] == once["ap50_interval"]


def test_images_that_fail(field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image on which the detector fails is told, changes the exit status, and is in none of the numbers."""
    from spica.detectors.openvino import OpenVINODetector

    detect = OpenVINODetector.detect
    asked: list[int] = []

    def failing(self: OpenVINODetector, images: list[NDArray[np.uint8]]) -> object:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("out of memory")
        return detect(self, images)

    monkeypatch.setattr(OpenVINODetector, "detect", failing)
    result = run(model_folder(), field / "truth.json", "--data-dir", tmp_path, "--json", "-")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert told["metrics"]["images"] == 2
    assert [row["image"] for row in told["failures"]] == ["圃場 2.png"]
    assert "out of memory" in told["failures"][0]["reason"]
    assert "圃場 2.png" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ([], UsageError, "say what to judge by"),
        (["truth.json", "--project", "1"], UsageError, "say what to judge by"),
        (["truth.json", "--labels", "a,b"], UsageError, "not as many labels"),
        (["truth.json", "--labels", "stone"], DataSetError, "no class in common"),
        (["nothing.json"], DataSetError, "no such file or folder"),
    ],
    ids=["nothing", "both", "labels", "no common class", "no data"],
)
def test_wrong_use(field: Path, tmp_path: Path, arguments: list[str], error: type[Exception], told: str) -> None:
    """What can't be done is a sentence."""
    full = [field / each if each.endswith(".json") else each for each in arguments]
    with pytest.raises(error, match=told):
        run(model_folder(), *full, "--data-dir", tmp_path)


def test_a_project_is_judged_by_its_hold_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a project that Spica trains on only the held-out images count; with --all the rest too, which is told."""
    dataset = small_set(tmp_path / "images")
    monkeypatch.setattr(sys.modules["spica.cli.data"], "fetch_project", lambda *_, **__: (dataset, known(7)))
    monkeypatch.setenv("SPICA_DATA_DIR", str(tmp_path))
    arguments = (model_folder(), "--project", 7, "--json", "-")
    assert json.loads(run(*arguments).stdout)["metrics"]["images"] == 3
    _, held, frozen = holdout.split(dataset, {}, share=0.2, minimum=1)
    holdout.write(holdout.path_of(tmp_path, known(7)), frozen)
    told = json.loads(run(*arguments).stdout)
    assert told["metrics"]["images"] == len(held.examples) == 1
    assert told["data"]["source"] == "the hold-out of project 7"
    told = json.loads(run(*arguments, "--all").stdout)
    assert told["metrics"]["images"] == 3
    assert any("the metrics flatter" in note for note in told["notes"])


def test_nothing_is_written_over_what_is_read(tmp_path: Path) -> None:
    """The annotations, the weights and another output are refused as outputs, before anything is read or written."""
    data, weights = tmp_path / "annotations.json", tmp_path / "gwhd.pth"
    for path in (data, weights):
        path.write_text("kept", "utf-8")
    outputs = [
        ["--json", data],
        ["--html", data.parent / ".." / tmp_path.name / data.name],
        ["--notes", weights],
        ["--json", tmp_path / "new", "--html", tmp_path / "new"],
    ]
    for options in outputs:
        with pytest.raises(UsageError, match="written over"):
            run(weights, data, *options)
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {
        "annotations.json": "kept",
        "gwhd.pth": "kept",
    }

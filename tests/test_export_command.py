"""`spica export` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from annotated_images import photograph, small_set
from scripted_label_studio import CONFIG, ScriptedLabelStudio
from spica.cli.data import export
from spica.cli.options import add_commands
from spica.errors import DataSetError, UsageError
from spica.training import export as exports
from spica.training.sources import load

app = typer.Typer()
add_commands(app, export)


def run(*arguments: object) -> str:
    """The command's output; its errors are raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_from_one_format_to_another(tmp_path: Path) -> None:
    """Any data set becomes any other; what was written is told."""
    exports.export(small_set(tmp_path / "in"), "coco", tmp_path / "a")
    assert "3 images with 3 boxes" in run(tmp_path / "a", "--format", "yolo", "--out", tmp_path / "b")
    run(tmp_path / "b", "--format", "voc", "--out", tmp_path / "c")
    assert load(tmp_path / "c").classes == ("spike", "weed")
    run(tmp_path / "b", "--format", "coco", "--out", tmp_path / "c", "--force")
    assert load(tmp_path / "c").fingerprint == load(tmp_path / "a").fingerprint


def test_a_doubt_is_asked_about(tmp_path: Path) -> None:
    """With more than a tenth in doubt nothing is written before --allow-partial; --notes names each image anew."""
    exports.export(small_set(tmp_path / "in"), "coco", tmp_path / "a")
    path, notes, out = tmp_path / "a" / "annotations.json", tmp_path / "notes 穂.txt", tmp_path / "b"
    body = json.loads(path.read_text("utf-8"))
    body["annotations"][0]["bbox"] = [1, 2, 0, 4]
    path.write_text(json.dumps(body), "utf-8")
    for _ in range(2):
        with pytest.raises(DataSetError, match="1 of 3 images"):
            run(tmp_path / "a", "--out", out, "--notes", notes)
        assert not out.exists()
        assert notes.read_text("utf-8") == "image\treason\na.jpg\ta box less than a pixel wide or high\n"
    told = run(tmp_path / "a", "--out", out, "--allow-partial")
    assert "1 image left out: a box less than a pixel wide or high (a.jpg)" in told
    assert "2 images with 1 box " in told
    for wrong in (tmp_path, path):
        with pytest.raises(UsageError, match="notes"):
            run(tmp_path / "a", "--out", tmp_path / "c", "--notes", wrong)
    assert json.loads(path.read_text("utf-8")) == body


@pytest.mark.parametrize("arguments", [[], ["data", "--project", "1"]], ids=["neither", "both"])
def test_what_to_export(arguments: list[str]) -> None:
    """Data or a project is named, not both."""
    with pytest.raises(UsageError, match="say what to export"):
        run(*arguments)


def test_the_folder_is_looked_at_first(tmp_path: Path) -> None:
    """A folder with something in it is refused before anything is read."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(UsageError, match="not empty"):
        run("missing data", "--out", tmp_path / "out")


def test_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's submitted annotations are written with their images; one in doubt is asked about first."""
    value = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["other"]}
    item = {"id": "r", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
    studio = ScriptedLabelStudio(
        images=[photograph(1), photograph(2), b"no image"],
        regions=[[{**item, "original_width": 64, "original_height": 48}], [], []],
        config=CONFIG.replace("</RectangleLabels>", '<Label value="other"/></RectangleLabels>'),
    )
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")
    monkeypatch.setenv("SPICA_DATA_DIR", str(tmp_path / "spica"))
    with studio:
        arguments = ("--project", "1", "--url", studio.url, "--out", tmp_path / "out")
        with pytest.raises(DataSetError, match="1 of 3 images"):
            run(*arguments)
        output = run(*arguments, "--allow-partial")
    assert "2 images with 1 box " in output
    assert "task 3: 3.png" in output
    body = json.loads((tmp_path / "out" / "annotations.json").read_text("utf-8"))
    assert [(row["bbox"], row["category_id"]) for row in body["annotations"]] == [([16, 24, 32, 12], 2)]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["1.png", "2.png"]

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spica.demo import model_folder
from spica.errors import WeightsError
from spica.models import store
from spica.models.card import CARD, read_card
from spica.models.version import weights_info


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A folder that is a model version."""
    folder = tmp_path / "version"
    folder.mkdir()
    content = (model_folder() / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    card = {
        "format": 1,
        "name": "Demo wheat",
        "architecture": "demo",
        "classes": ["spike"],
        "files": {"model.onnx": entry},
        "score_floor": 0.05,
    }
    (folder / CARD).write_text(json.dumps(card), "utf-8")
    return folder


@pytest.mark.parametrize("name", ["", "model.onnx"], ids=["the folder", "its graph"])
def test_a_model_version_is_recognised(version: Path, name: str) -> None:
    """The folder of a version, and the graph in it, are taken as that version; its id comes from its content."""
    identity = store.identify(
        version / name if name else version, data_dir=version, score_floor=0.01, max_detections=1, norm_eps=0
    )
    assert identity.id.startswith("demo-wheat-")
    assert (identity.classes, identity.weights.format, identity.score_floor) == (("spike",), "onnx", 0.05)


def test_a_versions_id_is_its_contents(version: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same id; one with another class name has not."""
    copy = Path(shutil.copytree(version, tmp_path / "copy"))
    assert read_card(version).id == read_card(copy).id
    card = copy / CARD
    card.write_text(card.read_text("utf-8").replace("spike", "ear"), "utf-8")
    assert read_card(copy).id != read_card(version).id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"format": 2}, "another format", id="a later format"),
        pytest.param({"id": "../../etc"}, "no plain name", id="an id that is a path"),
        pytest.param({"files": {"../model.onnx": {"sha256": "0", "bytes": 1}}}, "no plain name", id="a file elsewhere"),
        pytest.param({"files": {}}, "files without", id="no files"),
        pytest.param({"files": {"model.xml": {"sha256": "0", "bytes": 1}}}, "files without", id="half an IR"),
        pytest.param({"files": 3}, "wrong or missing entry", id="files that are a number"),
        pytest.param({"classes": "spike"}, "classes that are no list", id="classes that are a text"),
        pytest.param({"classes": []}, "classes that are no list", id="no classes"),
        pytest.param({"architecture": None, "files": None}, "wrong or missing entry", id="nothing"),
    ],
)
def test_wrong_cards_are_refused(version: Path, change: dict[str, Any], told: str) -> None:
    """A card that is not what a card is, is refused with what is wrong."""
    card = version / CARD
    card.write_text(json.dumps(json.loads(card.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(WeightsError) as refused:
        weights_info(version)
    assert told in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_damaged_cards_are_refused(version: Path, content: bytes) -> None:
    """A card that is no JSON object is refused."""
    (version / CARD).write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        weights_info(version)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(lambda graph: graph.unlink(), "missing", id="removed"),
        pytest.param(lambda graph: graph.write_bytes(graph.read_bytes()[:-1] + b"!"), "not the file", id="altered"),
        pytest.param(lambda graph: graph.write_bytes(graph.read_bytes() + b"!"), "not the file", id="longer"),
    ],
)
def test_altered_files_of_a_version_are_noticed(version: Path, damage: Callable[[Path], object], told: str) -> None:
    """A version whose files are not those of its card is refused."""
    damage(version / "model.onnx")
    with pytest.raises(WeightsError) as refused:
        weights_info(version)
    assert told in str(refused.value)

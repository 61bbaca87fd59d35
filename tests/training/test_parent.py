"""The version that answers now, as a training finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from project_keys import ONE
from spica.detectors.weights import WeightsInfo
from spica.labelstudio.label_config import parse_label_config
from spica.training import parent
from spica.training.gate import Drift
from spica.training.process import Request
from tiny_versions import tiny_version

CONFIG = """
<View>
  <Image name="i" value="$image"/>
  <RectangleLabels name="r" toName="i">
    <Label value="Ear" predicted_values="spike"/><Label value="weed"/>
  </RectangleLabels>
</View>
"""


def request(data_dir: Path, version: str | None) -> Request:
    """For a project that this version answers."""
    folder = str(data_dir / "models" / version) if version is not None else None
    return Request(ONE, "r", "", str(data_dir), "", "", folder, version, {}, 1, 2**34)


def described(patch: pytest.MonkeyPatch, folder: Path, classes: tuple[str, ...], kind: str) -> None:
    """Have the folder's weights look like those of a real version."""
    info = WeightsInfo(folder, "0" * 64, "safetensors", kind, classes, "frozen", 1)
    patch.setattr(parent, "version_info", lambda *_: info)
    patch.setattr(
        "spica.training.initialise.obstacle", lambda info: None if info.architecture == "known" else "it can't"
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        pytest.param(("spike", "weed"), ("Ear", "weed"), id="as the labels say"),
        pytest.param(("spike", "stone"), ("Ear", "stone"), id="one that the project does not know"),
        pytest.param(("spike", "stone", ""), ("Ear", "stone", "class 3"), id="one without a name"),
    ],
)
def test_classes_are_called_as_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """A training goes on with what each class has learned, under the name that people label it with."""
    version = tiny_version(tmp_path, "active")
    described(monkeypatch, tmp_path / "models" / version, classes, "known")
    found = parent.read(request(tmp_path, version), parse_label_config(CONFIG).controls)
    assert found is not None
    assert found.names == expected
    assert (found.init, found.why_not) == (tmp_path / "models" / version, None)


def test_no_version_answers(tmp_path: Path) -> None:
    """Where no version answers there is no parent."""
    assert parent.read(request(tmp_path, None), ()) is None


def test_a_version_that_can_not_be_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with, but nothing begins with it, and why is known."""
    version = tiny_version(tmp_path, "active")
    described(monkeypatch, tmp_path / "models" / version, ("spike",), "onnx")
    found = parent.read(request(tmp_path, version), ())
    assert found is not None
    assert (found.init, found.why_not, found.id) == (None, "it can't", version)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ({"accepted": True, "drift": {"ap50": 0.006, "cost_s": 0.1}}, Drift(0.006, 0.1)),
        ({"accepted": False, "drift": {"ap50": 0.6, "cost_s": 9}}, Drift()),
        (None, Drift()),
    ],
    ids=["passed", "activated by hand", "never judged"],
)
def test_drift_goes_on_from_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: dict[str, Any] | None, expected: Drift
) -> None:
    """What the line has lost so far is read from the active version's card."""
    version = tiny_version(tmp_path, "active", gate=gate)
    described(monkeypatch, tmp_path / "models" / version, ("spike",), "known")
    found = parent.read(request(tmp_path, version), ())
    assert found is not None
    assert found.drift == expected

"""The choice of the arithmetic, and the id under which a version is served."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from spica.demo import model_folder
from spica.detectors.openvino import Machine
from spica.errors import UsageError
from spica.models import serving, store
from spica.models.card import Card, FileEntry, Variant, record_variant
from spica.models.serving import Serving, choose, known_card, served_id, wants_check
from spica.models.version import ModelIdentity
from spica.settings import Settings

FILES = {"model-int8-1.xml": FileEntry("ab", 1), "model-int8-1.bin": FileEntry("cd", 2)}


def form(precision: str, *, passed: bool = True, accepted: bool = False, **check: Any) -> Variant:
    files = FILES if precision == "int8" else {}
    return Variant(passed, check, accepted, "model-int8-1.xml" if files else None, files)


@pytest.fixture
def identity(tmp_path: Path) -> ModelIdentity:
    """The demo's model as a version in the store of ``tmp_path / "data"``."""
    folder = Path(shutil.copytree(model_folder(), tmp_path / "data" / "models" / "wheat-1"))
    return store.identify(folder, data_dir=tmp_path / "data", score_floor=0.05, max_detections=1000, norm_eps=0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def on_machine(monkeypatch: pytest.MonkeyPatch, *has: str, gpu: tuple[str, ...] | None = None) -> None:
    monkeypatch.setattr(serving, "machine", lambda: Machine("this one", frozenset(has) | {"f32"}))  # type: ignore[arg-type]
    on = Machine("a GPU", frozenset(gpu) | {"f32"}, "cuda") if gpu is not None else None  # type: ignore[arg-type]
    monkeypatch.setattr(serving, "gpu", lambda: on)


def with_forms(monkeypatch: pytest.MonkeyPatch, forms: dict[str, Variant]) -> None:
    card = Card("wheat-1", "wheat", "a", ("spike",), {"model.onnx": FileEntry("0", 1)}, precisions=forms)
    monkeypatch.setattr(serving, "known_card", lambda identity, data_dir: card)


BOTH = ("bf16", "int8")
HERE: dict[str, Any] = {"processor": "this one", "f32_seconds": 1}
ELSEWHERE: dict[str, Any] = {"processor": "another", "f32_seconds": 1.0}


@pytest.mark.parametrize(
    ("forms", "has", "expected", "told"),
    [
        pytest.param({}, BOTH, "f32", "spica models optimise", id="nothing checked"),
        pytest.param({"bf16": form("bf16")}, BOTH, "bf16", "has passed its check", id="bf16 passed"),
        pytest.param({"bf16": form("bf16")}, (), "f32", "processor does not compute faster in bf16", id="no bf16 here"),
        pytest.param({"bf16": form("bf16", passed=False)}, BOTH, "f32", "bf16 did not pass", id="bf16 failed"),
        pytest.param(
            {"bf16": form("bf16", passed=False, accepted=True)}, BOTH, "bf16", "which was accepted", id="loss accepted"
        ),
        pytest.param({"bf16": form("bf16"), "int8": form("int8")}, BOTH, "int8", "fastest", id="both: int8 is faster"),
        pytest.param({"bf16": form("bf16"), "int8": form("int8")}, ("bf16",), "bf16", "fastest", id="int8 not here"),
        pytest.param(
            {"bf16": form("bf16", seconds=0.4, **HERE), "int8": form("int8", seconds=0.6, **HERE)},
            BOTH,
            "bf16",
            "fastest",
            id="bf16 was measured faster here",
        ),
        pytest.param(
            {"bf16": form("bf16", seconds=0.4, **ELSEWHERE), "int8": form("int8", seconds=0.6, **ELSEWHERE)},
            BOTH,
            "int8",
            "fastest",
            id="a measurement of another processor is none",
        ),
        pytest.param(
            {"int8": form("int8", seconds=1.1, **HERE)}, BOTH, "f32", "int8 no faster", id="measured slower here"
        ),
        pytest.param(
            {"bf16": form("bf16", seconds=0, **HERE)}, BOTH, "bf16", "fastest", id="a time of nothing is no time"
        ),
        pytest.param(
            {"int8": form("int8", result="AP50 +0.00 points")},
            BOTH,
            "int8",
            "AP50 +0.00 points",
            id="the result is told",
        ),
    ],
)
def test_auto(
    forms: dict[str, Variant],
    has: tuple[str, ...],
    expected: str,
    told: str,
    identity: ModelIdentity,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Auto takes the fastest that the machine has and that has passed or was accepted, and says why."""
    on_machine(monkeypatch, *has)
    with_forms(monkeypatch, forms)
    chosen = choose(identity, settings)
    assert chosen.precision == expected
    assert told in chosen.why
    assert chosen.text.startswith(f"{expected}: ")


@pytest.mark.parametrize(
    ("asked", "forms", "has", "expected", "told"),
    [
        pytest.param("f32", {"bf16": form("bf16")}, BOTH, "f32", "asked for", id="f32"),
        pytest.param("bf16", {}, BOTH, "bf16", "not been checked", id="bf16 unchecked"),
        pytest.param("bf16", {"bf16": form("bf16")}, BOTH, "bf16", "has passed", id="bf16 checked"),
        pytest.param("bf16", {"bf16": form("bf16", passed=False)}, BOTH, "bf16", "did not pass", id="bf16 failed"),
        pytest.param("bf16", {"bf16": form("bf16")}, (), "f32", "bf16 was asked for", id="bf16 without a processor"),
        pytest.param("int8", {"int8": form("int8")}, (), "int8", "has passed", id="int8"),
        pytest.param("int8", {"int8": form("int8", passed=False, accepted=True)}, (), "int8", "accepted", id="lossy"),
    ],
)
def test_what_is_asked_for(
    asked: str,
    forms: dict[str, Variant],
    has: tuple[str, ...],
    expected: str,
    told: str,
    identity: ModelIdentity,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is asked for is done, but for bf16 on a processor without it, where f32 is said and served."""
    on_machine(monkeypatch, *has)
    with_forms(monkeypatch, forms)
    chosen = choose(identity, settings.model_copy(update={"precision": asked}))
    assert (chosen.precision, told in chosen.why) == (expected, True), chosen.why


def test_int8_without_a_form_names_the_command(identity: ModelIdentity, settings: Settings) -> None:
    """The sentence tells how to make one, with this model's own path in it."""
    with pytest.raises(UsageError, match="no int8 form") as refused:
        choose(identity, settings.model_copy(update={"precision": "int8"}))
    assert f"spica models optimise {identity.weights.path}" in str(refused.value)


ON_GPU: dict[str, Any] = {"processor": "a GPU", "device": "cuda"}


@pytest.mark.parametrize(
    ("forms", "has", "expected", "told", "wanted"),
    [
        pytest.param({}, ("bf16",), "f32", "on this GPU", True, id="nothing checked"),
        pytest.param({}, (), "f32", "on this GPU", False, id="an older GPU"),
        pytest.param({"bf16": form("bf16", **HERE)}, ("bf16",), "f32", "on this GPU", True, id="the processor's check"),
        pytest.param(
            {"bf16": form("bf16", processor="b", device="cuda")},
            ("bf16",),
            "f32",
            "on this GPU",
            True,
            id="another GPU",
        ),
        pytest.param({"bf16": form("bf16", **ON_GPU)}, ("bf16",), "bf16", "has passed", False, id="bf16 passed"),
        pytest.param(
            {"bf16": form("bf16", passed=False, **ON_GPU)}, ("bf16",), "f32", "did not pass", False, id="bf16 failed"
        ),
        pytest.param(
            {"int8": form("int8", **HERE)}, ("bf16",), "f32", "on this GPU", True, id="int8 is the processor's"
        ),
    ],
)
def test_auto_on_a_gpu(
    forms: dict[str, Variant],
    has: tuple[str, ...],
    expected: str,
    told: str,
    wanted: bool,
    identity: ModelIdentity,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU auto takes bf16 if it has passed its check on this very GPU, and asks for the check else."""
    on_machine(monkeypatch, *BOTH, gpu=has)
    with_forms(monkeypatch, forms)
    weights = dataclasses.replace(identity.weights, format="state_dict", norm="batch")
    fresh = dataclasses.replace(identity, weights=weights, card=None)
    chosen = choose(fresh, settings)
    assert (chosen.precision, told in chosen.why) == (expected, True), chosen.why
    assert wants_check(fresh, settings) is wanted


def test_a_version_that_torch_cannot_run_is_the_processors(
    identity: ModelIdentity, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exported graph is the processor's, in what that has, and a GPU's check says nothing of it."""
    on_machine(monkeypatch, *BOTH, gpu=("bf16",))
    with_forms(monkeypatch, {"int8": form("int8", **HERE)})
    assert choose(identity, settings).precision == "int8"
    with_forms(monkeypatch, {"bf16": form("bf16", **ON_GPU)})
    assert choose(identity, settings).precision == "f32"


def test_int8_asked_for_beside_a_gpu_is_computed_on_the_processor(
    identity: ModelIdentity, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error, and the reason tells where."""
    on_machine(monkeypatch, *BOTH, gpu=("bf16",))
    with_forms(monkeypatch, {"int8": form("int8")})
    weights = dataclasses.replace(identity.weights, format="state_dict")
    chosen = choose(dataclasses.replace(identity, weights=weights), settings.model_copy(update={"precision": "int8"}))
    assert chosen.precision == "int8"
    assert "not on the GPU" in chosen.why


@pytest.mark.parametrize(
    ("given", "suffix"),
    [
        (Serving(), ""),
        (Serving("f32", "because"), ""),
        (Serving("bf16"), "-bf16"),
        (Serving("int8", digits="12ab"), "-int8-12ab"),
        (Serving(tile=1024, overlap=0.2), "-t1024o20"),
        (Serving("bf16", tile="auto", overlap=0.29), "-bf16-tao29"),
        (Serving("f32", overlap=0.5), ""),
    ],
    ids=lambda value: value if isinstance(value, str) and value else None,
)
def test_the_served_id_tells_answers_that_differ(given: Serving, suffix: str, identity: ModelIdentity) -> None:
    """Plain f32 keeps the version's id, whatever the reason; each other way of computing has its own."""
    assert served_id(identity, given) == identity.id + suffix


@pytest.mark.parametrize(
    ("tile", "overlap", "expected"),
    [("off", 0.2, None), ("auto", 0.2, "auto"), ("1024", 0.3, 1024)],
)
def test_tiles_come_from_the_settings(
    tile: str, overlap: float, expected: object, identity: ModelIdentity, settings: Settings
) -> None:
    """off, auto, or pixels; the text names them only where there are any."""
    chosen = choose(identity, settings.model_copy(update={"tile": tile, "overlap": overlap, "precision": "f32"}))
    assert (chosen.tile, chosen.overlap) == (expected, overlap)
    assert ("tiles" in chosen.text) == (expected is not None)


def test_the_card_is_read_when_it_is_asked_for(identity: ModelIdentity, settings: Settings) -> None:
    """A check that was recorded after the weights were looked at counts."""
    assert known_card(identity, settings.data_dir) is not None
    record_variant(identity.weights.path, "bf16", Variant(True))
    card = known_card(identity, settings.data_dir)
    assert card is not None
    assert card.precisions["bf16"].passed


def test_a_version_that_is_not_made_yet_is_served_in_f32(
    identity: ModelIdentity, settings: Settings, tmp_path: Path
) -> None:
    """Weights before their conversion have no card, and nothing fails for that."""
    fresh = dataclasses.replace(identity, id="fresh-1", card=None)
    assert choose(fresh, settings).precision == "f32"
    damaged = tmp_path / "data" / "models" / "fresh-1"
    damaged.mkdir()
    (damaged / "model.json").write_text("{", "utf-8")
    assert choose(fresh, settings).precision == "f32"


@pytest.mark.parametrize(
    ("forms", "has", "asked", "expected"),
    [
        pytest.param({}, BOTH, "auto", True, id="nobody has looked"),
        pytest.param({}, (), "auto", False, id="a machine without bf16"),
        pytest.param({}, BOTH, "f32", False, id="f32 was asked for"),
        pytest.param({"bf16": form("bf16", passed=False)}, BOTH, "auto", False, id="it failed before"),
        pytest.param({"int8": form("int8")}, BOTH, "auto", False, id="int8 is there"),
    ],
)
def test_when_bf16_is_worth_a_check(
    forms: dict[str, Variant],
    has: tuple[str, ...],
    asked: str,
    expected: bool,
    identity: ModelIdentity,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, where auto could gain by it."""
    on_machine(monkeypatch, *has)
    with_forms(monkeypatch, forms)
    assert wants_check(identity, settings.model_copy(update={"precision": asked})) is expected


def test_a_version_of_somebodys_own_folder_is_not_written_to(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped model, or a folder of a colleague's: only `spica models optimise` writes there."""
    on_machine(monkeypatch, *BOTH)
    identity = store.identify(model_folder(), data_dir=tmp_path, score_floor=0.05, max_detections=1000, norm_eps=0.0)
    assert not wants_check(identity, settings)


@pytest.mark.parametrize("precision", ["f32", "auto"])
def test_nothing_to_choose_between_needs_no_look_at_the_machine(
    identity: ModelIdentity, settings: Settings, monkeypatch: pytest.MonkeyPatch, precision: Literal["f32", "auto"]
) -> None:
    """Looking takes as long as importing OpenVINO, and the server is not healthy before it knows what it serves."""

    def looked() -> Machine:
        raise AssertionError("the machine was looked at")

    monkeypatch.setattr(serving, "machine", looked)
    assert choose(identity, settings.model_copy(update={"precision": precision})).precision == "f32"

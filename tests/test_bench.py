"""`spica bench`: what is looked at, the methods on a tiny network, the table, and one start of the real server."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from spica.bench import methods, server
from spica.bench.methods import MethodSpec
from spica.bench.photographs import choose_photographs
from spica.bench.run import HEAD, Measured, measure, method_spec, rows, run
from spica.bench.server import Startup
from spica.boxes import Detections
from spica.cli import app
from spica.demo import model_folder
from spica.demo.field import render_field
from spica.errors import ModelUnavailableError, UsageError
from spica.images import decode
from spica.models import store
from spica.models.card import Card
from spica.models.version import ModelVersion
from spica.settings import Settings

MAX_PIXELS = 10**7
EXIF_ORIENTATION = 0x0112


def quiet(_: str) -> None:
    pass


def noise(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def found(*boxes: tuple[float, float, float, float, float]) -> Detections:
    """Boxes of one class, each with its score last."""
    told = np.array(boxes, np.float32).reshape(-1, 5)
    return Detections(told[:, :4].copy(), told[:, 4].copy(), np.zeros(len(told), np.int64))


# --- what is looked at


def test_the_photographs_are_spread_over_the_folder(tmp_path: Path) -> None:
    """Of ten photographs the first and the last are among the three that are looked at."""
    for number in range(10):
        noise(number).save(tmp_path / f"{number}.png")
    seen = choose_photographs(tmp_path, tmp_path / "scratch", most=3, max_pixels=MAX_PIXELS)
    assert [path.name for path in seen.paths] == ["0.png", "4.png", "9.png"]
    assert seen.notes == []


def test_what_can_not_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    """A damaged file is named, and another photograph is looked at in its place."""
    (tmp_path / "a.jpg").write_bytes(b"no photograph")
    for name in ("b.png", "c.png"):
        noise(1).save(tmp_path / name)
    seen = choose_photographs(tmp_path, tmp_path / "scratch", most=2, max_pixels=MAX_PIXELS)
    assert {path.name for path in seen.paths} == {"b.png", "c.png"}
    (note,) = seen.notes
    assert note.startswith("1 photographs were left out")
    assert "a.jpg" in note


def test_a_turned_photograph_is_looked_at_upright_by_all(tmp_path: Path) -> None:
    """Pillow by itself reads the same pixels as Spica from what is looked at, and the note names the photograph."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    noise(1).save(tmp_path / "turned.jpg", exif=exif)
    seen = choose_photographs(tmp_path, tmp_path / "scratch", most=1, max_pixels=MAX_PIXELS)
    (path,) = seen.paths
    upright = decode((tmp_path / "turned.jpg").read_bytes(), where="", max_pixels=MAX_PIXELS).pixels
    assert upright.shape == (64, 48, 3)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(opened.convert("RGB")), upright)
    assert "turned.jpg" in seen.notes[0]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        pytest.param(None, "there is no such folder", id="no folder"),
        pytest.param({}, "there are no photographs in this folder", id="empty"),
        pytest.param({"a.txt": b"x"}, "there are no photographs in this folder", id="other files"),
        pytest.param({"a.jpg": b"x"}, "none of the photographs in this folder can be read", id="damaged"),
    ],
)
def test_a_folder_that_can_not_be_measured_is_a_sentence(
    tmp_path: Path, files: dict[str, bytes] | None, told: str
) -> None:
    """The command ends with what is wrong with the folder, before any network is loaded."""
    folder = tmp_path / "photos"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=told):
        choose_photographs(folder, tmp_path / "scratch", most=1, max_pixels=MAX_PIXELS)
    ended = CliRunner().invoke(app, ["bench", "--images", str(folder), "--data-dir", str(tmp_path / "data")])
    assert isinstance(ended.exception, UsageError)


# --- the methods


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the quickest network, whose answers torch and Spica agree on."""
    pytest.importorskip("torch", reason="needs the extra spica[train]")
    import torch

    from untrained import spread_state_dict

    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(spread_state_dict("ssdlite320_mobilenet_v3_large"), path)
    return path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for all measurements, so that the weights are converted once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "一.png", folder / "二.jpg"]
    for number, path in enumerate(paths):
        Image.fromarray(render_field(900 + number).pixels).save(path)
    return paths


@pytest.mark.torch
def test_the_methods_are_measured_and_agree(tiny: Path, photos: Sequence[Path], data_dir: Path) -> None:
    """Each method computes each photograph once a round, and Spica's f32 shows the tutorial's boxes."""
    settings = Settings(data_dir=data_dir)
    result = run(tiny, photos, settings, methods=["tutorial", "f32"], rounds=2, startups=0, say=quiet)
    assert [row.measured.method for row in result.rows] == ["tutorial", "f32"]
    for row in result.rows:
        assert len(row.measured.seconds) == 2 * len(photos)
        assert row.measured.memory_bytes is None or row.measured.memory_bytes > 10 * 2**20
        assert row.measured.threads is not None
        assert row.startup is None
    same = result.rows[1].agreement
    assert same is not None
    assert same.boxes > 0
    assert same.share > 0.98
    assert dict(result.conditions)["photographs"] == "2, 640 x 480 pixels"
    assert "threads" in dict(result.conditions)


@pytest.mark.torch
def test_a_worker_that_fails_tells_its_last_line(tiny: Path, data_dir: Path, tmp_path: Path) -> None:
    """What ended the process of a method stands in the error."""
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no photograph")
    start = MethodSpec("inference_mode", str(tiny), str(data_dir), 0.05, 1000, 0.0, 1)
    with pytest.raises(ModelUnavailableError, match="UnidentifiedImageError"):
        measure([start], [damaged], rounds=1, say=quiet)


def test_the_named_architecture_reaches_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPICA_ARCHITECTURE decides for the version that is measured and for each method."""
    seen: list[object] = []

    def prepare(*_: object, **given: object) -> object:
        seen.append(given["architecture"])
        raise UsageError("seen")

    monkeypatch.setattr(store, "prepare", prepare)
    settings = Settings(data_dir=tmp_path, architecture="fasterrcnn_mobilenet_v3_large_320_fpn")
    with pytest.raises(UsageError, match="seen"):
        run(tmp_path / "w.pth", [], settings, methods=None, rounds=1, startups=0, say=quiet)
    start = method_spec("f32", tmp_path / "w.pth", settings)
    with pytest.raises(UsageError, match="seen"):
        methods.load(MethodSpec(**json.loads(json.dumps(dataclasses.asdict(start)))))
    assert seen == ["fasterrcnn_mobilenet_v3_large_320_fpn"] * 2


@pytest.mark.torch
def test_the_tutorial_looks_at_the_size_that_the_network_was_trained_at(tmp_path: Path) -> None:
    """A size that the weights tell is the one of torch's network too."""
    pytest.importorskip("torch", reason="needs the extra spica[train]")
    from safetensors.torch import save_file

    from spica.detectors.networks import build

    weights = tmp_path / "small.safetensors"
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    told = {"spica.architecture": name, "spica.input_size": "[96, 128]"}
    save_file(build(name, 2).state_dict(), weights, told)
    card = Card("w-1", "w", name, ("",), {}, norm_eps=1e-5)
    version = ModelVersion(tmp_path, card, tmp_path / "cache", weights)
    transform = methods.tutorial_model(version, str(weights)).transform
    assert (transform.min_size, transform.max_size) == ((96,), 128)


# --- the table


def test_the_table_of_fixed_figures() -> None:
    """Ratios are medians to medians and shortest to shortest; memory and starts are the server's if it was started."""
    photo = Path("a.png")
    boxes = found((0, 0, 10, 10, 0.9), (20, 20, 30, 30, 0.8), (40, 40, 50, 50, 0.1))
    moved = found((0, 0, 10, 11, 0.95), (60, 60, 70, 70, 0.7))
    slow = Measured("tutorial", 3.0, 6.0, [4.0, 2.0, 3.0], {photo: boxes}, 2**30, 2)
    fast = Measured("f32", 1.0, 2.0, [1.0, 0.5, 2.0], {photo: moved}, 2**29, 2)
    told = rows([slow, fast], {"f32": Startup(0.8, 2.5, 2**28)}, threshold=0.6)
    cells = dict(zip(HEAD, told[1].cells(), strict=True))
    assert cells == {
        "way": "Spica, f32",
        "seconds an image, median": "1.000",
        "the shortest": "0.500",
        "times as fast as the tutorial (medians / shortest)": "3.00 / 4.00",
        "times as fast as inference mode": "–",
        "boxes shown": "2",
        "same boxes as torch": "50.0 %",
        "scores differ by, median": "0.0500",
        "memory, MiB": "256",
        "start to healthy, s": "0.80",
        "start to first boxes, s": "2.50",
    }
    assert told[1].as_json()["worst_side_px"] == 1
    unknown = dataclasses.replace(told[1], startup=Startup(0.8, 2.5, None))
    assert dict(zip(HEAD, unknown.cells(), strict=True))["memory, MiB"] == "not measured"


# --- the server


def test_a_start_of_the_server(photos: Sequence[Path], tmp_path: Path) -> None:
    """The demo's model is served; it is healthy before the first boxes, and the second start compiles nothing."""
    model = Path(shutil.copytree(model_folder(), tmp_path / "data" / "models" / "wheat-1"))
    settings = Settings(data_dir=tmp_path / "data")
    result = run(model, photos[:1], settings, methods=["f32"], rounds=1, startups=1, say=quiet)
    started = result.rows[0].startup
    assert started is not None
    assert 0 < started.healthy_s < started.first_s
    assert not any("first start" in note for note in result.notes)


def test_a_server_that_ends_is_a_sentence(photos: Sequence[Path], tmp_path: Path) -> None:
    """Weights that are not there end the server, and the error tells its exit status."""
    options = ["--weights", str(tmp_path / "none.pth"), "--data-dir", str(tmp_path / "data")]
    with pytest.raises(ModelUnavailableError, match="ended by itself"):
        server.measure_startup(photos[0], options, classes=1)

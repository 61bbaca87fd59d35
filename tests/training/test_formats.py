"""COCO, YOLO, Pascal VOC and Label Studio's JSON: read as others write them, and written so that they come back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from annotated_images import BOXES, CLASSES, as_rows, example, photograph, small_set
from spica.errors import DataSetError, StorageError, UsageError
from spica.images import decode
from spica.training.dataset import DataSet
from spica.training.export import MARKER, export
from spica.training.formats.label_studio import name_of
from spica.training.sources import load

SHARED = Path(__file__).parents[3] / "shared" / "data"
FORMATS = ("coco", "yolo", "voc")


# --- there and back


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    """What is written is read again: images by their bytes, classes in order, boxes, names and true negatives."""
    dataset = small_set(tmp_path / "in")
    done = export(dataset, kind, tmp_path / "out")
    assert (done.images, done.boxes, done.turned) == (3, 3, 0)
    again = load(tmp_path / "out")
    assert again.classes == CLASSES
    assert sorted(each.name for each in again.examples) == sorted(each.name for each in dataset.examples)
    assert again.problems == ()
    if kind == "voc":  # whole pixels
        for digest, rows in as_rows(dataset).items():
            np.testing.assert_allclose(as_rows(again)[digest], rows, atol=0.5)
    else:
        assert as_rows(again) == as_rows(dataset)
        assert again.fingerprint == dataset.fingerprint


CORNER = st.tuples(st.floats(0, 62, width=32), st.floats(0, 46, width=32))
SIZE = st.tuples(st.floats(1, 64, width=32), st.floats(1, 48, width=32))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corners=st.lists(CORNER, max_size=6), sizes=st.lists(SIZE, min_size=6, max_size=6), kind=st.sampled_from(FORMATS)
)
def test_any_boxes_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    corners: list[tuple[float, float]],
    sizes: list[tuple[float, float]],
    kind: str,
) -> None:
    """Boxes come back to a thousandth of a pixel, in whole pixels for VOC."""
    folder = tmp_path_factory.mktemp("any")
    boxes = [
        [x, y, min(x + width, 64.0), min(y + height, 48.0)]
        for (x, y), (width, height) in zip(corners, sizes, strict=False)
    ]
    one = example(folder, "a.jpg", photograph(1), boxes, [0] * len(boxes))
    sized = np.array(boxes).reshape(-1, 4)
    if len(sized) > 1 and (np.abs(sized[:, None] - sized[None]).max(axis=2) < 8)[np.triu_indices(len(sized), 1)].any():
        return  # boxes as alike as these may be taken for doubles once they are rounded
    export(DataSet(("spike",), (one,)), kind, folder / "out")
    (back,) = load(folder / "out", classes=["spike"]).examples
    np.testing.assert_allclose(back.truth.boxes_xyxy, one.truth.boxes_xyxy, atol=0.501 if kind == "voc" else 1e-3)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_photographs_are_written_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """A photograph with an EXIF orientation comes out upright: who overlooks it sees the right size and boxes."""
    data = photograph(5, (64, 48), orientation)
    size = (48, 64) if orientation >= 5 else (64, 48)
    dataset = DataSet(CLASSES, (example(tmp_path, "p.jpg", data, [[4, 6, 20, 40]], [1], size),))
    done = export(dataset, kind, tmp_path / "out")
    assert done.turned == 1
    (back,) = load(tmp_path / "out").examples
    with PILImage.open(back.path) as plain:
        assert plain.size == size
        assert not plain.getexif()
    np.testing.assert_allclose(back.truth.boxes_xyxy, [[4, 6, 20, 40]], atol=1e-3)
    before = decode(data, where="before", max_pixels=10**6).pixels.astype(int)
    after = decode(back.path.read_bytes(), where="after", max_pixels=10**6).pixels.astype(int)
    assert np.abs(before - after).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_turned_photographs_of_every_format(tmp_path: Path, kind: str) -> None:
    """Whatever the format, a photograph with an orientation is read and written upright, with its boxes."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    PILImage.open(io.BytesIO(photograph(5))).save(written, kind, exif=exif)
    path = coco(
        tmp_path / "in",
        images=[{"id": 5, "file_name": f"a.{kind.lower()}", "width": 64, "height": 48}],
        annotations=[{"id": 1, "image_id": 5, "category_id": 3, "bbox": [10, 0, 20, 8]}],
    )
    (tmp_path / "in" / "images" / f"a.{kind.lower()}").write_bytes(written.getvalue())
    out = export(load(path), "coco", tmp_path / "out").folder
    (back,) = load(out).examples
    with PILImage.open(back.path) as plain:
        assert plain.size == (48, 64)
        assert not plain.getexif()
    assert back.truth.boxes_xyxy.tolist() == [[40, 10, 48, 30]]


# --- as others write them


def coco(folder: Path, **changes: Any) -> Path:
    """A COCO json with one image of 64 x 48 in images/."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "a.jpg").write_bytes(photograph(1))
    body: dict[str, Any] = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [4, 6, 16, 12]}],
        "categories": [{"id": 7, "name": "weed"}, {"id": 3, "name": "spike"}],
    }
    (folder / "c.json").write_text(json.dumps({**body, **changes}), "utf-8")
    return folder / "c.json"


def test_coco(tmp_path: Path) -> None:
    """Classes are in the order of the category ids, bbox is left, top, width and height."""
    dataset = load(coco(tmp_path))
    assert dataset.classes == ("spike", "weed")
    assert dataset.examples[0].truth.boxes_xyxy.tolist() == [[4, 6, 20, 18]]
    assert dataset.examples[0].truth.class_ids.tolist() == [0]
    assert load(tmp_path).fingerprint == dataset.fingerprint
    assert load(coco(tmp_path), classes=["weed"]).boxes == 0


@pytest.mark.parametrize("contributor", ["Label Studio", "another tool"])
def test_coco_of_a_turned_photograph(tmp_path: Path, contributor: str) -> None:
    """Boxes beside the stored size are turned with the photograph; Label Studio's are upright already."""
    stored = [10.0, 0.0, 20.0, 8.0]  # left, top, width, height in the stored 64 x 48
    path = coco(
        tmp_path,
        annotations=[{"id": 1, "image_id": 5, "category_id": 3, "bbox": stored}],
        info={"contributor": contributor},
    )
    (tmp_path / "images" / "a.jpg").write_bytes(photograph(1, (64, 48), orientation=6))
    (one,) = load(path).examples
    assert (one.truth.width, one.truth.height) == (48, 64)
    turned = [[40, 10, 48, 30]]  # a quarter clockwise: top becomes right
    assert one.truth.boxes_xyxy.tolist() == ([[10, 0, 30, 8]] if contributor == "Label Studio" else turned)


@pytest.mark.parametrize("options", [{"format": "JPEG", "quality": 100, "subsampling": 0}, {"format": "TIFF"}])
@pytest.mark.parametrize("orientation", range(5, 9))
def test_boxes_are_turned_like_pixels(tmp_path: Path, orientation: int, options: dict[str, Any]) -> None:
    """A bright rectangle is where its box is, for every orientation that exchanges the sides."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[8:16, 40:56] = 255
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    written = io.BytesIO()
    PILImage.fromarray(pixels).save(written, exif=exif, **options)
    path = coco(tmp_path, annotations=[{"id": 1, "image_id": 5, "category_id": 3, "bbox": [40, 8, 16, 8]}])
    (tmp_path / "images" / "a.jpg").write_bytes(written.getvalue())
    (one,) = load(path).examples
    bright = decode(written.getvalue(), where="a", max_pixels=10**6).pixels[:, :, 0] > 128
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert one.truth.boxes_xyxy.tolist() == [around]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.jpg", True),
        ("images/a.jpg", True),
        ("C:\\photos\\a.jpg", True),
        ("/home/me/a.jpg", True),
        ("/data/upload/1/%61.jpg", True),
        ("../../outside.jpg", False),
        ("..%2Foutside.jpg", False),
        ("b.jpg", False),
    ],
)
def test_no_image_from_outside(tmp_path: Path, name: str, found: bool) -> None:
    """An image is found by its path or name below the folder of the data, and never outside."""
    (tmp_path / "outside.jpg").write_bytes(photograph(9))
    path = coco(tmp_path / "in" / "side", images=[{"id": 5, "file_name": name, "width": 64, "height": 48}])
    if found:
        assert len(load(path).examples) == 1
        return
    with pytest.raises(DataSetError, match="none of the images is there"):
        load(path)


def test_images_in_sub_folders(tmp_path: Path) -> None:
    """Below the folder that is given an image is found by a name that no other image there has."""
    path = coco(tmp_path / "in", images=[{"id": 5, "file_name": "a.jpg"}])
    photos = tmp_path / "photos"
    for place in ("one", "two"):
        (photos / place).mkdir(parents=True)
    (tmp_path / "in" / "images" / "a.jpg").replace(photos / "two" / "a.jpg")
    assert load(path, images=photos).boxes == 1
    (photos / "one" / "a.jpg").write_bytes(photograph(2))
    with pytest.raises(DataSetError, match="none of the images"):
        load(path, images=photos)


def test_what_coco_leaves_out(tmp_path: Path) -> None:
    """Missing, damaged, resized and doubled images, crowds and annotations without a box are told, the rest is read.

    An image that has an object which can't be learned is left out whole, whatever else is in it.
    """
    path = coco(
        tmp_path,
        images=[
            {"id": 5, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 6, "file_name": "gone.jpg", "width": 64, "height": 48},
            {"id": 7, "file_name": "broken.jpg"},
            {"id": 8, "file_name": "resized.jpg", "width": 640, "height": 480},
            {"id": 9, "file_name": "copy.jpg"},
            {"id": 10, "file_name": "crowd.jpg"},
            {"id": 11, "file_name": "half.jpg"},
        ],
        annotations=[
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [4, 6, 16, 12]},
            {"id": 2, "image_id": 11, "category_id": 3, "bbox": "no"},
            {"id": 4, "image_id": 11, "category_id": 3, "bbox": [4, 6, 16, 12]},
            {"id": 5, "image_id": 9, "category_id": 3, "bbox": [4, 6, 16, 12]},
            {"id": 3, "image_id": 10, "category_id": 3, "bbox": [4, 6, 16, 12], "iscrowd": 1},
        ],
    )
    (tmp_path / "images" / "broken.jpg").write_bytes(photograph(2)[:300])
    (tmp_path / "images" / "resized.jpg").write_bytes(photograph(3))
    (tmp_path / "images" / "copy.jpg").write_bytes(photograph(1))
    (tmp_path / "images" / "crowd.jpg").write_bytes(photograph(4))
    (tmp_path / "images" / "half.jpg").write_bytes(photograph(5))
    with pytest.raises(DataSetError, match="5 of 6 images"):
        load(path)
    dataset = load(path, allow_partial=True, notes=tmp_path / "notes.txt")
    assert [each.name for each in dataset.examples] == ["a.jpg"]
    assert dataset.boxes == 1
    told = dict(line.split("\t") for line in (tmp_path / "notes.txt").read_text("utf-8").splitlines())
    words = {"gone": "missing", "broken": "decoded", "resized": "another size", "copy": "once more", "crowd": "crowd"}
    for name, reason in (words | {"half": "without a bbox"}).items():
        assert reason in told[f"{name}.jpg"]


def test_one_image_with_different_labels(tmp_path: Path) -> None:
    """Two annotations of the same image that contradict each other leave it out: neither is known to be right."""
    path = coco(
        tmp_path,
        images=[{"id": number, "file_name": name} for number, name in ((5, "a.jpg"), (6, "b.jpg"), (7, "c.jpg"))],
    )
    (tmp_path / "images" / "b.jpg").write_bytes(photograph(1))
    (tmp_path / "images" / "c.jpg").write_bytes(photograph(2))
    dataset = load(path, allow_partial=True)
    assert [each.name for each in dataset.examples] == ["c.jpg"]
    assert dataset.problems == ("2 images left out: the same image is there with other labels (a.jpg, b.jpg)",)


def yolo(folder: Path, yaml: str | None, images: str = "images", labels: str = "labels") -> Path:
    """A YOLO folder with a.jpg (one box) and b.jpg (none)."""
    for place in (images, labels):
        (folder / place).mkdir(parents=True)
    (folder / images / "a.jpg").write_bytes(photograph(1))
    (folder / images / "b.jpg").write_bytes(photograph(2))
    (folder / labels / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n", "utf-8")
    (folder / labels / "b.txt").touch()
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml, "utf-8")
    return folder


@pytest.mark.parametrize(
    ("yaml", "images", "labels"),
    [
        pytest.param("names: [spike, weed]\ntrain: images\nval: images\n", "images", "labels", id="plain"),
        pytest.param("names: {0: spike, 1: weed}\ntrain: images/train\n", "images/train", "labels/train", id="splits"),
        pytest.param("names: [spike, weed]\nval: ../valid/images\n", "valid/images", "valid/labels", id="Roboflow"),
        pytest.param("path: .\nnames: [spike, weed]\ntrain: [images]\n", "images", "labels", id="list"),
        pytest.param("names: [spike, weed]\npath: /elsewhere\n", "train/images", "train/labels", id="moved"),
        pytest.param(None, "images", "labels", id="Label Studio"),
    ],
)
def test_yolo(tmp_path: Path, yaml: str | None, images: str, labels: str) -> None:
    """The usual layouts are read; an image with an empty text file is a true negative."""
    folder = yolo(tmp_path / "in", yaml, images, labels)
    if yaml is None:
        (folder / "classes.txt").write_text("spike\nweed\n", "utf-8")
    dataset = load(folder)
    assert dataset.classes == CLASSES
    assert [each.truth.boxes_xyxy.tolist() for each in dataset.examples] == [[[24, 12, 40, 36]], []]
    assert dataset.examples[0].truth.class_ids.tolist() == [1]
    if yaml is not None:
        assert load(folder / "data.yaml").fingerprint == dataset.fingerprint


def test_yolo_splits_and_lines(tmp_path: Path) -> None:
    """One split can be asked for; outlines become boxes; an image with a bad line or an unknown class is left out."""
    folder = yolo(
        tmp_path / "in", "names: [spike]\ntrain: images/train\nval: images/val\n", "images/train", "labels/train"
    )
    (folder / "images" / "val").mkdir()
    (folder / "labels" / "val").mkdir()
    outline = "0 0.25 0.25 0.75 0.25 0.5 0.75\n"
    for name, line in {"c": "", "d": "nonsense\n", "e": "7 0.5 0.5 0.1 0.1\n", "f": "0 nan 0.5 0.1 0.1\n"}.items():
        (folder / "images" / "val" / f"{name}.jpg").write_bytes(photograph(ord(name)))
        (folder / "labels" / "val" / f"{name}.txt").write_text(outline + line, "utf-8")
    dataset = load(folder, split="val", allow_partial=True)
    assert [each.name for each in dataset.examples] == ["c.jpg"]
    assert dataset.examples[0].truth.boxes_xyxy.tolist() == [[16, 12, 48, 36]]
    for words in ("not understood", "has no name", "no numbers"):
        assert any(words in sentence for sentence in dataset.problems), words


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    """A yaml file that asks for code is refused, and the code is not run."""
    made = tmp_path / "made"
    call = f"!!python/object/apply:os.mkdir [{json.dumps(str(made))}]"
    folder = yolo(tmp_path / "in", f"names: {call}\ntrain: images\n")
    with pytest.raises(DataSetError, match="can't be read"):
        load(folder)
    assert not made.exists()


def voc(folder: Path, xml: str) -> Path:
    """A VOC folder with one image of 64 x 48."""
    for place in ("Annotations", "JPEGImages"):
        (folder / place).mkdir(parents=True)
    (folder / "JPEGImages" / "a.jpg").write_bytes(photograph(1))
    (folder / "Annotations" / "a.xml").write_text(xml, "utf-8")
    return folder


OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
SIZE_XML = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def test_voc(tmp_path: Path) -> None:
    """Corners count from 1 and belong to the box; classes are by name."""
    objects = OBJECT.format("weed", 1, 1, 64, 48) + OBJECT.format("spike", 5, 7, 5, 18)
    folder = voc(tmp_path / "in", f"<annotation><filename>a.jpg</filename>{SIZE_XML}{objects}</annotation>")
    dataset = load(folder)
    assert dataset.classes == ("spike", "weed")
    assert dataset.examples[0].truth.boxes_xyxy.tolist() == [[0, 0, 64, 48], [4, 6, 5, 18]]
    assert dataset.examples[0].truth.class_ids.tolist() == [1, 0]


def test_voc_declares_no_entities(tmp_path: Path) -> None:
    """An XML file that declares entities is not read."""
    folder = voc(tmp_path / "in", '<!DOCTYPE a [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>')
    with pytest.raises(DataSetError):
        load(folder)


def label_studio(folder: Path, uri: str, where: str, **result: Any) -> Path:
    """Label Studio's JSON export of two annotations of one image, the file of which is at ``where``."""
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / where).write_bytes(photograph(1))
    value = {"x": 25, "y": 50, "width": 50, "height": 25, "rectanglelabels": ["spike"]}
    item = {"id": "r", "from_name": "l", "to_name": "i", "type": "rectanglelabels", "value": value, **result}
    skipped = {"id": 2, "was_cancelled": True, "updated_at": "2026-02-01T00:00:00Z", "result": []}
    annotation = {"id": 1, "updated_at": "2026-01-01T00:00:00Z", "result": [item]}
    tasks = [{"id": 9, "data": {"image": uri, "note": "text"}, "annotations": [annotation, skipped]}]
    (folder / "export.json").write_text(json.dumps(tasks), "utf-8")
    return folder / "export.json"


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("/data/local-files/?d=field/2026/a.jpg", "root/field/2026/a.jpg"),
        ("/data/local-files/?d=field/2026/a.jpg", "root/2026/a.jpg"),
        ("/data/local-files/?d=field%5C%E5%B0%8F%E9%BA%A6.jpg", "root/小麦.jpg"),
        ("/data/upload/3/0123abcd-a.jpg", "root/0123abcd-a.jpg"),
        ("/data/upload/3/0123abcd-a.jpg", "root/a.jpg"),
        ("http://host/data/local-files/?d=a.jpg", "root/a.jpg"),
        ("https://host/photos/a%20b.jpg", "root/a b.jpg"),
        ("s3://bucket/photos/a.jpg", "root/a.jpg"),
    ],
)
def test_label_studio_json(tmp_path: Path, uri: str, where: str) -> None:
    """Images are found below the given folder by what their address tells; skipped annotations don't count."""
    dataset = load(label_studio(tmp_path, uri, where), images=tmp_path / "root")
    assert dataset.classes == ("spike",)
    (one,) = dataset.examples
    assert one.truth.boxes_xyxy.tolist() == [[16, 24, 48, 36]]
    assert (one.task, one.annotation, one.name) == (9, 1, name_of(uri))


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        pytest.param({"original_width": 640, "original_height": 480}, True, id="the same shape"),
        pytest.param({"original_width": 48, "original_height": 64}, False, id="another shape"),
        pytest.param({"type": "polygonlabels", "value": {"polygonlabels": ["leaf"]}}, False, id="only a polygon"),
        pytest.param({"value": {"x": 1, "y": 1, "width": 9, "height": 9}}, False, id="no label"),
    ],
)
def test_regions_that_can_not_be_used(tmp_path: Path, result: dict[str, Any], kept: bool) -> None:
    """An image that was another when it was annotated, or that shows objects of other kinds only, is left out."""
    path = label_studio(tmp_path, "/data/upload/3/0123abcd-a.jpg", "a.jpg", **result)
    if kept:
        assert load(path, classes=["spike"]).boxes == 1
        return
    with pytest.raises(DataSetError):
        load(path, classes=["spike"])


# --- what is none of them


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda _: None, "there is no such file or folder", id="nothing"),
        pytest.param(lambda path: path.mkdir(), "an empty folder", id="empty folder"),
        pytest.param(lambda path: path.write_text("hello", "utf-8"), "a file without suffix", id="some file"),
    ],
)
def test_not_a_data_set(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    """What is found, and what is expected, is told."""
    make(tmp_path / "data")
    with pytest.raises(DataSetError) as caught:
        load(tmp_path / "data")
    assert words in str(caught.value)
    assert "COCO" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "can't be read"),
        ("[]", "an empty list"),
        ('{"a": 1}', "an object with a"),
        ('[{"image": "a.jpg", "annotation_id": 3}]', "JSON_MIN"),
        ('{"images": [], "annotations": [], "categories": []}', "categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no annotated image is left"),
        ('{"images": [3], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no COCO file"),
    ],
)
def test_json_that_is_no_data_set(tmp_path: Path, text: str, words: str) -> None:
    """A JSON of another kind, or a damaged one, is refused with a sentence that says what it is."""
    (tmp_path / "data.json").write_text(text, "utf-8")
    with pytest.raises(DataSetError) as caught:
        load(tmp_path / "data.json")
    assert words in str(caught.value)


# --- writing


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder with something in it is left alone; --force replaces an earlier export, and nothing else."""
    dataset = small_set(tmp_path / "in")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work", "utf-8")
    for force in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            export(dataset, "coco", mine, force=force)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    out = export(dataset, "coco", tmp_path / "out").folder
    with pytest.raises(UsageError, match="not empty"):
        export(dataset, "yolo", out)
    export(dataset, "yolo", out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["data.yaml", "images", "labels", MARKER]


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    """Where an image is gone, nothing is written, and an earlier export stays as it was."""
    dataset = small_set(tmp_path / "in")
    out = export(dataset, kind, tmp_path / "out").folder
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    dataset.examples[1].path.unlink()
    with pytest.raises(DataSetError, match="gone"):
        export(dataset, kind, out, force=True)
    with pytest.raises(DataSetError, match="gone"):
        export(dataset, kind, tmp_path / "new")
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    """A folder that can't be made is an error that names it."""
    dataset = small_set(tmp_path / "in")
    (tmp_path / "file").write_text("a file", "utf-8")
    with pytest.raises(StorageError):
        export(dataset, "coco", tmp_path / "file" / "out")


def test_names_that_every_system_takes(tmp_path: Path) -> None:
    """Names are unique by their stem whatever the case of letters, and free of what Windows reserves."""
    names = ["a.jpg", "A.png", "a.jpeg", "con.jpg", "b c.jpg"]
    examples = tuple(
        example(tmp_path, f"{number}.jpg", photograph(number), BOXES, (0, 1)) for number in range(len(names))
    )
    from dataclasses import replace

    named = tuple(replace(each, name=name) for each, name in zip(examples, names, strict=True))
    out = export(DataSet(CLASSES, (*named, replace(named[0], name='x<>:"|?*/y.jpg'))), "yolo", tmp_path / "out").folder
    written = [path.name for path in (out / "images").iterdir()]
    assert len({Path(name).stem.casefold() for name in written}) == 6
    assert "con.jpg" not in written
    assert not any(character in name for name in written for character in '<>:"|?*')


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data with real photographs is not here")
def test_real_data(tmp_path: Path) -> None:
    """Real data sets go through every format and come back with the same images and boxes."""
    dataset = load(SHARED / "wheat" / "annotations.json")
    for kind in FORMATS:
        again = load(export(dataset, kind, tmp_path / kind).folder)
        assert again.classes == dataset.classes
        assert again.boxes == dataset.boxes
        assert {each.digest for each in again.examples} == {each.digest for each in dataset.examples}

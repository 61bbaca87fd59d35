"""Doubts about labels, format by format: the image is left out and named, never taken as empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annotated_images import photograph
from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.label_studio import name_of
from spica.training.sources import load

HUGE = 10**400


def read(data: Path, **options: Any) -> tuple[DataSet, dict[str, str]]:
    """The data set, and the reason for each image that was left out."""
    notes = data.parent / "notes.txt"
    notes.unlink(missing_ok=True)
    try:
        dataset = load(data, allow_partial=True, notes=notes, **options)
    except DataSetError as error:
        if "no annotated image is left" not in error.what:
            raise
        dataset = DataSet(("none",), ())
    lines = [line.split("\t") for line in notes.read_text("utf-8").splitlines()]
    assert len(dict(lines)) == len(lines)
    return dataset, dict(lines)


def kept(dataset: DataSet) -> dict[str, list[list[float]]]:
    """The boxes of each image."""
    return {each.name: each.truth.boxes_xyxy.tolist() for each in dataset.examples}


# --- COCO


def coco(folder: Path, images: list[Any], annotations: list[Any], name: str = "annotations.json", **more: Any) -> Path:
    """A COCO file, and a photograph in ``images`` for every ``file_name``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        if isinstance(image.get("file_name"), str):
            (folder / "images" / image["file_name"]).write_bytes(photograph(number))
    body = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "spike"}], **more}
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(body), "utf-8")
    return path


def box(image: Any, bbox: Any = (8, 8, 16, 16), **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": list(bbox) if isinstance(bbox, tuple) else bbox, **more}


def test_annotations_that_meet_no_image(tmp_path: Path) -> None:
    """They are counted and named, and no image that they may belong to is kept, neither as empty nor with the rest."""
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(1, 6)]
    rows = [box(1), box("2"), box(3), box("3", (30, 8, 16, 16)), box("nobody's"), box(None)]
    dataset, left_out = read(coco(tmp_path / "in", images, rows))
    assert list(kept(dataset)) == ["1.jpg"]
    assert set(left_out) == {"2.jpg", "3.jpg", "4.jpg", "5.jpg"}
    assert set(left_out.values()) == {"annotations that match no image, and may be its own"}
    told = next(sentence for sentence in dataset.problems if sentence.startswith("4 annotations have an image_id"))
    assert 'image_id "2"' in told
    with pytest.raises(DataSetError, match="4 of 5 images") as refused:
        load(tmp_path / "in")
    assert "4 annotations have an image_id" in str(refused.value)


@pytest.mark.parametrize("number", [[1], None, True, {"a": 1}, 1.5, float("nan")], ids=str)
def test_ids_that_are_none(tmp_path: Path, number: Any) -> None:
    """An image whose id is no number and no text is left out; so is one whose annotations may be lost by theirs."""
    images = [{"id": number, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}]
    dataset, left_out = read(coco(tmp_path / "in", images, [box(number), box(2)]))
    assert list(kept(dataset)) == ["b.jpg"]
    assert set(left_out) == {"a.jpg", "c.jpg"}


@pytest.mark.parametrize("number", ["text", 7.0, -3, 10**300], ids=str)
def test_ids_that_serve(tmp_path: Path, number: Any) -> None:
    """Texts and numbers of any size meet; 7.0 is 7."""
    dataset, left_out = read(coco(tmp_path / "in", [{"id": number, "file_name": "a.jpg"}], [box(number)]))
    assert kept(dataset) == {"a.jpg": [[8, 8, 24, 24]]}
    assert left_out == {}


def test_an_id_used_twice(tmp_path: Path) -> None:
    """Images that share an id are left out, for nobody knows whose the boxes are; the others stay."""
    images = [{"id": 1, "file_name": name} for name in ("a.jpg", "b.jpg")] + [{"id": 2, "file_name": "c.jpg"}]
    dataset, left_out = read(coco(tmp_path / "in", images, [box(1), box(2)]))
    assert list(kept(dataset)) == ["c.jpg"]
    assert left_out == dict.fromkeys(("a.jpg", "b.jpg"), "an id that another image has too")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param(box(1, (HUGE, 1, 5, 5)), "no numbers", id="huge"),
        pytest.param(box(1, (1, 1, float("inf"), 5)), "no numbers", id="infinite"),
        pytest.param(box(1, (1e308, 1, 1e308, 5)), "no numbers", id="huge together"),
        pytest.param(box(1, ("8", "8", "16", "16")), "four numbers", id="texts"),
        pytest.param(box(1, (True, 8, 16, 16)), "four numbers", id="a truth value"),
        pytest.param(box(1, None), "four numbers", id="null"),
        pytest.param(box(1, iscrowd=1), "crowd", id="a crowd"),
        pytest.param(box(1, category_id=2), "has no name", id="no such class"),
        pytest.param(box(1, category_id=[1]), "has no name", id="a list as class"),
        pytest.param(box(1, category_id=True), "has no name", id="a truth value as class"),
    ],
)
def test_annotations_that_can_not_be_learned(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    """One such annotation leaves its image out, though it has a good box too."""
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    dataset, left_out = read(coco(tmp_path / "in", images, [box(1), row, box(2)]))
    assert list(kept(dataset)) == ["b.jpg"]
    assert reason in left_out["a.jpg"]


def test_negative_sizes(tmp_path: Path) -> None:
    """A box drawn from its right lower corner is turned round."""
    dataset, left_out = read(coco(tmp_path / "in", [{"id": 1, "file_name": "a.jpg"}], [box(1, (24, 30, -16, -20))]))
    assert kept(dataset) == {"a.jpg": [[8, 10, 24, 30]]}
    assert left_out == {}


@pytest.mark.parametrize(
    ("width", "is_kept"), [(64, True), (64.0, True), (HUGE, True), (True, True), ("64", True), (640, False)], ids=str
)
def test_declared_sizes(tmp_path: Path, width: Any, is_kept: bool) -> None:
    """A size that is none tells nothing; another than the image's leaves it out."""
    image = {"id": 1, "file_name": "a.jpg", "width": width, "height": 48}
    dataset, _ = read(coco(tmp_path / "in", [image], [box(1)]))
    assert bool(dataset.examples) == is_kept


@pytest.mark.parametrize("side", ["width", "height"])
def test_one_declared_side(tmp_path: Path, side: str) -> None:
    """A side that is declared alone must be the image's too, in COCO and in VOC."""
    pixels = {"width": 64, "height": 48}[side]
    images = [{"id": 1, "file_name": "a.jpg", side: pixels}, {"id": 2, "file_name": "b.jpg", side: 640}]
    dataset, left_out = read(coco(tmp_path / "coco", images, [box(1), box(2)]))
    assert (list(kept(dataset)), list(left_out)) == (["a.jpg"], ["b.jpg"])
    one = OBJECT.format("spike", 9, 11, 24, 30)
    sizes = {stem: f"<size><{side}>{n}</{side}></size>{one}" for stem, n in (("a", pixels), ("b", 640))}
    dataset, left_out = read(voc(tmp_path / "voc", sizes))
    assert (list(kept(dataset)), list(left_out)) == (["a.jpg"], ["b.jpg"])


def test_a_key_twice(tmp_path: Path) -> None:
    """A JSON that says a thing twice is refused, for the last may be empty."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)])
    path.write_text(path.read_text("utf-8")[:-1] + ', "annotations": []}', "utf-8")
    with pytest.raises(DataSetError, match="twice") as refused:
        load(path, classes=["spike"])
    assert '"annotations"' in str(refused.value)


def test_categories_that_share_an_id(tmp_path: Path) -> None:
    """They are refused: nobody knows which class is meant."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [], categories=[{"id": 1, "name": n} for n in "ab"])
    with pytest.raises(DataSetError, match="COCO"):
        load(path)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("annotations/instances_train.json", "images"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("Annotations/instances_default.json", "."),
        ("train.json", "train"),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["the file", "the folder"])
def test_coco_layouts(tmp_path: Path, name: str, images: str, whole: bool) -> None:
    """Images are found where COCO, CVAT and others put them, from the file and from the folder."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)], name)
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    (tmp_path / "images" / "a.jpg").replace(tmp_path / images / "a.jpg")
    if whole and name.startswith("Ann"):
        pytest.skip("found by its usual name only")
    assert kept(load(tmp_path if whole else path)) == {"a.jpg": [[8, 8, 24, 24]]}


def test_the_same_name_in_another_part(tmp_path: Path) -> None:
    """Of two images of one name that of the JSON's own part is taken."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)], "annotations/instances_val.json")
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "images" / "val" / "a.jpg").write_bytes(photograph(7))
    (one,) = load(path).examples
    assert one.path.parent.name == "val"


@pytest.mark.parametrize("kind", ["COCO", "Label Studio"])
@pytest.mark.parametrize(
    ("named", "there", "found"),
    [
        (["cam2/1.jpg", "a.jpg"], ["cam1/1.jpg", "a.jpg"], ["a.jpg"]),
        (["cam2/1.jpg"], ["cam2/1.jpg", "cam1/1.jpg"], ["cam2/1.jpg"]),
        (["cam2/1.jpg"], ["cam1/1.jpg", "x/cam2/1.jpg"], ["x/cam2/1.jpg"]),
        (["x/cam2/1.jpg"], ["1.jpg", "cam2/1.jpg"], ["cam2/1.jpg"]),
        (["images/1.jpg"], ["1.jpg"], ["1.jpg"]),
        (["cam1/1.jpg", "cam2/1.jpg", "a.jpg"], ["1.jpg", "a.jpg"], ["a.jpg"]),
        (["cam1/1.jpg", "cam2/1.jpg"], ["1.jpg", "cam1/1.jpg"], ["cam1/1.jpg"]),
    ],
)
def test_a_name_with_a_folder(tmp_path: Path, kind: str, named: list[str], there: list[str], found: list[str]) -> None:
    """Another folder's image of that name is another image; a flat one is meant where only one is called so."""
    photos = tmp_path / "photos"
    for number, name in enumerate(there):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(photograph(number))
    if kind == "COCO":
        (tmp_path / "in").mkdir()
        body = {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(named)],
            "annotations": [box(number) for number in range(len(named))],
            "categories": [{"id": 1, "name": "spike"}],
        }
        data = tmp_path / "in" / "annotations.json"
        data.write_text(json.dumps(body), "utf-8")
    else:
        rows = (task({"image": f"/data/local-files/?d={name}"}, region()) for name in named)
        data = tasks(tmp_path / "in", *rows)
    dataset = load(data, images=photos, allow_partial=True)
    assert [each.path.relative_to(photos).as_posix() for each in dataset.examples] == found
    lost = len(named) - len(found)
    assert not lost or f"{lost} image" in str(dataset.problems)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("label_config.xml", "<View><Image name='i'/></View>"),
        ("a.xml", "<annotations/>"),
        ("broken.xml", "<ann"),
        ("args.yaml", "epochs: 3\n"),
        ("spica-export.json", "{}"),
        ("broken.json", "{"),
    ],
)
def test_a_file_beside_that_decides_nothing(tmp_path: Path, name: str, text: str) -> None:
    """Unrelated files beside a COCO file do not make the folder something else."""
    coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)])
    (tmp_path / name).write_text(text, "utf-8")
    assert len(load(tmp_path).examples) == 1


@pytest.mark.parametrize("name", ["half.json", "annotations/half.json", "data.yaml"])
def test_a_damaged_file_beside(tmp_path: Path, name: str) -> None:
    """A file beside the data that may be half of a data set is named."""
    coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"images": [', "utf-8")
    (told,) = load(tmp_path).problems
    assert Path(name).name in told


def test_several_data_sets_in_a_folder(tmp_path: Path) -> None:
    """Where two formats are there nothing is guessed; the file that is meant can be given."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)])
    (tmp_path / "data.yaml").write_text("names: [spike]\ntrain: images\n", "utf-8")
    with pytest.raises(DataSetError, match="several data sets") as refused:
        load(tmp_path)
    assert "annotations.json, YOLO" in str(refused.value)
    assert len(load(path).examples) == 1


def test_a_part_of_what_has_none(tmp_path: Path) -> None:
    """A part that is asked for and can't be told apart is an error, not the whole."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)])
    with pytest.raises(DataSetError, match="no parts"):
        load(path, split="val")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_of_windows_tools(tmp_path: Path, encoding: str) -> None:
    """JSON with a mark at its beginning, and in UTF-16, is read; half a letter in a name fails nowhere."""
    path = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box(1)], categories=[{"id": 1, "name": "\ud83cx"}])
    path.write_text(path.read_text("utf-8"), encoding)
    assert load(path).classes == ("?x",)


# --- Pascal VOC

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def voc(folder: Path, images: dict[str, str], where: str = "Annotations") -> Path:
    """A VOC folder with an XML of the given content for each image's stem."""
    for place in (where, "JPEGImages"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for number, (stem, content) in enumerate(images.items()):
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(photograph(number))
        xml = f"<annotation>{content}</annotation>"
        (folder / where / f"{stem}.xml").write_text(xml, "utf-8")
    return folder


def test_voc_corners(tmp_path: Path) -> None:
    """Exchanged corners are turned round; Label Studio's count from 0; what is no box leaves its image out."""
    owner = "<owner><name>Label Studio</name></owner>"
    folder = voc(
        tmp_path / "in",
        {
            "turned": OBJECT.format("spike", 24, 30, 9, 11),
            "plain": OBJECT.format("spike", 9, 11, 24, 30),
            "own": owner + OBJECT.format("spike", 9, 11, 24, 30),
            "none": OBJECT.format("spike", "nan", 11, 24, 30) + OBJECT.format("spike", 9, 11, 24, 30),
            "part": "<object><name>spike</name></object>",
            "nameless": OBJECT.format("", 9, 11, 24, 30),
            "穂%E7%A9%82": OBJECT.format("spike", 9, 11, 24, 30),
        },
    )
    dataset, left_out = read(folder)
    assert kept(dataset) == {
        "turned.jpg": [[8, 10, 24, 30]],
        "plain.jpg": [[8, 10, 24, 30]],
        "own.jpg": [[9, 11, 24, 30]],
        "穂%E7%A9%82.jpg": [[8, 10, 24, 30]],
    }
    assert set(left_out) == {"none.jpg", "part.jpg", "nameless.jpg"}


def test_voc_objects_that_are_not_understood(tmp_path: Path) -> None:
    """Two boxes or names of an object, and elements that are called like an object in other letters, are doubts."""
    one = OBJECT.format("spike", 9, 11, 24, 30)
    bounds = one[one.index("<bndbox>") : one.index("</object>")]
    spoilt = {
        "boxes": one.replace(bounds, bounds * 2),
        "sides": one.replace("<xmin>", "<xmin>1</xmin><xmin>"),
        "names": one.replace("<name>", "<name>weed</name><name>"),
        "capital": one.replace("object>", "Object>"),
        "capitals": one.replace("object>", "OBJECT>"),
        "space": one.replace("<object>", '<object xmlns="http://x">'),
    }
    dataset, left_out = read(voc(tmp_path / "in", {"a": one, **spoilt}))
    assert list(kept(dataset)) == ["a.jpg"]
    assert set(left_out) == {f"{stem}.jpg" for stem in spoilt}


def test_voc_sub_folders(tmp_path: Path) -> None:
    """XML files and images in sub-folders are not read, and named."""
    folder = voc(tmp_path / "in", {"a": OBJECT.format("spike", 9, 11, 24, 30)})
    for place in ("Annotations", "JPEGImages"):
        (folder / place / "more").mkdir()
    (folder / "Annotations" / "more" / "b.xml").write_text("<annotation/>", "utf-8")
    (folder / "JPEGImages" / "more" / "b.jpg").write_bytes(photograph(9))
    dataset, left_out = read(folder)
    assert list(kept(dataset)) == ["a.jpg"]
    assert left_out == {"b.jpg": "no XML file"}
    assert any("sub-folders" in sentence and "b.xml" in sentence for sentence in dataset.problems)


def test_voc_images_and_xml_that_do_not_meet(tmp_path: Path) -> None:
    """An XML file that names another image than it is called like, and an image without one, are told."""
    one = OBJECT.format("spike", 9, 11, 24, 30)
    folder = voc(tmp_path / "in", {"a": one, "b": f"<filename>a.jpg</filename>{one}", "c": one})
    (folder / "JPEGImages" / "d.jpg").write_bytes(photograph(9))
    (folder / "Annotations" / "e.xml").write_text("<annotation>", "utf-8")
    dataset, left_out = read(folder)
    assert list(kept(dataset)) == ["a.jpg", "c.jpg"]
    assert set(left_out) == {"b.xml", "d.jpg", "e.xml"}


def test_voc_parts(tmp_path: Path) -> None:
    """A part's images with spaces in their names are found, those without XML named, a part without a list refused."""
    one = OBJECT.format("spike", 9, 11, 24, 30)
    folder = voc(tmp_path / "in", {"a": one, "b b": one, "c": one}, where="annotations")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("a  1\nb b\nz\n", "utf-8")
    dataset, left_out = read(folder, split="val")
    assert list(kept(dataset)) == ["a.jpg", "b b.jpg"]
    assert list(left_out) == ["z"]
    with pytest.raises(DataSetError, match="no list of the images of test") as refused:
        load(folder, split="test")
    assert "val.txt" in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "utf-16"])
def test_voc_names_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    """labels.txt of a Japanese Windows is read."""
    folder = voc(tmp_path / "in", {"a": OBJECT.format("穂", 9, 11, 24, 30)})
    (folder / "labels.txt").write_text("麦の葉\n穂\n", encoding)
    assert load(folder).classes == ("麦の葉", "穂")


@pytest.mark.parametrize("whole", [False, True], ids=["the file", "the folder"])
def test_cvat_for_images(tmp_path: Path, whole: bool) -> None:
    """CVAT's own XML is told by its name, with what to do."""
    (tmp_path / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>", "utf-8")
    with pytest.raises(DataSetError, match="CVAT") as refused:
        load(tmp_path if whole else tmp_path / "annotations.xml")
    assert "COCO 1.0" in str(refused.value)


# --- Label Studio's JSON


def region(label: Any = "spike", to_name: str = "image", **more: Any) -> dict[str, Any]:
    value = {"x": 25, "y": 50, "width": 50, "height": 25, "rectanglelabels": [label]}
    return {"id": "r", "from_name": "l", "to_name": to_name, "type": "rectanglelabels", "value": value, **more}


def task(data: Any, *result: Any, **annotation: Any) -> dict[str, Any]:
    return {"data": data, "annotations": [{"id": 1, "result": list(result), **annotation}]}


def tasks(folder: Path, *listed: dict[str, Any], files: tuple[str, ...] = ()) -> Path:
    """A JSON export beside photographs."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(files):
        (folder / name).write_bytes(photograph(number))
    path = folder / "project.json"
    path.write_text(json.dumps([{"id": number, **each} for number, each in enumerate(listed, 1)]), "utf-8")
    return path


WHOLE = [[16, 24, 48, 36]]


def test_tasks_that_give_no_image(tmp_path: Path) -> None:
    """A task without an address, or without a submission, does not vanish: it is named."""
    path = tasks(
        tmp_path / "in",
        task({"image": "a.jpg"}, region()),
        *(task(data, region()) for data in ({"image": None}, {}, {"image": {"url": "b.jpg"}}, {"image": ["", 3]})),
        task({"image": "b.jpg"}, region(), was_cancelled=True),
        {"data": {"image": "b.jpg"}},
        task({"image": "gone.jpg"}, region()),
        files=("a.jpg", "b.jpg"),
    )
    dataset, left_out = read(path)
    assert kept(dataset) == {"a.jpg": WHOLE}
    assert {name: reason for name, reason in left_out.items() if "address" in reason} == dict.fromkeys(
        ("task 2", "task 3", "task 4", "task 5"), "no address of an image"
    )
    assert left_out["task 6"] == left_out["task 7"] == "no submitted annotation"
    assert left_out["task 8: gone.jpg"] == "it is missing"


def test_several_images_a_task(tmp_path: Path) -> None:
    """Where the export tells which image a region is on it is read; else no image of the task is kept."""
    two = {"image": "a.jpg", "thumb": "b.jpg"}
    path = tasks(
        tmp_path / "in",
        task({"image": "c.jpg", "image2": "d.jpg"}, region(to_name="left"), region(to_name="right")),
        task({"image": "e.jpg", "image2": "f.jpg"}, region(to_name="left")),
        task({"image": "g.jpg"}, region(to_name="left"), region(to_name="right")),
        task(two, region()),
        task({"image": "h.jpg", "thumb": "i.jpg"}),
        files=tuple(f"{letter}.jpg" for letter in "abcdefghi"),
    )
    dataset, left_out = read(path)
    assert kept(dataset) == {"a.jpg": WHOLE}
    assert {name.split(": ")[1] for name in left_out} == {f"{letter}.jpg" for letter in "bcdefghi"}
    path = tasks(
        tmp_path / "alike",
        task(two, region()),
        task({"image": "h.jpg", "thumb": "i.jpg"}),
        task({"image": "left.jpg", "thumb": "right.jpg"}, region(), region(to_name="thumb")),
        files=("a.jpg", "b.jpg", "h.jpg", "i.jpg", "left.jpg", "right.jpg"),
    )
    assert kept(read(path)[0]) == {
        "a.jpg": WHOLE,
        **{name: [] for name in ("b.jpg", "h.jpg", "i.jpg")},
        **dict.fromkeys(("left.jpg", "right.jpg"), WHOLE),
    }


@pytest.mark.parametrize(
    ("item", "is_kept"),
    [
        pytest.param(region("leaf", type="polygonlabels", value={"polygonlabels": ["soil"]}), True, id="another thing"),
        pytest.param(region(type="polygonlabels", value={"polygonlabels": ["spike"]}), False, id="a class outlined"),
        pytest.param(region(type="keypoint", value={"x": 1}), False, id="a point without a label"),
        pytest.param(region(value={"x": 1, "y": 1, "width": 9, "height": 9}), False, id="no label"),
        pytest.param(region(None), False, id="null as a label"),
        pytest.param(region(["spike"]), False, id="a list as a label"),
        pytest.param(region(value={"x": 1, "rectanglelabels": ["spike"]}), False, id="no numbers"),
        pytest.param(region(item_index=3), False, id="on a page that is not there"),
        pytest.param(region(item_index="1"), False, id="a text as a page"),
        pytest.param(region(original_width=HUGE), True, id="a huge size"),
        pytest.param(region(type="newlabels", value={"newlabels": ["spike"]}), False, id="a kind that is not known"),
        pytest.param(region(type="choices", value={"choices": ["spike"]}), True, id="a choice"),
        pytest.param(region(type="choices", id="other"), False, id="a box that is called a choice"),
        pytest.param(
            region(type="number", id="other", value={"x": 1, "y": 1, "width": 9, "height": 9, "number": 3}),
            False,
            id="a box of its own with a number",
        ),
        pytest.param(
            region(type="number", value={"x": 1, "y": 1, "width": 9, "height": 9, "number": 3}),
            True,
            id="a number of a region",
        ),
        pytest.param({}, False, id="no kind"),
        pytest.param("nothing", False, id="no region at all"),
    ],
)
def test_regions(tmp_path: Path, item: Any, is_kept: bool) -> None:
    """A region that may be an object and gives no box leaves its image out, though another is good."""
    path = tasks(
        tmp_path / "in", task({"image": "a.jpg"}, region(), item), task({"image": "b.jpg"}), files=("a.jpg", "b.jpg")
    )
    dataset, left_out = read(path, classes=["spike"])
    assert kept(dataset)["b.jpg"] == []
    assert ("a.jpg" in kept(dataset)) == is_kept
    assert len(left_out) == 1 - is_kept


@pytest.mark.parametrize("kind", ["choices", "number"])
def test_a_box_of_another_kind_alone(tmp_path: Path, kind: str) -> None:
    """An image whose only region has a box, a label and the wrong kind is not empty."""
    path = tasks(tmp_path / "in", task({"image": "a.jpg"}, region(type=kind)), files=("a.jpg",))
    dataset, left_out = read(path, classes=["spike"])
    assert (kept(dataset), list(left_out)) == ({}, ["task 1: a.jpg"])


def test_regions_of_several_sizes(tmp_path: Path) -> None:
    """Regions that were drawn on images of several sizes are not all this image's."""
    sizes: list[dict[str, Any]] = [
        {"original_width": 64, "original_height": 48},
        {"original_width": 48, "original_height": 64},
    ]
    for number, (one, other) in enumerate([sizes, sizes[::-1]]):
        path = tasks(tmp_path / str(number), task({"image": "a.jpg"}, region(**one), region(**other)), files=("a.jpg",))
        dataset, left_out = read(path, classes=["spike"])
        assert (kept(dataset), list(left_out)) == ({}, ["task 1: a.jpg"])


def test_a_kind_that_is_not_known(tmp_path: Path) -> None:
    """A region of such a kind is no "nothing", also where no other region tells the name of the image's tag."""
    one = region(to_name="page", type="newlabels")
    listed = task({"image": "a.jpg"}, region(to_name="image")), task({"image": "b.jpg"}, one)
    dataset, left_out = read(tasks(tmp_path / "in", *listed, files=("a.jpg", "b.jpg")))
    assert list(kept(dataset)) == ["a.jpg"]
    assert left_out == {"task 2: b.jpg": "an object that has no box"}


@pytest.mark.parametrize("result", [None, {}, "[]"], ids=str)
def test_an_annotation_without_regions(tmp_path: Path, result: Any) -> None:
    """Only an empty list says that nothing is there."""
    both = task({"image": "a.jpg"}), {**task({"image": "b.jpg"}), "annotations": [{"id": 1, "result": result}]}
    dataset, left_out = read(tasks(tmp_path / "in", *both, files=("a.jpg", "b.jpg")), classes=["spike"])
    assert list(kept(dataset)) == ["a.jpg"]
    assert list(left_out) == ["task 2: b.jpg"]


@pytest.mark.parametrize("number", ["abc", None, [1], 1.5, HUGE, True], ids=str)
@pytest.mark.parametrize("whose", ["task", "annotation"])
def test_ids_of_other_tools(tmp_path: Path, whose: str, number: Any) -> None:
    """Ids that Label Studio does not write serve for messages only, and fail nowhere."""
    one = task({"image": "a.jpg"}, region(), updated_at="0001-01-01T00:00:00")
    (one if whose == "task" else one["annotations"][0])["id"] = number
    assert kept(load(tasks(tmp_path / "in", one, files=("a.jpg",)))) == {"a.jpg": WHOLE}


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("/data/local-files/?d=a/cat+dog.jpg", "cat+dog.jpg"),
        ("/data/local-files/?d=a/cat+dog.jpg", "cat dog.jpg"),
        ("/data/local-files/?d=a/cat%2Bdog.jpg", "cat+dog.jpg"),
        ("/data/local-files/?d=a/cat&dog.jpg", "cat&dog.jpg"),
        ("/data/upload/1/0123abcd-%E7%A9%82.jpg", "0123abcd-穂.jpg"),
        ("http://ａ／b/a.jpg", "a.jpg"),
        ("http://[x/a.jpg", "a.jpg"),
    ],
)
def test_addresses_written_by_hand(tmp_path: Path, uri: str, file: str) -> None:
    """An address is read as the server reads it; of one that is none its last part counts."""
    dataset, left_out = read(tasks(tmp_path / "in", task({"image": uri}, region()), files=(file,)))
    assert kept(dataset) == {name_of(uri): WHOLE}
    assert left_out == {}


def test_one_image_in_two_tasks(tmp_path: Path) -> None:
    """As in a project the later annotation counts, ground truth before all; the other is named."""
    rows = [
        task({"image": "a.jpg"}, updated_at="2026-01-02T00:00:00Z"),
        task({"image": "b.jpg"}, region(), updated_at="2026-01-01T00:00:00Z", ground_truth=True),
    ]
    path = tasks(tmp_path / "in", *rows, files=("a.jpg",))
    (tmp_path / "in" / "b.jpg").write_bytes(photograph(0))
    dataset, left_out = read(path)
    assert kept(dataset) == {"b.jpg": WHOLE}
    assert left_out == {"task 1: a.jpg": "the same image is there once more, which counts"}

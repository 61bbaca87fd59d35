"""YOLO folders as people and tools leave them: what is meant is read, what is in doubt is left out and named."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from annotated_images import photograph
from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.sources import load

BOX = "0 0.5 0.5 0.25 0.5\n"
PLACE = [24.0, 12.0, 40.0, 36.0]  # of BOX, in pixels of 64 x 48
YAML = "names: [spike, weed]\ntrain: images\n"


def made(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """A folder with these files; each .jpg, .png or so is a photograph of its own, whatever its text."""
    for number, (name, text) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            path.write_bytes(photograph(number))
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def read(folder: Path, **options: object) -> DataSet:
    return load(folder, allow_partial=True, **options)  # type: ignore[arg-type]


def boxes(dataset: DataSet) -> dict[str, list[list[float]]]:
    return {each.name: each.truth.boxes_xyxy.tolist() for each in dataset.examples}


def told(dataset: DataSet, *words: str) -> bool:
    """Whether one of the notes has all the words."""
    return any(all(word in sentence for word in words) for sentence in dataset.problems)


# --- where labels are


@pytest.mark.parametrize(
    ("image", "label"),
    [
        pytest.param("images/a.jpg", "labels/a.txt", id="plain"),
        pytest.param("images/train/a.jpg", "labels/a.txt", id="flat labels"),
        pytest.param("images/train2017/a.jpg", "labels/train2017/a.txt", id="a part with a year"),
        pytest.param("images/2026/field 3/a.jpg", "labels/2026/field 3/a.txt", id="nested"),
        pytest.param("images/2026/train/a.jpg", "labels/train/a.txt", id="less nested"),
        pytest.param("images/a.jpg", "images/a.txt", id="beside the image"),
        pytest.param("train/images/a.jpg", "train/labels/a.txt", id="parts first"),
        pytest.param("train/images/a.jpg", "labels/train/a.txt", id="mixed"),
        pytest.param("Images/a.jpg", "Labels/a.txt", id="capitals"),
        pytest.param("images/a.JPG", "labels/a.TXT", id="suffixes in capitals"),
        pytest.param("images/IMG_1.JPG", "labels/img_1.txt", id="a name in capitals"),
        pytest.param("images/a.b.jpg", "labels/a.b.txt", id="a point in the name"),
        pytest.param("images/a.jpg", "labels/a.jpg.txt", id="both suffixes"),
        pytest.param("images/がぎ.jpg", "labels/がぎ.txt", id="a name decomposed, as macOS has it"),
    ],
)
def test_a_label_file_is_found(tmp_path: Path, image: str, label: str) -> None:
    """In each layout in use an image gets its boxes."""
    dataset = read(made(tmp_path / "in", {"classes.txt": "spike", image: "", label: BOX}))
    assert list(boxes(dataset).values()) == [[PLACE]]
    assert dataset.problems == ()


def test_without_label_file(tmp_path: Path) -> None:
    """An empty text file says that nothing is there; no text file says nothing, and the image is left out."""
    folder = made(
        tmp_path / "in",
        {"data.yaml": YAML, "labels/a.txt": BOX, "labels/b.txt": " \n"} | {f"images/{name}.jpg": "" for name in "abcd"},
    )
    dataset = read(folder)
    assert boxes(dataset) == {"a.jpg": [PLACE], "b.jpg": []}
    assert told(dataset, "2 images left out", "no label file", "c.jpg", "d.jpg")
    with pytest.raises(DataSetError, match="allow-partial"):
        load(folder)


@pytest.mark.parametrize(
    ("files", "lost", "kept"),
    [
        pytest.param(("images/a.jpg", "images/a.png", "labels/a.txt"), "a.jpg a.png", "", id="two images of a name"),
        pytest.param(("images/train/a.jpg", "images/val/a.jpg", "labels/a.txt"), "a.jpg", "", id="of two parts"),
        pytest.param(
            ("images/train/a.jpg", "images/val/a.jpg", "labels/a.txt", "labels/train/a.txt"),
            "a.jpg",
            "a.jpg",
            id="one of which has its own",
        ),
        pytest.param(("images/train/a.jpg", "labels/val/a.txt"), "a.jpg", "", id="of another part"),
        pytest.param(("images/a.jpg", "runs/predict/labels/a.txt"), "a.jpg", "", id="what a model said"),
        pytest.param(("images/a.jpg", "labels/0a1b2c3d-a.txt", "labels/0a1b2c3e-a.txt"), "a.jpg", "", id="two uploads"),
        pytest.param(("images/0a1b2c3d-a.jpg", "labels/0a1b2c3e-a.txt"), "a.jpg", "", id="of another upload"),
    ],
)
def test_a_label_file_of_whom(tmp_path: Path, files: tuple[str, ...], lost: str, kept: str) -> None:
    """A label file that may be another image's is nobody's: the images are named and left out."""
    sure = {"images/sure.jpg": "", "labels/sure.txt": BOX, "classes.txt": "spike"}
    dataset = read(made(tmp_path / "in", sure | dict.fromkeys(files, BOX)))
    assert boxes(dataset) == {"sure.jpg": [PLACE]} | ({kept: [PLACE]} if kept else {})
    assert all(told(dataset, "left out", name) for name in lost.split())


@pytest.mark.parametrize(
    ("image", "first", "second"),
    [
        pytest.param("images/1.jpg", "labels/1.txt", "images/1.txt", id="beside the image"),
        pytest.param("images/1.jpg", "labels/1.txt", "labels/1.TXT", id="suffixes"),
        pytest.param("images/train/1.jpg", "labels/train/1.txt", "labels/1.txt", id="flat"),
        pytest.param("images/a.jpg", "labels/a.txt", "labels/a.jpg.txt", id="both suffixes"),
        pytest.param("images/a b.jpg", "labels/a b.txt", "labels/a%20b.txt", id="encoded"),
        pytest.param("images/が.jpg", "labels/が.txt", "labels/か\u3099.txt", id="decomposed"),
        pytest.param("images/a.jpg", "labels/a.txt", "labels/0a1b2c3d-a.txt", id="an upload"),
    ],
)
def test_two_label_files_that_fit(tmp_path: Path, image: str, first: str, second: str) -> None:
    """Where they say something else the image is in doubt, whichever is empty; where they say the same it is not."""
    sure = {"images/sure.jpg": "", "labels/sure.txt": BOX, "classes.txt": "spike", image: ""}
    for number, texts in enumerate((("", BOX), (BOX, ""), (BOX, BOX))):
        folder = made(tmp_path / str(number), sure | dict(zip((first, second), texts, strict=True)))
        if (folder / first).samefile(folder / second):
            pytest.skip("one name on this disk")
        dataset = read(folder)
        assert len(boxes(dataset)) == (2 if number == 2 else 1)
        assert told(dataset, "left out", "or several", Path(image).name) == (number != 2)


def test_labels_of_nobody(tmp_path: Path) -> None:
    """Label files that meet no image are told; lists, licences and captions are not taken for such."""
    files = {
        "images/a.jpg": "",
        "labels/a.txt": BOX,
        "labels/gone.txt": BOX,
        "README.txt": "My field",
        "classes.txt": "s",
    }
    dataset = read(made(tmp_path / "in", files))
    assert told(dataset, "1 label files belong to no image", "gone.txt")
    assert "README" not in str(dataset.problems)


@pytest.mark.parametrize("way", ["relative", "absolute", "link"])
def test_below_a_folder_called_images(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the folders above the data set are called changes nothing."""
    files = {"data.yaml": "names: [spike]\ntrain: train\n", "train/a.jpg": "", "train/a.txt": BOX}
    folder = made(tmp_path / "images" / "field", files)
    monkeypatch.chdir(folder.parent)
    if way == "link":
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    place = {"relative": Path("field"), "absolute": folder, "link": tmp_path / "link"}[way]
    for data in (place, place / "data.yaml"):
        assert boxes(read(data)) == {"a.jpg": [PLACE]}


# --- as Label Studio exports it


@pytest.mark.parametrize(
    ("image", "label"),
    [
        pytest.param("8a924d18-plain.jpg", "8a924d18-plain.txt", id="found on its disk"),
        pytest.param("ad80b160-穂.jpg", f"4e716275__ad80b160-{quote('穂')}.txt", id="not found on its disk"),
        pytest.param("ad80b160-穂.jpg", f"ad80b160-{quote('穂')}.txt", id="without address of its own"),
        pytest.param("穂.jpg", f"4e716275__ad80b160-{quote('穂')}.txt", id="the photograph that was uploaded"),
        pytest.param("ad80b160-穂.jpg", "穂.txt", id="the upload of what was annotated elsewhere"),
        pytest.param("穂.jpg", f"4e716275__{quote('田/穂', safe='')}.txt", id="local files"),
        pytest.param("穂.jpg", f"4e716275__{quote('田' + chr(92) + '穂')}.txt", id="local files of Windows"),
        pytest.param("穂.jpg", "4e716275__穂.txt", id="bucket"),
        pytest.param("4e716275__ad80b160-%E7%A9%82.jpg", "4e716275__ad80b160-%E7%A9%82.txt", id="with images"),
    ],
)
def test_label_studios_names(tmp_path: Path, image: str, label: str) -> None:
    """An image is found under each name that Label Studio's export gives its label file."""
    files = {f"media/{image}": "", f"labels/{label}": BOX, "media/other.jpg": "", "labels/other.txt": ""}
    folder = made(tmp_path / "in", {"classes.txt": "spike", "notes.json": "{}", **files})
    dataset = read(folder, images=folder / "media")
    assert boxes(dataset) == {image: [PLACE], "other.jpg": []}
    assert dataset.problems == ()
    assert boxes(read(folder)) == boxes(dataset)


def test_label_studios_folders(tmp_path: Path) -> None:
    """A label file that tells the folder of its image is no other folder's, in images/ and below --images."""
    files = {"classes.txt": "spike", "labels/0000000a__cam2%2F1.txt": BOX, "labels/b.txt": BOX, "photos/b.jpg": ""}
    folder = made(tmp_path / "in", files | {"photos/cam1/1.jpg": ""})
    for options in ({}, {"images": folder / "photos"}):
        dataset = read(folder, **options)
        assert boxes(dataset) == {"b.jpg": [PLACE]}
        assert told(dataset, "no label file", "1.jpg")
    made(folder, {"labels/0000000a__cam1%2F1.txt": ""})
    assert boxes(read(folder)) == {"b.jpg": [PLACE], "1.jpg": []}


@pytest.mark.parametrize("host", ["http://127.0.0.1:1", ""])
def test_label_studios_export(tmp_path: Path, host: str) -> None:
    """What Label Studio's own converter writes of uploads, local files and buckets is read, image by image."""
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.converter.converter import Format

    uploads = made(tmp_path / "upload" / "1", {"8a924d18-plain.jpg": "", "ad80b160-穂.jpg": ""})
    local = "/data/local-files/?d="
    images = {f"/data/upload/1/{quote(path.name)}": path.name for path in uploads.iterdir()} | {
        local + quote("田/葉.jpg"): "葉.jpg",
        local + quote("田\\葉 2.jpg"): "葉 2.jpg",
        local + "a b.jpg": "a b.jpg",
        "s3://bucket/田/籾.jpg": "籾.jpg",
        "https://host/x/%E7%B1%BE2.jpg?key=3": "籾2.jpg",
    }
    value = {"x": 37.5, "y": 25, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["spike"]}
    item = {"from_name": "l", "to_name": "i", "type": "rectanglelabels", "value": value, "original_width": 64}
    item["original_height"] = 48
    person = {"id": 1, "email": "", "first_name": "", "last_name": ""}
    tasks = [
        {"id": number, "data": {"image": uri}, "annotations": [{"id": 1, "result": [item], "completed_by": person}]}
        for number, uri in enumerate(images)
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), "utf-8")
    config = (
        '<View><Image name="i" value="$image"/><RectangleLabels name="l" toName="i"><Label value="spike"/>'
        "</RectangleLabels></View>"
    )
    Converter(
        config,
        project_dir=None,
        upload_dir=str(tmp_path / "upload"),
        download_resources=False,
        access_token="token",
        hostname=host,
    ).convert(str(tmp_path / "tasks.json"), str(tmp_path / "out"), Format.YOLO, is_dir=False)
    photos = made(tmp_path / "photos", dict.fromkeys(images.values(), ""))
    dataset = load(tmp_path / "out", images=photos)
    assert boxes(dataset) == {name: [PLACE] for name in images.values()}
    assert dataset.problems == ()


def test_one_number_for_two_labels(tmp_path: Path) -> None:
    """Two labels of one category can't be told apart in a label file: its image is left out."""
    notes = {"categories": [{"id": 3}, {"id": 3}, {"id": 0}], "info": {"contributor": "Label Studio"}}
    files = {"classes.txt": "a\nb\nspike\n", "notes.json": json.dumps(notes), "images/a.jpg": "", "labels/a.txt": BOX}
    dataset = read(made(tmp_path / "in", files | {"images/b.jpg": "", "labels/b.txt": "3" + BOX[1:]}))
    assert boxes(dataset) == {"a.jpg": [PLACE]}
    assert dataset.classes[dataset.examples[0].truth.class_ids[0]] == "spike"
    assert told(dataset, "no name", "b.jpg")


def test_label_studios_numbers(tmp_path: Path) -> None:
    """Where labels have a category, notes.json tells the numbers of the lines; a name that was edited since stays."""
    notes = {"categories": [{"id": 5, "name": "w"}, {"id": 0, "name": "s"}], "info": {"contributor": "Label Studio"}}
    files = {"classes.txt": "weed\nspike\n", "notes.json": json.dumps(notes), "images/a.jpg": "", "labels/a.txt": BOX}
    dataset = read(made(tmp_path / "in", files | {"images/b.jpg": "", "labels/b.txt": "5" + BOX[1:]}))
    assert {each.name: dataset.classes[each.truth.class_ids[0]] for each in dataset.examples} == {
        "a.jpg": "spike",
        "b.jpg": "weed",
    }


# --- as CVAT exports it


def cvat(lines: str = "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n") -> dict[str, str]:
    return {
        "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        "obj.names": "spike\nweed\n",
        "train.txt": lines,
        "obj_train_data/a.txt": BOX,
        "obj_train_data/b.txt": "",
    }


def test_cvat(tmp_path: Path) -> None:
    """CVAT's YOLO 1.1 is read, with its images in it or elsewhere."""
    inside = made(tmp_path / "in", cvat() | {"obj_train_data/a.jpg": "", "obj_train_data/b.jpg": ""})
    assert boxes(read(inside)) == {"a.jpg": [PLACE], "b.jpg": []}
    assert read(inside).classes == ("spike", "weed")
    assert read(inside).problems == ()
    bare = made(tmp_path / "bare", cvat())
    with pytest.raises(DataSetError):
        read(bare)
    photos = made(tmp_path / "photos", {"a.jpg": "", "b.jpg": ""})
    assert boxes(read(bare, images=photos)) == {"a.jpg": [PLACE], "b.jpg": []}


@pytest.mark.parametrize(
    "lines",
    [
        "images/a.jpg\nimages/b.jpg",
        "./images/a.jpg\r\n\r\n./images/b.jpg\r\n",
        "C:\\Users\\me\\wheat\\images\\a.jpg\nC:\\Users\\me\\wheat\\images\\b.jpg",
        "\\\\nas\\wheat\\images\\a.jpg\n/mnt/wheat/images/b.jpg",
        "a.jpg\nimages/gone.jpg\nb.jpg",
    ],
)
def test_lists_of_images(tmp_path: Path, lines: str) -> None:
    """A list's paths may be another machine's; what it names in vain is left out and named."""
    files = {f"sub/images/{name}.jpg": "" for name in "abc"} | {"sub/labels/a.txt": BOX, "sub/labels/b.txt": ""}
    if lines.startswith("a.jpg"):
        lines = lines.replace("a.jpg", "images/a.jpg").replace("b.jpg", "images/b.jpg")
    yaml = "names: [spike]\ntrain: sub/train.txt\n"
    dataset = read(made(tmp_path / "in", files | {"data.yaml": yaml, "sub/train.txt": lines}))
    assert boxes(dataset) == {"a.jpg": [PLACE], "b.jpg": []}
    assert told(dataset, "left out", "gone.jpg") == ("gone" in lines)


# --- what data.yaml says


def test_another_yaml_decides_nothing(tmp_path: Path) -> None:
    """Of several yaml files the one that names classes and images counts, whatever they are called."""
    files = {"images/a.jpg": "", "labels/a.txt": BOX, "args.yaml": "task: detect\ntrain: true\nval: true\n"}
    others = {"broken.yaml": "{", "names.yaml": "names: [x]", "wheat.yaml": YAML}
    folder = made(tmp_path / "in", files | others)
    assert read(folder).classes == ("spike", "weed")
    made(folder, {"corn.yaml": YAML})
    with pytest.raises(DataSetError, match="several data sets") as caught:
        read(folder)
    assert "corn.yaml, wheat.yaml" in str(caught.value)
    made(folder, {"data.yml": "names: [corn]\n"})
    assert read(folder).classes == ("corn",)
    assert told(read(folder), "1 files beside the data can't be read", "broken.yaml")


def test_a_damaged_description(tmp_path: Path) -> None:
    """Where data.yaml is damaged no other file's order of classes is taken."""
    files = {"images/a.jpg": "", "labels/a.txt": BOX, "other.yaml": YAML}
    with pytest.raises(DataSetError, match=r"data\.yaml"):
        read(made(tmp_path / "in", files | {"data.yaml": "names: [weed, spike]\ntrain: {"}))
    assert read(made(tmp_path / "bare", files | {"data.yaml": "train: images\n"})).classes == ("spike", "weed")


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ALIASES + "names: [*i]\ntrain: images\n", id="aliases"),
        pytest.param("names: " + "[" * 5000, id="nested"),
        pytest.param("names: [" + "x, " * 2**20 + "]", id="huge"),
        pytest.param('names: ["\\UFFFFFFFF"]', id="no letter"),
        pytest.param('names: ["\\ud800"]', id="half a letter"),
        pytest.param("names: !!timestamp x", id="a tag"),
        pytest.param("names: [[spike]]", id="a list in the list"),
        pytest.param("names: [null, ~, '']", id="blank names"),
        pytest.param("names: {spike: 0}", id="numbers and names exchanged"),
        pytest.param("names: {-1: spike}", id="a negative number"),
        pytest.param("names: {0: spike, 00: weed}", id="a number twice"),
        pytest.param("names: {0: spike, 0: weed}", id="a key twice"),
        pytest.param("names: [spike]\nnames: [weed]", id="names twice"),
        pytest.param(f"names: {{{'9' * 5000}: spike}}", id="a huge number"),
        pytest.param("names: {? [0] : spike}", id="a list as a number"),
        pytest.param("names: spike", id="a text"),
        pytest.param("names: 3", id="a number"),
        pytest.param("- names", id="a list"),
        pytest.param("names: [maïs]\n".encode("latin-1"), id="no UTF-8"),
    ],
)
def test_names_that_can_not_be_read(tmp_path: Path, text: str | bytes) -> None:
    """A yaml file that hides a bomb, or whose names are none, is an error that names it, at once."""
    folder = made(tmp_path / "in", {"data.yaml": text, "images/a.jpg": "", "labels/a.txt": BOX})
    with pytest.raises(DataSetError) as caught:
        read(folder)
    assert "data.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        pytest.param({"data.yaml": "names: {0: spike, 7: weed}"}, {0: "spike", 7: "weed"}, id="gaps"),
        pytest.param({"data.yaml": "names: {2: c, 0: a}"}, {0: "a", 2: "c"}, id="in any order"),
        pytest.param({"data.yaml": "names: [spike, null, weed]"}, {0: "spike", 2: "weed"}, id="null"),
        pytest.param({"data.yaml": "names: [no, 0x10, 1e3, 2026-01-01]"}, {0: "no", 1: "0x10", 2: "1e3"}, id="texts"),
        pytest.param(
            {"data.yaml": "names: lists/wheat.names", "lists/wheat.names": "a\nb"}, {0: "a", 1: "b"}, id="file"
        ),
        pytest.param({"classes.txt": "apple\n\npear\n"}, {0: "apple", 2: "pear"}, id="a blank line"),
        pytest.param({"classes.txt": "穂\n葉\n".encode("cp932")}, {0: "穂", 1: "葉"}, id="Shift-JIS"),
        pytest.param({"images/classes.txt": "小麦　穂\n"}, {0: "小麦　穂"}, id="beside the images"),
        pytest.param({"labels/classes.txt": "a\u2028b\nc"}, {0: "a\u2028b", 1: "c"}, id="beside the labels"),
    ],
)
def test_names_and_their_numbers(tmp_path: Path, files: dict[str, str | bytes], names: dict[int, str]) -> None:
    """A class keeps the number that its name stands at; an image with a number without a name is left out."""
    images = {f"images/{number}.jpg": "" for number in range(9)}
    labels = {f"labels/{number}.txt": f"{number}{BOX[1:]}" for number in range(9)}
    dataset = read(made(tmp_path / "in", files | images | labels))
    found = {int(each.name[0]): dataset.classes[each.truth.class_ids[0]] for each in dataset.examples}
    assert {number: name for number, name in found.items() if number in names} == names
    unnamed = [number for number in range(9) if number not in found]
    assert told(dataset, f"{len(unnamed)} images left out", "name", f"{unnamed[0]}.jpg")
    assert told(dataset, "Shift-JIS", "classes.txt") == (
        b"\x95" in str(files).encode("latin-1", "replace") or "\\x95" in str(files)
    )


PARTS = {
    "pics/train/a.jpg": "",
    "pics/train/a.txt": BOX,
    "pics/val/b.jpg": "",
    "pics/val/b.txt": "",
}


@pytest.mark.parametrize(
    ("train", "note"),
    [
        pytest.param("pics/train", "", id="relative"),
        pytest.param("./pics/train/", "", id="with a point"),
        pytest.param("../pics/train", "", id="moved"),
        pytest.param("[pics/train]", "", id="a list"),
        pytest.param("{root}/pics/train", "", id="absolute"),
        pytest.param("/home/someone/pics/train", "train: /home/someone", id="another machine's"),
        pytest.param("'C:\\data\\pics\\train'", "train: C:", id="Windows'"),
    ],
)
def test_where_a_part_is(tmp_path: Path, train: str, note: str) -> None:
    """A part is found where data.yaml says, or under the end of another machine's path, which is told."""
    folder = made(tmp_path / "in", PARTS)
    text = f"names: [spike]\ntrain: {train.format(root=folder)}\nval: pics/val\ntest: # not given\n"
    (folder / "data.yaml").write_text(text, "utf-8")
    dataset = read(folder)
    assert boxes(dataset) == {"a.jpg": [PLACE], "b.jpg": []}
    assert len(dataset.problems) == bool(note)
    assert not note or told(dataset, note)
    assert list(boxes(read(folder, split="train"))) == ["a.jpg"]
    assert list(boxes(read(folder, split="valid"))) == ["b.jpg"]


@pytest.mark.parametrize(
    "train", ["images/gone", "[pics/train, images/gone]", "/elsewhere/imgs", "{a: b}", "pics/empty"]
)
def test_a_part_that_is_not_there(tmp_path: Path, train: str) -> None:
    """A part that is described and not there is an error; with leave to go on it is told, and the rest is read."""
    folder = made(tmp_path / "in", {**PARTS, "data.yaml": f"names: [spike]\ntrain: {train}\nval: pics/val\ntest: t\n"})
    (folder / "pics" / "empty").mkdir()
    for options in ({}, {"split": "train"}):
        with pytest.raises(DataSetError) as caught:
            load(folder, **options)  # type: ignore[arg-type]
        assert "train: " in str(caught.value)
    dataset = load(folder, allow_partial=True)
    assert "b.jpg" in boxes(dataset)
    assert told(dataset, "train: ")
    assert list(boxes(load(folder, split="val"))) == ["b.jpg"]


def test_parts_of_the_same_images(tmp_path: Path) -> None:
    """Where two parts name the same images, either of them has them, and both together have each once."""
    yaml = "names: [spike]\ntrain: images\nval: images\n"
    folder = made(tmp_path / "in", {"data.yaml": yaml, "images/a.jpg": "", "labels/a.txt": BOX})
    for options in ({}, {"split": "train"}, {"split": "val"}):
        dataset = load(folder, **options)  # type: ignore[arg-type]
        assert boxes(dataset) == {"a.jpg": [PLACE]}
        assert dataset.problems == ()


def test_images_elsewhere(tmp_path: Path) -> None:
    """With --images the parts are looked for there; where none is, all of that folder is meant."""
    labels = {"labels/train/a.txt": BOX, "labels/val/b.txt": ""}
    folder = made(tmp_path / "in", {"data.yaml": "names: [spike]\ntrain: images/train\nval: images/val\n", **labels})
    with pytest.raises(DataSetError, match="there are no images"):
        load(folder)
    parted = made(tmp_path / "parted", {"images/train/a.jpg": "", "images/val/b.jpg": ""})
    assert boxes(load(folder, images=parted)) == {"a.jpg": [PLACE], "b.jpg": []}
    assert list(boxes(load(folder, images=parted / "images", split="train"))) == ["a.jpg"]
    flat = made(tmp_path / "flat", {"a.jpg": "", "b.jpg": ""})
    with pytest.raises(DataSetError, match="no images of val"):
        load(folder, images=flat, split="val")
    made(folder, {"labels/a.txt": BOX, "labels/b.txt": ""})
    assert boxes(load(folder, images=flat)) == {"a.jpg": [PLACE], "b.jpg": []}


def test_a_test_part_that_was_never_given_away(tmp_path: Path) -> None:
    """Where only test: leads nowhere the rest is read, and that is told."""
    yaml = "names: [spike]\ntrain: pics/train\nval: pics/val\ntest: images/test\n"
    dataset = load(made(tmp_path / "in", {**PARTS, "data.yaml": yaml}))
    assert len(boxes(dataset)) == 2
    assert told(dataset, "test: images/test")


def test_parts_that_nothing_describes(tmp_path: Path) -> None:
    """Without a description the folders tell the parts; what lies outside images/ is told."""
    files = {
        "images/train2017/a.jpg": "",
        "labels/train2017/a.txt": BOX,
        "images/val/b.jpg": "",
        "labels/val/b.txt": "",
    }
    folder = made(tmp_path / "in", {**files, "classes.txt": "spike", "images/c.jpg": "", "preview.jpg": ""})
    dataset = read(folder)
    assert len(boxes(dataset)) == 2
    assert told(dataset, "no label file", "c.jpg")
    assert told(dataset, "elsewhere", "preview.jpg")
    assert list(boxes(load(folder, split="train"))) == ["a.jpg"]
    with pytest.raises(DataSetError, match="no images of test"):
        load(folder, split="test")


# --- what a line says


@pytest.mark.parametrize(
    ("line", "place"),
    [
        pytest.param("0 0.5 0.5 0.25 0.5 0.9", PLACE, id="a score"),
        pytest.param("0.0 0.5 0.5 0.25 0.5", PLACE, id="a class with a point"),
        pytest.param("0\t.5  .5 .25 .5 \r", PLACE, id="tabs"),
        pytest.param("0 0.375 0.25 0.625 0.25 0.625 0.75 0.375 0.75", PLACE, id="a turned box"),
        pytest.param("0 0.5 0.5 1.002 1.002", [0, 0, 64, 48], id="rounded up"),
        pytest.param("0 0.5 0.5 -0.25 0.5", PLACE, id="a negative width"),
        pytest.param("0 32 24 16 24", "pixels", id="pixels"),
        pytest.param("0 0.5 0.5 1e400 0.5", "over 1", id="infinite"),
        pytest.param("0 0.5 0.5 0.25 0", "a pixel", id="no height"),
        pytest.param("0 nan 0.5 0.25 0.5", "no numbers", id="NaN"),
        pytest.param("0 -0.5 0.5 0.25 0.5", "outside", id="outside"),
        pytest.param("1 0.5 0.5 0.25 0.5", "no name", id="a class without a name"),
        pytest.param("-1 0.5 0.5 0.25 0.5", "no name", id="a negative class"),
        pytest.param("1e300 0.5 0.5 0.25 0.5", "no name", id="a huge class"),
        pytest.param("inf 0.5 0.5 0.25 0.5", "not understood", id="an infinite class"),
        pytest.param("spike 0.5 0.5 0.25 0.5", "not understood", id="a name"),
        pytest.param("0 0.5 0.5 0.25", "not understood", id="a number too few"),
        pytest.param("0,0.5,0.5,0.25,0.5", "not understood", id="commas"),
        pytest.param("\ud800", "not understood", id="unreadable"),
    ],
)
def test_lines(tmp_path: Path, line: str, place: list[float] | str) -> None:
    """One line in doubt leaves its image out, though the other lines are good."""
    good = "0 0.1 0.1 0.1 0.1\n"
    text = (good + line).encode("utf-8", "surrogatepass")
    folder = made(
        tmp_path / "in", {"data.yaml": "names: [spike]\ntrain: images", "images/a.jpg": "", "images/b.jpg": ""}
    )
    made(folder, {"labels/a.txt": text, "labels/b.txt": BOX})
    dataset = read(folder)
    if isinstance(place, str):
        assert list(boxes(dataset)) == ["b.jpg"]
        assert told(dataset, "1 image left out", place if line != "\ud800" else "can't be read", "a.jpg")
    else:
        assert boxes(dataset)["a.jpg"][1] == pytest.approx(place)


def test_key_points_are_no_outline(tmp_path: Path) -> None:
    """Where data.yaml says that key points follow, the first four numbers are the box."""
    yaml = "names: [spike]\nkpt_shape: [2, 2]\ntrain: images\n"
    labels = {"labels/a.txt": BOX.strip() + " 0.1 0.1 0.9 0.9\n"}
    assert boxes(read(made(tmp_path / "in", {"data.yaml": yaml, "images/a.jpg": "", **labels}))) == {"a.jpg": [PLACE]}


@pytest.mark.skipif(os.name == "nt", reason="links ask for a privilege there")
def test_links(tmp_path: Path) -> None:
    """Links are followed where they stay below the folder; no label and no image is read from elsewhere."""
    secret = made(tmp_path / "out", {"s.jpg": "", "s.txt": BOX, "more/t.jpg": ""})
    folder = made(
        tmp_path / "in", {"data.yaml": "names: [spike]\ntrain: images", "store/a.jpg": "", "labels/a.txt": BOX}
    )
    (folder / "images").mkdir()
    (folder / "images" / "stored").symlink_to(folder / "store", target_is_directory=True)
    (folder / "images" / "more").symlink_to(secret / "more", target_is_directory=True)
    (folder / "images" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "images" / "s.jpg").symlink_to(secret / "s.jpg")
    (folder / "labels" / "b.txt").symlink_to(secret / "s.txt")
    made(folder, {"images/b.jpg": ""})
    dataset = read(folder)
    assert boxes(dataset) == {"a.jpg": [PLACE]}
    assert told(dataset, "leads out", "s.jpg")
    assert told(dataset, "no label file", "b.jpg")
    assert told(dataset, "links that lead elsewhere", "more")

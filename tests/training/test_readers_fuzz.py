"""Spoilt copies of small data sets: readers fail with a sentence only, and no image vanishes or turns empty unseen."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotated_images import photograph
from spica.errors import SpicaError
from spica.training.dataset import DataSet
from spica.training.sources import load

STEMS = ("a", "b", "空")
FULL = ("a.jpg", "b.jpg")  # the third is empty
JUNK: tuple[Any, ...] = (
    *(None, True, False, [], [[]], {}, {"a": []}, "", "x", "\ud800", "/../\0", "%2e%2e/a", "http://[x", "ａ／b"),
    *(0, -1, 1.5, 10**400, float("nan"), float("inf"), -1e308, [1, 2, 3, 4], ["a", None], "99", "2026-99-99"),
)
SPOILT = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three photographs, and room for one data set beside them."""
    folder = tmp_path_factory.mktemp("spoilt")
    (folder / "in" / "images").mkdir(parents=True)
    for number, stem in enumerate(STEMS):
        (folder / "in" / "images" / f"{stem}.jpg").write_bytes(photograph(number))
    return folder / "in"


def read(folder: Path) -> tuple[DataSet, list[str]] | None:
    """What was read, and the names that were left out; None where it was refused with a sentence."""
    notes = folder.parent / "notes.txt"
    notes.unlink(missing_ok=True)
    try:
        dataset = load(folder, allow_partial=True, notes=notes)
    except SpicaError:
        return None
    return dataset, notes.read_text("utf-8").splitlines()


def emptied(dataset: DataSet) -> set[str]:
    """Images that had objects, and are true negatives now."""
    return {each.name for each in dataset.examples if not len(each.truth)} & set(FULL)


# --- JSON


def coco() -> dict[str, Any]:
    return {
        "images": [{"id": 101 + n, "file_name": f"{stem}.jpg", "width": 64} for n, stem in enumerate(STEMS)],
        "annotations": [
            {"id": n, "image_id": 101 + n // 2, "category_id": 7, "bbox": [8, 8 + 16 * (n % 2), 16, 12], "iscrowd": 0}
            for n in range(4)
        ],
        "categories": [{"id": 7, "name": "spike"}],
    }


def label_studio() -> list[dict[str, Any]]:
    value = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["spike"]}
    region = {
        "id": "r",
        "from_name": "l",
        "to_name": "i",
        "type": "rectanglelabels",
        "original_width": 64,
        "original_height": 48,
        "value": value,
    }
    return [
        {
            "id": n,
            "data": {"image": f"/data/upload/1/{stem}.jpg"},
            "annotations": [
                {
                    "id": n,
                    "was_cancelled": False,
                    "updated_at": "2026-01-01T00:00:00Z",
                    "result": [copy.deepcopy(region)] * 2 if f"{stem}.jpg" in FULL else [],
                }
            ],
        }
        for n, stem in enumerate(STEMS)
    ]


def places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a JSON, the outermost left out."""
    inside = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [place for key, each in inside for place in ((*path, key), *places(each, (*path, key)))]


def spoil(data: st.DataObject, body: Any, *, only_junk: bool) -> None:
    """Replace something by junk; or delete it, double it, or put it elsewhere."""
    *path, last = data.draw(st.sampled_from(places(body)))
    inside = body
    for key in path:
        inside = inside[key]
    how = "junk" if only_junk else data.draw(st.sampled_from(("junk", "delete", "double", "elsewhere")))
    if how == "junk":
        junk = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
        is_list_of_all = last in ("annotations", "result") and junk == []  # that says "nothing", and is believed
        inside[last] = None if is_list_of_all else junk
    elif how == "delete":
        del inside[last]
    elif how == "double" and isinstance(inside, list):
        inside.append(copy.deepcopy(inside[last]))
    else:
        other = data.draw(st.sampled_from(places(body)))
        value = body
        for key in other:
            value = value[key]
        inside[last] = copy.deepcopy(value)


@pytest.mark.parametrize("make", [coco, label_studio], ids=["COCO", "Label Studio"])
@SPOILT
@given(data=st.data())
def test_json(images: Path, make: Callable[[], Any], data: st.DataObject) -> None:
    """Every image of the file is read or named; one with objects is never empty where only junk was written."""
    body = make()
    only_junk = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 3))):
        if places(body):
            spoil(data, body, only_junk=only_junk)
    (images / "data.json").write_text(json.dumps(body), "utf-8")
    found = read(images)
    (images / "data.json").unlink()
    if found is None:
        return
    dataset, left_out = found
    listed = body["images"] if isinstance(body, dict) else body
    accounted = len(dataset.examples) + len(left_out)
    assert accounted == len(listed) if isinstance(body, dict) else accounted >= len(listed)
    assert not (only_junk and emptied(dataset)), dataset.problems


# --- text files

VOC_OBJECT = (
    "<object><name>spike</name><bndbox><xmin>9</xmin><ymin>{}</ymin><xmax>24</xmax><ymax>{}</ymax></bndbox></object>"
)
VOC = "<annotation><filename>{}</filename><size><width>64</width><height>48</height></size>{}</annotation>"


def voc(folder: Path) -> dict[Path, str]:
    objects = VOC_OBJECT.format(5, 20) + VOC_OBJECT.format(25, 40)
    return {folder / "Annotations" / f"{s}.xml": VOC.format(f"{s}.jpg", objects * (s != "空")) for s in STEMS}


def yolo(folder: Path) -> dict[Path, str]:
    lines = "0 0.5 0.3 0.2 0.2\n0 0.5 0.7 0.2 0.2\n"
    texts = {folder / "labels" / f"{s}.txt": lines * (s != "空") for s in STEMS}
    return {**texts, folder / "data.yaml": "names: [spike]\ntrain: images\n"}


@pytest.mark.parametrize("make", [voc, yolo], ids=["VOC", "YOLO"])
@SPOILT
@given(data=st.data())
def test_texts(images: Path, make: Callable[[Path], dict[Path, str]], data: st.DataObject) -> None:
    """Every image in the folder is read or named; one with objects is never empty where only numbers were spoilt."""
    files = {path: text.encode() for path, text in make(images).items()}
    only_numbers = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(files)))
        content = files[path]
        if only_numbers:
            spots = list(re.finditer(rb"\d[\d.]*", content))
            if spots:
                spot = data.draw(st.sampled_from(spots))
                junk = str(data.draw(st.sampled_from(JUNK))).encode("utf-8", "replace") or b"-"
                files[path] = content[: spot.start()] + re.sub(rb"[<>&\s]", b"_", junk) + content[spot.end() :]
            continue
        begin, end = sorted(data.draw(st.integers(0, len(content))) for _ in range(2))
        inserted = data.draw(
            st.sampled_from((b"", b"\xff\xfe", b"\x00", b"<", "穂".encode("cp932"), content[begin:end]))
        )
        how = data.draw(st.sampled_from(("cut", "insert", "delete", "rename")))
        if how == "cut":
            files[path] = content[:begin] + content[end:]
        elif how == "insert":
            files[path] = content[:begin] + inserted + content[begin:]
        elif len(files) > 1:
            del files[path]
            if how == "rename":
                files[path.with_name("x" + path.name)] = content
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    found = read(images)
    for place in {path.parent for path in files} - {images}:
        shutil.rmtree(place)
    (images / "data.yaml").unlink(missing_ok=True)
    if found is None:
        return
    dataset, left_out = found
    named = "\n".join(left_out)
    for stem in STEMS:
        assert stem in {Path(each.name).stem for each in dataset.examples} or re.search(
            rf"^x?{stem}\.", named, re.MULTILINE
        )
    assert len(dataset.examples) + len(left_out) >= len(STEMS)
    assert not (only_numbers and emptied(dataset)), dataset.problems

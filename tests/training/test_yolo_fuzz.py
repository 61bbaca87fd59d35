"""Whatever becomes of a YOLO folder, people get an answer, and no image of it is lost from sight."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotated_images import photograph
from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.annotated import IMAGE_SUFFIXES
from spica.training.sources import load

BOX = "0 0.5 0.5 0.25 0.5\n1 0.2 0.2 0.1 0.1\n"
YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: spike\n  1: 穂\n"
OBJ_DATA = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n"
LAYOUTS: dict[str, dict[str, str]] = {
    "Ultralytics": {
        "data.yaml": YAML,
        "labels/train/a.txt": BOX,
        "labels/train/b.txt": "",
        "labels/val/c.txt": BOX,
        "images/train/a.jpg": "",
        "images/train/b.jpg": "",
        "images/val/c.jpg": "",
    },
    "Label Studio": {
        "classes.txt": "spike\n穂\n",
        "notes.json": '{"categories": [{"id": 0}, {"id": 1}], "info": {"contributor": "Label Studio"}}',
        "labels/0a1b2c3d-a.txt": BOX,
        "labels/4e716275__ad80b160-%E7%A9%82.txt": BOX,
        "images/0a1b2c3d-a.jpg": "",
        "images/ad80b160-穂.jpg": "",
    },
    "CVAT": {
        "obj.data": OBJ_DATA,
        "obj.names": "spike\nweed\n",
        "train.txt": "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n",
        "obj_train_data/a.txt": BOX,
        "obj_train_data/b.txt": BOX,
        "obj_train_data/a.jpg": "",
        "obj_train_data/b.jpg": "",
    },
}
WORDS: tuple[str, ...] = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "1e300",
    "640",
    "9" * 400,
    "null",
    "true",
    "~",
    "[]",
    "{}",
    "[[",
    ":",
    "-",
    "*a",
)
WORDS += ("&a", "!!x", "<<:", "..", "../..", "/", "C:\\", "%", "%zz", "穂", "", "\0", "\x85", "\ufeff", "\ud800")
DESCRIPTIONS = ("data.yaml", "obj.data", "train.txt")


def changed(text: bytes, random: random.Random) -> bytes:
    """A text with something put in, taken out, cut off or written in another encoding."""
    words = text.split(b" ")
    at = random.randrange(len(words))
    word = random.choice(WORDS).encode("utf-8", "surrogatepass")
    cut = random.randrange(len(text) + 1)
    way = random.randrange(8)
    if way == 0:
        words[at] = word
        return b" ".join(words)
    if way == 1:
        return text[:cut] + word + text[cut:]
    if way == 2:
        return text[:cut]
    if way == 3:
        return text[:cut] + random.randbytes(random.randrange(6)) + text[cut:]
    if way == 4:
        return text.decode("utf-8", "replace").encode(random.choice(("cp932", "gbk", "utf-16", "utf-16-le")), "replace")
    if way == 5:
        return text[:cut] + b"\n" + text[cut:]
    return text.replace(b"\n", b"\r") if way == 6 else text + text


def moved(name: str, random: random.Random) -> str:
    """Another place or name for a file."""
    folder, _, last = name.rpartition("/")
    stem, _, suffix = last.rpartition(".")
    ways: tuple[Callable[[], str], ...] = (
        lambda: f"{folder}/{stem}.{suffix.upper()}",
        lambda: f"{folder}/{stem.upper()}.{suffix}",
        lambda: f"{folder}/sub/{last}",
        lambda: f"{folder}/0a1b2c3d-{last}",
        lambda: f"{folder}/{last}.txt",
        lambda: f"{folder}/x.{suffix}",
        lambda: f"{folder}/{stem}.png",
        lambda: last,
    )
    return random.choice(ways)().lstrip("/")


def made(folder: Path, layout: str) -> Path:
    """A good folder of a layout."""
    for number, (name, text) in enumerate(LAYOUTS[layout].items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(number, (32, 24)) if path.suffix == ".jpg" else text.encode())
    return folder


def harmed(folder: Path, random: random.Random, *, spared: tuple[str, ...] = ()) -> Path:
    """The folder, with one to four files changed, moved, copied, removed, or made folders."""
    for _time in range(random.randint(1, 4)):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in spared]
        path = random.choice(files or [folder / "none.txt"])
        other = folder / moved(path.relative_to(folder).as_posix(), random)
        way = random.randrange(6)
        with contextlib.suppress(OSError):  # two changes may be in each other's way
            if way <= 1:
                path.write_bytes(changed(path.read_bytes(), random))
            elif way == 2:
                path.unlink()
            elif way == 3:
                path.unlink()
                path.mkdir()
            else:
                other.parent.mkdir(parents=True, exist_ok=True)
                (shutil.move if way == 4 else shutil.copy)(path, other)
    return folder


def attempt(folder: Path, notes: Path, split: str | None = None) -> DataSet | None:
    try:
        return load(folder, allow_partial=True, notes=notes, split=split)
    except DataSetError as error:
        assert error.what  # noqa: PT017 - most errors here are right
        return None


BOUNDED = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_was_harmed(tmp_path: Path, layout: str) -> None:
    """The layouts that are harmed below are good ones."""
    folder = made(tmp_path, layout)
    dataset = load(folder)
    assert len(dataset.examples) == sum(name.endswith(".jpg") for name in LAYOUTS[layout])
    assert dataset.boxes >= 4


@BOUNDED
@given(layout=st.sampled_from(sorted(LAYOUTS)), random=st.randoms(), split=st.sampled_from((None, "train", "val")))
def test_an_answer_for_people(
    tmp_path_factory: pytest.TempPathFactory, layout: str, random: random.Random, split: str | None
) -> None:
    """A harmed folder gives a data set or an error for people."""
    folder = tmp_path_factory.mktemp("harmed")
    attempt(harmed(made(folder / "in", layout), random), folder / "notes.txt", split)


@BOUNDED
@given(layout=st.sampled_from(("Ultralytics", "Label Studio")), random=st.randoms())
def test_no_image_is_lost(tmp_path_factory: pytest.TempPathFactory, layout: str, random: random.Random) -> None:
    """Each image below images/ (or of all, if none is there) is in the data set, or left out and named."""
    folder = tmp_path_factory.mktemp("harmed")
    notes = folder / "notes.txt"
    data = harmed(made(folder / "in", layout), random, spared=DESCRIPTIONS)
    dataset = attempt(data, notes)
    if dataset is None:
        return
    named = [line.split("\t")[0] for line in notes.read_text("utf-8").splitlines()]
    images = [path for path in data.rglob("*") if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    there = [path for path in images if "images" in path.parts[len(data.parts) :]] or images
    assert len(dataset.examples) + len(named) == len(there)
    assert set(named) <= {path.name for path in there}
    assert {example.path for example in dataset.examples} <= set(there)

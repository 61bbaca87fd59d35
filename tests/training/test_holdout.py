"""The images that are never trained on."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_images import example, photograph
from project_keys import ONE, known
from spica.errors import DataSetError, StorageError
from spica.evaluation.truth import Truth
from spica.images import digest_of
from spica.locks import exclusive
from spica.training import holdout
from spica.training.dataset import DataSet, Example
from spica.training.holdout import Record, divide, path_of, read, split, target, write

TRUTH = Truth(np.zeros((0, 4), np.float32), np.zeros((0,), np.int64), 64, 48)


def image(number: int, name: str | None = None) -> Example:
    """An example whose path ends in its number; no file is behind it."""
    digest = digest_of(str(number).encode())
    return Example(Path(f"{number}"), digest, TRUTH, name or f"img{number:05}.jpg")


def hash_of(path: Path) -> int:
    """A perceptual hash that is far from that of any other number."""
    return random.Random(path.name).getrandbits(63)  # noqa: S311 - no secret


def sides_of(
    examples: Sequence[Example], frozen: Record | None = None, *, share: float = 0.2, minimum: int = 10
) -> tuple[set[str], set[str], Record]:
    """Digests of both sides, and the record."""
    dataset = DataSet(("spike",), tuple(examples))
    train, holdout, after = split(dataset, frozen or {}, share=share, minimum=minimum, fingerprint=hash_of)
    return {each.digest for each in train.examples}, {each.digest for each in holdout.examples}, after


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(0, 0), (1, 0), (2, 1), (3, 1), (10, 5), (19, 9), (20, 10), (50, 10), (52, 10), (53, 11), (100, 20)],
)
def test_target(count: int, wanted: int) -> None:
    """A fifth is held out, at least 10, and never more than half."""
    assert target(count, share=0.2, minimum=10) == wanted
    assert len(sides_of([image(number) for number in range(count)])[1]) == wanted


@settings(deadline=None)
@given(
    steps=st.lists(st.lists(st.integers(0, 120), max_size=40), min_size=1, max_size=5),
    share=st.floats(0.05, 0.6),
    minimum=st.integers(1, 12),
)
def test_growing(steps: list[list[int]], share: float, minimum: int) -> None:
    """However images come: sides are disjoint and complete, nobody changes sides, and the proportion is kept."""
    frozen: Record = {}
    present = set[int]()
    trained, held = set[str](), set[str]()
    for step in steps:
        present |= set(step)
        train, holdout, frozen = sides_of(
            [image(number) for number in sorted(present)], frozen, share=share, minimum=minimum
        )
        assert not train & holdout
        assert train | holdout == {image(number).digest for number in present}
        assert trained <= train
        assert held <= holdout
        trained, held = train, holdout
        assert len(holdout) == target(len(present), share=share, minimum=minimum)


@settings(deadline=None)
@given(names=st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40), seed=st.integers(0, 1000))
def test_what_is_alike_stays_together(names: list[tuple[int, bool]], seed: int) -> None:
    """Tiles of one photo, and near-duplicates, are on one side, whatever the order in which they are listed."""
    examples = [
        image(number, f"photo{photo}_{number}_0.jpg" if tile else None) for number, (photo, tile) in enumerate(names)
    ]

    def look(path: Path) -> int:
        photo, tile = names[int(path.name)]
        return hash_of(path if tile else Path(f"copies of {photo}"))

    def parts() -> list[set[str]]:
        dataset = DataSet(("spike",), tuple(examples))
        found = split(dataset, {}, share=0.2, minimum=2, fingerprint=look)[:2]
        assert {each.digest: each.group for each in found[1].examples}.keys() == {e.digest for e in found[1].examples}
        return [{each.digest for each in part.examples} for part in found]

    sets: dict[tuple[int, bool], set[str]] = {}
    for each, name in zip(examples, names, strict=True):
        sets.setdefault(name, set()).add(each.digest)
    shared = sum(tile for _, tile in names) > 0.8 * len(names)  # a stem that nearly all share tells nothing
    train, holdout = parts()
    random.Random(seed).shuffle(examples)  # noqa: S311 - no secret
    assert parts() == [train, holdout]
    if len(sets) == 1 or shared:
        return  # nothing could be held out otherwise
    assert all(same <= train or same <= holdout for same in sets.values())
    assert train
    assert holdout
    assert len(holdout) - target(len(examples), share=0.2, minimum=2) <= max(map(len, sets.values()))


@pytest.mark.parametrize(
    ("photos", "rounds", "held"),
    [(5, 10, 1), (20, 10, 4), (2, 5, 1)],
    ids=["200 tiles of 5 photos", "200 tiles of 20 photos", "two photos"],
)
def test_tiles_do_not_put_half_of_the_photos_away(photos: int, rounds: int, held: int) -> None:
    """A fifth of the photos is held out with all of its tiles, one at least, though 10 are wanted at first."""
    frozen: Record = {}
    for number in range(1, rounds + 1):
        tiles = [image(n, f"photo{n % photos}_{n // photos * 256}_0.jpg") for n in range(20 * number)]
        train, away, frozen = sides_of(tiles, frozen)
        assert len(away) == 20 * number * held // photos
        assert len(train) + len(away) == len(tiles)


def test_what_shows_the_same_is_one_group() -> None:
    """Of the held-out images, tiles of one photo and near-duplicates have one group, and others each their own."""
    tiles = [image(n, f"photo{n // 4}_{n % 4 * 256}_0.jpg") for n in range(40)]
    pairs = [image(n) for n in range(40, 80)]
    dataset = DataSet(("spike",), (*tiles, *pairs))
    held = split(dataset, {}, fingerprint=lambda path: _twins(int(path.name)))[1]
    groups: dict[str | None, set[int]] = {}
    for each in held.examples:
        groups.setdefault(each.group, set()).add(int(each.path.name))
    assert None not in groups
    assert all(len(same) == (4 if min(same) < 40 else 2) for same in groups.values()), groups
    assert len({n // 4 for n in range(40) if any(n in same for same in groups.values())}) > 1


def _twins(number: int) -> int:
    return hash_of(Path(str(number if number < 40 else number // 2 + 1000)))


def test_the_same_on_every_machine() -> None:
    """Which images are held out is decided by their bytes for good: another release must not draw others."""
    examples = [image(number) for number in range(20)]
    held = sides_of(examples)[1]
    assert [number for number, each in enumerate(examples) if each.digest in held] == [
        1,
        3,
        5,
        6,
        8,
        10,
        13,
        14,
        16,
        18,
    ]


def test_a_new_image_joins_those_it_is_like() -> None:
    """A tile of a held-out photo is held out, one of a trained photo is trained on; the old ones stay."""
    old = [image(number, f"photo{number}_0_0.jpg") for number in range(20)]
    train, holdout, frozen = sides_of(old)
    new = [image(100 + number, f"photo{number}_512_0.jpg") for number in range(20)]
    now_train, now_holdout, _ = sides_of([*old, *new], frozen)
    for before, after in zip(old, new, strict=True):
        assert (after.digest in now_holdout) == (before.digest in holdout)
    assert train <= now_train
    assert holdout <= now_holdout


def test_an_image_like_both_sides_is_set_aside() -> None:
    """What is like a trained and a held-out image is on neither side, now and later; those two stay where they were."""
    old = [image(number, f"photo{number}_0_0.jpg") for number in range(20)]
    train, holdout, frozen = sides_of(old)
    trained = next(each for each in old if each.digest in train)
    held = next(each for each in old if each.digest in holdout)
    bridge = image(200, trained.name.replace("_0_0", "_512_512"))

    def near(path: Path) -> int:
        return hash_of(held.path) ^ 0b111 if path == bridge.path else hash_of(path)

    dataset = DataSet(("spike",), (*old, bridge))
    now_train, now_holdout, after = split(dataset, frozen, fingerprint=near)
    assert {each.digest for each in now_train.examples} == train
    assert {each.digest for each in now_holdout.examples} == holdout
    assert any("set aside" in sentence for sentence in now_holdout.problems)
    again_train, again_holdout, _ = split(dataset, after, fingerprint=hash_of)
    assert bridge.digest not in {each.digest for each in (*again_train.examples, *again_holdout.examples)}


@pytest.mark.parametrize(("distance", "together"), [(8, True), (9, False)])
def test_near_duplicates(distance: int, together: bool) -> None:
    """Images at a distance of 8 bits are on one side, at 9 they are told apart."""
    pairs = [image(number) for number in range(400)]

    def paired(path: Path) -> int:
        number = int(path.name)
        bits = hash_of(Path(str(number // 2)))
        return bits ^ ((1 << distance) - 1) if number % 2 else bits

    _, holdout, _ = split(DataSet(("spike",), tuple(pairs)), {}, fingerprint=paired)
    held = {each.digest for each in holdout.examples}
    agree = [(one.digest in held) == (two.digest in held) for one, two in zip(pairs[::2], pairs[1::2], strict=True)]
    assert all(agree) == together


def test_all_alike() -> None:
    """Where all images are alike, some are held out none the less, and it is told."""
    examples = [image(number) for number in range(10)]
    _, holdout, _ = split(DataSet(("spike",), tuple(examples)), {}, fingerprint=lambda _: 7)
    assert len(holdout.examples) == 5
    assert any("not independent" in sentence for sentence in holdout.problems)


def test_a_name_that_all_share_says_nothing() -> None:
    """A stem that nearly all images share does not bind them together."""
    examples = [image(number, f"img_{number}_{number}.jpg") for number in range(50)]
    assert len(sides_of(examples)[1]) == 10


def test_real_copies_stay_together(tmp_path: Path) -> None:
    """A photograph and its copy at another quality and size are on one side, judged by their pixels alone."""
    import io

    from PIL import Image as PILImage

    examples = []
    for number in range(20):
        data = photograph(number, (160, 120))
        copy = io.BytesIO()
        PILImage.open(io.BytesIO(data)).resize((96, 72)).save(copy, "JPEG", quality=60)
        examples += [
            example(tmp_path, f"img{number:03}.jpg", data),
            example(tmp_path, f"copy{number:03}.jpg", copy.getvalue()),
        ]
    train, holdout, _ = split(DataSet(("spike",), tuple(examples)), {})
    held = {each.digest for each in holdout.examples}
    assert len(train.examples) == 30
    for one, two in zip(examples[::2], examples[1::2], strict=True):
        assert (one.digest in held) == (two.digest in held)


def test_written_and_read(tmp_path: Path) -> None:
    """The record comes back from disk as it was, also for a project without one."""
    path = path_of(tmp_path, known(7))
    assert read(path) == {}
    examples = [image(number, f"畑{number}_0_0.jpg" if number % 3 else None) for number in range(12)]
    frozen = sides_of(examples)[2]
    write(path, frozen)
    assert read(path) == frozen
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_dividing_keeps_the_record(tmp_path: Path) -> None:
    """What is decided is on the disk, and new images are added to it; with one side empty nothing is decided."""
    path = path_of(tmp_path, known(7))
    examples = [example(tmp_path, f"img{n:03}.jpg", photograph(n)) for n in range(12)]
    assert not divide(path, DataSet(("spike",), (examples[0],)), share=0.2, minimum=2)[1].examples
    assert read(path) == {}
    train, held = divide(path, DataSet(("spike",), tuple(examples[:6])), share=0.2, minimum=2)
    assert (len(train.examples), len(held.examples)) == (4, 2)
    before = read(path)
    assert {digest for digest, placed in before.items() if placed.side == "holdout"} == {
        e.digest for e in held.examples
    }
    divide(path, DataSet(("spike",), tuple(examples)), share=0.5, minimum=2)
    after = read(path)
    assert len(after) == 12
    assert {digest: after[digest] for digest in before} == before


def test_two_that_divide_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server and `spica train` that know different images both keep what they decide, each image on one side."""
    path = path_of(tmp_path, known(7))
    examples = [example(tmp_path, f"img{n:03}.jpg", photograph(n)) for n in range(24)]
    real, inside, most = holdout.split, [], []

    def slow(*arguments: Any, **options: Any) -> Any:
        inside.append(True)
        most.append(len(inside))
        time.sleep(0.1)
        try:
            return real(*arguments, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(holdout, "split", slow)
    parts = [DataSet(("spike",), tuple(examples[:16])), DataSet(("spike",), tuple(examples[8:]))]
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda part: divide(path, part, share=0.5, minimum=2), parts))
    assert most == [1, 1]
    sides = {digest: placed.side for digest, placed in read(path).items()}
    assert len(sides) == 24
    for train, held in done:
        assert {sides[each.digest] for each in train.examples} == {"train"}
        assert {sides[each.digest] for each in held.examples} == {"holdout"}


def test_a_record_that_somebody_extends_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time of waiting, a sentence says who is in the way."""
    path = path_of(tmp_path, known(7))
    monkeypatch.setattr(holdout, "_WAIT_S", 0.05)
    with exclusive(path.with_suffix(".lock"), "it", wait_s=0), pytest.raises(StorageError, match="held-out images"):
        divide(path, DataSet(("spike",), (image(1), image(2))), share=0.2, minimum=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "images": {}}',
        '{"format": 1}',
        '{"format": 1, "images": {"abc": {"side": "train"}}}',
        '{"format": 1, "images": {"%s": {"side": "both"}}}' % ("a" * 64),
        '{"format": 1, "images": {"%s": {"side": "train", "hash": "xyz"}}}' % ("a" * 64),
        '{"format": 1, "images": {"%s": {"side": "train", "stem": 3}}}' % ("a" * 64),
    ],
)
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    """A damaged record is refused and left as it is: other images are never drawn silently."""
    path = path_of(tmp_path, ONE)
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    with pytest.raises(DataSetError, match="damaged"):
        read(path)
    assert path.read_text("utf-8") == text


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    """What can't be written is an error that names the file."""
    (tmp_path / "holdout").write_text("a file", "utf-8")
    with pytest.raises(StorageError):
        write(path_of(tmp_path, ONE), {})


def test_classes_that_are_not_judged_are_told() -> None:
    """A class that no held-out image shows is named."""
    shown = replace(TRUTH, boxes_xyxy=np.ones((1, 4), np.float32), class_ids=np.zeros(1, np.int64))
    examples = tuple(replace(image(number), truth=shown) for number in range(6))
    _, holdout, _ = split(DataSet(("spike", "weed"), examples), {}, fingerprint=hash_of)
    assert [sentence for sentence in holdout.problems if '"weed"' in sentence]
    assert not [sentence for sentence in holdout.problems if '"spike"' in sentence]

"""The images that are never trained on, so that every version of a model can be judged by the same ones.

* The hold-out has a share of the annotated images, but at least a minimum, and never more than half of them: with few
  images (under twice the minimum) half is learned from and half is held out. It grows as the project grows.
* Which images it has is decided by their bytes alone (a salted hash gives the order), not by names, time or order.
* Near-duplicates and tiles of one photo (:mod:`spica.training.likeness`) stay together. Of photos that come in tiles no
  larger share is held out, whatever the minimum, but at least one: each takes its later tiles along.
* It is frozen: what was held out stays held out, what was trained on stays there. A new image joins the side of those
  it is like. One that is like images of both sides, and what is like it, is set aside: neither learned from nor judged
  by, because either would show a model what it is judged by.
* If all images are like each other, likeness is disregarded, since nothing could be held out otherwise (a problem).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from spica.errors import DataSetError
from spica.files import write_text
from spica.locks import exclusive
from spica.project import ProjectKey
from spica.training.dataset import DataSet
from spica.training.likeness import alike, clusters, fingerprint_of, stem_of, telling

Side = Literal["train", "holdout", "aside"]

_WAIT_S: Final = 600.0
"""For a record that somebody else extends: some thousand new photographs are read meanwhile."""

_FORMAT: Final = 1
_SALT: Final = "spica hold-out 1"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_HASH: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Decision:
    """On which side an image is, once and for all; its perceptual hash, and the stem of the photo it is a tile of."""

    side: Side
    fingerprint: int | None = None
    stem: str | None = None


Record = Mapping[str, Decision]
"""What was decided so far, by the digest of each image, also of images that are gone since."""


def path_of(data_dir: Path, project: ProjectKey) -> Path:
    """The file with a project's hold-out."""
    return data_dir / "holdout" / f"{project.stem}.json"


def target(count: int, *, share: float, minimum: int) -> int:
    """How many of ``count`` images are to be held out: ``share`` of them, at least ``minimum``, at most half."""
    return min(max(minimum, round(share * count)), count // 2)


def divide(path: Path, dataset: DataSet, *, share: float, minimum: int) -> tuple[DataSet, DataSet]:
    """Divide a project's images by its record, which is extended by the new ones before anything is trained.

    One process at a time: two that each knew another half of the images would put what is alike on both sides. With
    one side empty nothing is decided yet, and nothing written. ``share`` and ``minimum`` are those of :func:`split`.

    Raises:
        DataSetError: the record is damaged.
        StorageError: it can't be written, or somebody else has been extending it for ten minutes.
    """
    with exclusive(path.with_suffix(".lock"), "the record of a project's held-out images", wait_s=_WAIT_S):
        train, holdout, record = split(dataset, read(path), share=share, minimum=minimum)
        if train.examples and holdout.examples:
            write(path, record)
    return train, holdout


def split(
    dataset: DataSet,
    record: Record,
    *,
    share: float = 0.2,
    minimum: int = 10,
    fingerprint: Callable[[Path], int | None] = fingerprint_of,
) -> tuple[DataSet, DataSet, Record]:
    """Divide annotated images by the rules above.

    Args:
        dataset: all of them.
        record: what was decided before; empty for the first time.
        share: of the images, in (0, 1), ``holdout_share`` in the settings.
        minimum: number of images, ``holdout_min`` in the settings.
        fingerprint: gives the perceptual hash of an image file; called for each new image once.

    Returns:
        What to train on, what to judge by (its ``problems`` say what can't be judged by it, the ``group`` of its
        examples which of them show the same thing), both in the order of ``dataset``, and what is decided now
        (:func:`divide` keeps it).
    """
    new = {example.digest: example for example in dataset.examples if example.digest not in record}
    undecided = {
        digest: Decision("train", fingerprint(new[digest].path), stem_of(new[digest].name)) for digest in sorted(new)
    }
    everything = {**record, **undecided}
    stems = telling([image.stem for image in everything.values()])
    images = {
        digest: replace(image, stem=stem) for (digest, image), stem in zip(everything.items(), stems, strict=True)
    }
    sides = {digest: decision.side for digest, decision in record.items()}
    free: list[list[str]] = []
    for members, linked in _groups(images, sides):
        if not linked:
            free.append(members)
        else:
            side: Side = "aside" if len(linked) > 1 else next(iter(linked))
            sides.update(dict.fromkeys(members, side))
    present = {example.digest for example in dataset.examples}
    problems = _draw(free, sides, present, share, minimum, images)
    aside = sum(sides[digest] == "aside" for digest in present)
    if aside:
        problems.append(
            f"{aside} images are like trained and like held-out ones: set aside, neither learned nor judged by"
        )
    train, holdout = (
        tuple(example for example in dataset.examples if sides[example.digest] == side) for side in ("train", "holdout")
    )
    if not holdout:
        problems.append("no image is held out: new versions can't be judged; annotate more images")
    digests = list(images)
    leaders = dict(zip(digests, clusters(*_features(images)), strict=True))  # of all: two may be alike only by a third
    grouped = replace(
        dataset, examples=tuple(replace(example, group=digests[leaders[example.digest]]) for example in holdout)
    )
    problems += (
        f"no held-out image has an object of class {name}: new versions are not judged by it"
        for name in grouped.classes_without_objects()
    )
    decided = {digest: replace(image, side=sides[digest]) for digest, image in undecided.items()}
    return replace(dataset, examples=train), replace(grouped, problems=tuple(problems)), {**record, **decided}


def _groups(images: Record, sides: Mapping[str, Side]) -> list[tuple[list[str], set[Side]]]:
    """The images without a side by what they are like, each group with the sides of the others that it is like."""
    digests = list(images)
    undecided = {digest: image for digest, image in images.items() if digest not in sides}
    leaders = dict(zip(undecided, clusters(*_features(undecided)), strict=True))
    linked: dict[int, set[Side]] = defaultdict(set)
    for one, two in alike(*_features(images)):
        for here, there in ((digests[one], digests[two]), (digests[two], digests[one])):
            if here in leaders and there in sides and sides[there] != "aside":
                linked[leaders[here]].add(sides[there])
    members: dict[int, list[str]] = defaultdict(list)
    for digest, leader in leaders.items():
        members[leader].append(digest)
    return [(group, linked[leader]) for leader, group in members.items()]


def _features(images: Record) -> tuple[list[int | None], list[str | None]]:
    return [image.fingerprint for image in images.values()], [image.stem for image in images.values()]


def _draw(
    free: list[list[str]], sides: dict[str, Side], present: set[str], share: float, minimum: int, images: Record
) -> list[str]:
    """Put each group that is free to go anywhere on a side; what there is to say of it."""
    single = [digest for group in free for digest in group]
    held = sum(sides.get(digest) == "holdout" for digest in present)
    trained = sum(sides.get(digest) == "train" for digest in present)
    wanted = target(held + trained + len(single), share=share, minimum=minimum)
    offered = _offered(free, sides, present, share, images)
    taken = _choose(offered, wanted - held, may_take_all=trained > 0 or len(offered) < len(free))
    problems = []
    if held == 0 and not taken and wanted > 0 and single:
        taken = _choose([[digest] for digest in single], wanted, may_take_all=trained > 0)
        problems = ["all images are alike or tiles of one photo: the held-out ones are not independent of the others"]
    sides.update(dict.fromkeys(single, "train"))
    sides.update(dict.fromkeys(taken, "holdout"))
    return problems


def _offered(
    free: list[list[str]], sides: Mapping[str, Side], present: set[str], share: float, images: Record
) -> list[list[str]]:
    """The groups of which some may be held out: of photos that come in tiles no larger share, but one at least."""
    photos = {images[digest].stem for digest in present} - {None}
    held = {images[digest].stem for digest in present if sides.get(digest) == "holdout"} - {None}
    spare = max(1, round(share * len(photos))) - len(held)
    offered = []
    for group in sorted(free, key=_rank):
        in_tiles = any(images[digest].stem is not None for digest in group)
        if not in_tiles or spare > 0:
            offered.append(group)
        spare -= in_tiles
    return offered


def _choose(groups: list[list[str]], wanted: int, *, may_take_all: bool) -> list[str]:
    """Members of groups, whole, ``wanted`` of them or as near as whole groups come."""
    left = sum(map(len, groups))
    taken: list[str] = []
    passed: list[list[str]] = []
    for group in sorted(groups, key=_rank):
        if len(group) <= wanted - len(taken):  # never all of them: at most half of the images are wanted
            taken += group
            left -= len(group)
        else:
            passed.append(group)
    for group in sorted(passed, key=len):  # stable: of equal size, the first in order
        missing = wanted - len(taken)
        overshoot = len(group) - missing
        if missing > 0 and (overshoot < missing or not taken) and (may_take_all or left > len(group)):
            taken += group
            left -= len(group)
    return taken


def _rank(group: list[str]) -> str:
    """The order in which groups are drawn, by a salted hash of their images' digests."""
    return min(hashlib.sha256(f"{_SALT} {digest}".encode("ascii")).hexdigest() for digest in group)


# --- on disk


def read(path: Path) -> Record:
    """What was decided before; empty if there is no such file.

    Raises:
        DataSetError: the file is damaged or can't be read. It is never drawn anew by itself: figures of older versions
            would silently be compared on other images.
    """
    try:
        body = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)[:200]) from error
    images = body.get("images") if isinstance(body, dict) else None
    if not isinstance(images, dict) or body.get("format") != _FORMAT:
        raise _damaged(path, f"format {body.get('format')!r}" if isinstance(body, dict) else type(body).__name__)
    return {digest: _decision(digest, entry, path) for digest, entry in images.items()}


def write(path: Path, record: Record) -> None:
    """Put the file in place whole, or raise :class:`StorageError` and leave an older one as it was."""
    entries: dict[str, dict[str, str]] = {}
    for digest, decision in sorted(record.items()):
        entries[digest] = {"side": decision.side}
        if decision.stem is not None:
            entries[digest]["stem"] = decision.stem
        if decision.fingerprint is not None:
            entries[digest]["hash"] = f"{decision.fingerprint:016x}"
    write_text(path, json.dumps({"format": _FORMAT, "images": entries}, ensure_ascii=False, indent=0))


def _decision(digest: str, entry: Any, path: Path) -> Decision:
    if not _DIGEST.fullmatch(digest) or not isinstance(entry, dict):
        raise _damaged(path, f"an entry {digest[:80]!r}")
    side, fingerprint, stem = entry.get("side"), entry.get("hash"), entry.get("stem")
    if side not in ("train", "holdout", "aside") or not (stem is None or isinstance(stem, str)):
        raise _damaged(path, f"image {digest[:12]}… on side {side!r}")
    if fingerprint is not None and not (isinstance(fingerprint, str) and _HASH.fullmatch(fingerprint)):
        raise _damaged(path, f"image {digest[:12]}… with hash {fingerprint!r}"[:200])
    return Decision(side, None if fingerprint is None else int(fingerprint, 16), stem)


def _damaged(path: Path, got: str) -> DataSetError:
    return DataSetError(
        "the record of the held-out images is damaged",
        where=str(path),
        expected=f"JSON of format {_FORMAT}, with the side of each image",
        got=got,
        hint="put it back from a backup; if there is none, delete it: other images are then held out, and figures of "
        "older versions can't be compared any more",
    )

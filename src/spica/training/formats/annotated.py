"""What all formats share: one image as a format describes it, unchecked; the log of what was left out or corrected; and
how the files of images are found.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from spica.errors import ConfinementError, DataSetError, UsageError
from spica.labelstudio.paths import ConfinedFolder, printable

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".j2k", ".avif"}
)
"""Of files that :func:`spica.images.decode` may read."""

MAX_LEFT_OUT: Final = 0.1
"""A larger share of the images is left out only where the caller has said that it may be."""
_EXAMPLES: Final = 3
_LARGEST_SIDE: Final = 10**9


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One annotated image, unchecked.

    Attributes:
        labels: names of the objects' classes; "" where the format names one that it does not declare.
        boxes_xyxy: float64 (M, 4), in pixels, or in shares of width and height if ``relative``; may hold anything, NaN
            too.
        relative: whether the boxes are shares in [0, 1] of the upright image.
        rotations: float64 (M,), degrees clockwise around the box's left upper corner, or None for none.
        size: (width, height) that the format declares, 0 for a side that it does not; or None.
        is_upright: the boxes lie in the upright image even where ``size`` is that of the stored pixels.
        others: labels of objects that are no boxes, "" for one without: outlines, points, strokes. One of a class that
            is learned puts the image in doubt; so do all of them where there is no box, for it is no true negative.
        doubt: why the labels can't be relied on, as :meth:`ReadingLog.leave_out` takes it: the image is left out.
        rank: of two annotations of one image the one that ranks higher counts.
    """

    name: str
    labels: tuple[str, ...]
    boxes_xyxy: NDArray[np.float64]
    relative: bool = False
    rotations: NDArray[np.float64] | None = None
    size: tuple[int, int] | None = None
    is_upright: bool = False
    others: tuple[str, ...] = ()
    doubt: str | None = None
    rank: tuple[int, float] = (0, 0.0)
    task: int | None = None
    annotation: int | None = None
    updated: str | None = None


Annotations = tuple[tuple[str, ...], list[tuple[AnnotatedImage, Path]]]
"""What a format holds: names by class id, as it orders them, and the images with their files."""


class LeftOut(NamedTuple):
    """An image that gives no example, and why: a phrase such as "no label file".

    ``is_doubt`` is False where nothing is lost by it, as with a copy of another image.
    """

    image: str
    reason: str
    is_doubt: bool


@dataclass(slots=True)
class ReadingLog:
    """What was left out or corrected while data were read.

    Attributes:
        lacking: parts of the data that are described and not there, so that nobody knows how many images they have.
        corrected: images by what was corrected in them, a sentence with ``{n}`` where their number goes.
    """

    left_out: list[LeftOut] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    corrected: dict[str, Counter[str]] = field(default_factory=dict)

    def correct(self, sentence: str, image: str, count: int = 1) -> None:
        """Something was corrected, or passed over, ``count`` times in an image or another file."""
        if count:
            self.corrected.setdefault(sentence, Counter())[printable(image)] += count

    def leave_out(self, image: str, reason: str, *, is_doubt: bool = True) -> None:
        """An image gives no example; see :class:`LeftOut`. Images of one reason make one sentence."""
        self.left_out.append(LeftOut(printable(image), printable(reason), is_doubt))

    def sentences(self) -> tuple[str, ...]:
        """One for each kind, with three of its images: first what was left out, then what was corrected."""
        by_reason: dict[str, Counter[str]] = {}
        for image, reason, _ in self.left_out:
            by_reason.setdefault(reason, Counter())[image] += 1
        out = (
            f"{images.total()} image{'s' * (images.total() > 1)} left out: {reason} ({_examples(images)})"
            for reason, images in by_reason.items()
        )
        lacking = (f"a part is not there: {printable(part)}" for part in self.lacking)
        corrected = (f"{text.format(n=count.total())} ({_examples(count)})" for text, count in self.corrected.items())
        return (*out, *lacking, *corrected)

    def check(self, examples: int, *, where: str, allow_partial: bool, notes: Path | None) -> None:
        """Once all is read: write the notes, and refuse where more than a tenth of the images is in doubt.

        Args:
            examples: number of images that were not left out.
            where: the data.
            allow_partial: go on without those in doubt, however many they are.
            notes: a file to which a line is added for every image that was left out: its name, a tab, the reason.

        Raises:
            DataSetError: too many are left out, or a part is not there.
            UsageError: the notes can't be written.
        """
        if notes is not None:
            self._append_to(notes)
        if self.lacking and examples and not allow_partial:
            raise DataSetError(
                "a part of the data set is not there",
                where=where,
                got="; ".join(map(printable, self.lacking)),
                hint="correct where it is said to be, or go on without it with --allow-partial",
            )
        doubtful = sum(image.is_doubt for image in self.left_out)
        total = examples + doubtful
        if allow_partial or not examples or doubtful <= MAX_LEFT_OUT * total:
            return
        sentences = self.sentences()
        raise DataSetError(
            f"{doubtful} of {total} images would be left out, for their labels are in doubt",
            where=where,
            expected=f"at most {MAX_LEFT_OUT:.0%}",
            got="; ".join(sentences[:5]) + ("; …" if len(sentences) > 5 else ""),
            hint="correct what is named (--notes FILE lists every image), or go on without these with --allow-partial",
        )

    def _append_to(self, notes: Path) -> None:
        try:
            with notes.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{image}\t{reason}\n" for image, reason, _ in self.left_out)
        except OSError as error:
            raise UsageError("the notes can't be written", where=f"--notes {notes}", got=error.strerror) from error


def _examples(images: Iterable[str]) -> str:
    names = list(images)
    more = len(names) - _EXAMPLES
    return ", ".join(names[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


class ImageFinder:
    """Finds images by name below a few folders and nowhere else.

    Args:
        folders: in the order in which they are tried.
        given: tried before them, with its folder ``images``; last of all its sub-folders are searched for a name that
            only one image in them has.
        names: of all images of the data. Of those with one last part none is found by that alone.
    """

    def __init__(self, *folders: Path, given: Path | None = None, names: Iterable[str] = ()) -> None:
        self._given = given
        unique = dict.fromkeys((*(() if given is None else (given, given / "images")), *folders))
        self._folders = [ConfinedFolder(folder, setting="the folder of the images") for folder in unique]
        times = Counter(_steps(name)[-1] for name in dict.fromkeys(names))
        self.shared = {last for last, number in times.items() if number > 1}

    def find(self, name: str) -> Path | None:
        """The file of that name, or None.

        Its path, or the end of that with a folder at least, lies below one of the folders; or its last part lies
        directly in one of them, as it is or decoded; or the only file of that name further below is in a folder that is
        called like the one in ``name``.
        """
        steps = _steps(name)
        tried = [name, *("/".join(steps[begin:]) for begin in range(len(steps) - 1))]
        if len(steps) == 1 or steps[-1] not in self.shared:
            tried += [steps[-1], unquote(steps[-1])]  # Label Studio's exports write addresses
        for candidate in dict.fromkeys(tried):
            path = next((path for path in matches_below(candidate, self._folders) if path.is_file()), None)
            if path is not None:
                return path
        paths = [path for path in self._below.get(steps[-1], ()) if len(steps) == 1 or path.parent.name == steps[-2]]
        return paths[0] if len(paths) == 1 else None

    @cached_property
    def _below(self) -> dict[str, list[Path]]:
        by_name: dict[str, list[Path]] = {}
        for path in self._given.rglob("*") if self._given is not None else ():
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.is_symlink():
                by_name.setdefault(path.name, []).append(path)
        return by_name

    def require_some(self, missing: int, total: int, expected: str, data: Path) -> None:
        """Raise :class:`DataSetError` if all ``total`` images are missing."""
        if missing and missing == total:
            raise DataSetError(
                "none of the images is there",
                where=str(data),
                expected=f"{expected} in {', '.join(str(folder.root) for folder in self._folders)}",
                hint="give the folder of the images with --images",
            )


def matches_below(name: str, folders: Iterable[ConfinedFolder]) -> Iterator[Path]:
    """The files and folders of a name; what leads out of a folder is not there."""
    for folder in folders:
        with contextlib.suppress(ConfinementError):
            path = folder.find(name)
            if path is not None:
                yield path


def _steps(name: str) -> list[str]:
    """The parts of a path; a drive and steps that lead nowhere are none."""
    path = name.replace("\\", "/").rstrip("/")
    return [part for part in path.split("/") if part not in ("", ".") and part[1:] != ":"] or [name]


def boxes_array(boxes: list[list[float]]) -> NDArray[np.float64]:
    """float64 (M, 4), also of no boxes."""
    return np.array(boxes, np.float64).reshape(-1, 4)


def numbers(values: Iterable[Any]) -> list[float] | None:
    """As floats, infinite where they are too large for one; None if one of them is no number."""
    floats: list[float] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            floats.append(float(value))
        except OverflowError:
            floats.append(math.inf)
    return floats


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """A declared size in pixels, 0 for a side that is not declared; None where neither is."""
    declared = [(numbers((side,)) or [0.0])[0] for side in (width, height)]
    sides = [int(side) if 1 <= side < _LARGEST_SIDE else 0 for side in declared]
    return (sides[0], sides[1]) if any(sides) else None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataSetError: it can't be read, or has a key twice in one object.
    """
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data))
        body = json.loads(text, object_pairs_hook=_unique_keys)
        if "\\ud" in text or "\\uD" in text:  # half a letter, which no file takes
            body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise DataSetError("the file can't be read", where=str(path), expected="JSON in UTF-8", got=reason) from error
    return body


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {json.dumps(twice)[:40]} twice in one object")
    return body

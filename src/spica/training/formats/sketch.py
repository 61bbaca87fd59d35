"""One image as an outside format describes it, before anything is checked, and what a format has to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from spica.errors import ConfinementError
from spica.labelstudio.confinement import ConfinedFolder
from spica.training.cleaning import Tally
from spica.training.dataset import DataSet

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".j2k", ".avif"}
)
"""Of files that :func:`spica.images.decode` may read."""

_LARGEST: Final = 10**9


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """One annotated image, unchecked.

    Attributes:
        name: the file's own name, for people.
        labels: names of the objects' classes; "" where the format names one that it does not declare.
        boxes_xyxy: float64 (M, 4), in pixels, or in shares of width and height if ``relative``. Anything may stand in
            it, NaN too.
        relative: whether the boxes are shares in [0, 1] of the upright image.
        rotations: float64 (M,), degrees clockwise around the box's left upper corner, or None for none.
        size: (width, height) that the format declares, 0 for a side that it does not; or None.
        is_upright: the boxes lie in the upright image even where ``size`` is that of the stored pixels.
        others: labels of objects that are no boxes, "" for one without: outlines, points, strokes. One of a class that
            is learned puts the image in doubt; so do all of them where there is no box, for it is no true negative.
        doubt: why the labels can't be relied on, as :meth:`Found.leave_out` takes it: the image is left out.
        rank: of two annotations of one image the one that ranks higher counts.
        task: number of Label Studio's task.
        annotation: number of its annotation.
        updated: when that was last changed.
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


@dataclass(slots=True)
class Found:
    """What a format holds.

    Attributes:
        classes: names by class id, as the format orders them.
        images: sketches, and the files of their images.
        tally: what was mended, and the images that were left out.
    """

    classes: tuple[str, ...]
    images: list[tuple[Sketch, Path]]
    tally: Tally = field(default_factory=Tally)

    def leave_out(self, image: str, reason: str) -> None:
        """Leave an image out before it is a sketch; see :meth:`spica.training.cleaning.Tally.leave_out`."""
        self.tally.leave_out(image, reason)


class Reader(Protocol):
    """How one outside format is read."""

    name: str

    def read(self, data: Path, images: Path | None, split: str | None) -> Found:
        """What is at ``data``; images are looked for below ``images`` too.

        Raises:
            DataSetError: it is not of this format after all, or damaged.
        """


class Writer(Protocol):
    """How one outside format is written."""

    name: str
    image_folder: str

    def write(self, dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
        """Write the annotations into ``folder``, where :attr:`image_folder` holds the images under ``files``."""


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
        for each in dict.fromkeys(tried):
            for folder in self._folders:
                try:
                    found = folder.find(each)
                except ConfinementError:
                    continue
                if found is not None and found.is_file():
                    return found
        paths = [path for path in self._below.get(steps[-1], ()) if len(steps) == 1 or path.parent.name == steps[-2]]
        return paths[0] if len(paths) == 1 else None

    @cached_property
    def _below(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self._given.rglob("*") if self._given is not None else ():
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.is_symlink():
                found.setdefault(path.name, []).append(path)
        return found

    @property
    def shown(self) -> str:
        """The folders, for messages."""
        return ", ".join(str(folder.root) for folder in self._folders)


def _steps(name: str) -> list[str]:
    """The parts of a path, its last one last; a drive and steps that lead nowhere are none."""
    path = name.replace("\\", "/").rstrip("/")
    return [part for part in path.split("/") if part not in ("", ".") and part[1:] != ":"] or [name]


def no_boxes() -> NDArray[np.float64]:
    """float64 (0, 4)."""
    return np.zeros((0, 4), np.float64)


def numbers(values: Iterable[Any]) -> list[float] | None:
    """As floats, infinite where they are too large for one; None if one of them is no number."""
    found: list[float] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            found.append(float(value))
        except OverflowError:
            found.append(math.inf)
    return found


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """A declared size in pixels, 0 for a side that is not declared; None where neither is."""
    told = [(numbers((side,)) or [0.0])[0] for side in (width, height)]
    sides = [int(side) if 1 <= side < _LARGEST else 0 for side in told]
    return (sides[0], sides[1]) if any(sides) else None

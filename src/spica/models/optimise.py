"""Faster forms of a model version: int8 made with the user's photographs, and bf16, both checked against f32."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import spica
from spica.boxes import Detections
from spica.detectors.contract import Detector, Precision, input_size_of
from spica.detectors.exported import ARCHITECTURES as EXPORTED
from spica.detectors.openvino import Machine, OpenVINODetector
from spica.detectors.quantise import MAX_CALIBRATION_IMAGES, quantise
from spica.detectors.torch_gpu import gpu
from spica.detectors.weights import trained_size
from spica.errors import DataSetError, UsageError, WeightsError
from spica.evaluation.metrics import Metrics, evaluate
from spica.evaluation.truth import Truth
from spica.files import scratch, storage_error
from spica.models.card import Card, Variant, describe_files, read_card, record_variant
from spica.models.checks import Check, Run, detector_in, judge, readable, run_all, spread
from spica.models.load import computed_by
from spica.models.locks import writing
from spica.models.transfer import bring_in
from spica.models.version import ModelVersion
from spica.settings import Settings

logger = logging.getLogger(__name__)

MAX_CHECK_IMAGES: Final = 40
"""Without a truth, this many photographs are compared; with one, all that it describes."""

IMAGE_SUFFIXES: Final = (*(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),)

INT8: Final = "model-int8"
"""How the names of int8 graphs begin; their own digits follow, so that a new one never overwrites the one in use."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownImage:
    """A photograph, and what is in it, with the model's class ids."""

    path: Path
    truth: Truth


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ``metrics`` is None without a truth, ``check`` for f32 itself."""

    precision: Precision
    run: Run
    metrics: Metrics | None
    check: Check | None


@dataclass(frozen=True, slots=True)
class Report:
    """What came out.

    Attributes:
        version: with the card as it is now.
        rows: f32 first.
        calibrated: photographs that int8 was made with.
        checked: photographs that the answers were compared on.
        unseen: of these, how many int8 was not made with.
        installed: forms that ``auto`` may take from now on.
        refused: forms that did not pass, and were not accepted.
        notes: what was left out, a sentence each.
    """

    version: ModelVersion
    rows: tuple[Row, ...]
    calibrated: int
    checked: int
    unseen: int
    installed: tuple[Precision, ...]
    refused: tuple[Precision, ...]
    notes: tuple[str, ...]


def require_packages(architecture: str, *, truth: bool) -> None:
    """Raise before anything is computed if the int8 form can't be made, or can't be judged by a truth.

    Raises:
        UsageError: what computes COCO's metrics is not installed.
        WeightsError: NNCF is not installed.
    """
    if truth and importlib.util.find_spec("faster_coco_eval") is None:
        raise UsageError(
            "AP50 needs a package that is not installed",
            where="--truth",
            expected="faster-coco-eval",
            hint='pip install "spica[optimise]"',
        )
    if architecture not in EXPORTED and gpu() is None and importlib.util.find_spec("nncf") is None:
        raise WeightsError(
            "NNCF is needed to make an int8 form, and it is not installed",
            hint='pip install "spica[optimise]"; it is needed only to make an int8 form, never to serve one',
        )


def find_photographs(folder: Path) -> list[Path]:
    """The image files below a folder, sorted.

    Raises:
        DataSetError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise DataSetError(
            "there is no such folder of photographs",
            where=f"--images {folder}",
            expected="a folder with photographs of your own",
            got="a file" if folder.exists() else "nothing",
        )
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        others = sorted({path.suffix.lower() for path in folder.rglob("*") if path.is_file()})[:8]
        raise DataSetError(
            "there are no photographs in this folder",
            where=f"--images {folder}",
            expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}",
            got=f"files ending in {', '.join(others)}" if others else "an empty folder",
        )
    return images


def optimise(
    version: ModelVersion,
    photographs: Sequence[Path],
    settings: Settings,
    *,
    truth: Sequence[KnownImage] | None = None,
    accept_loss: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Make the int8 form, check it and bf16 against f32, and record in the version's card what passed.

    The int8 form is installed if it passed or its loss was accepted; else what was there before stays. A check of bf16
    is recorded whatever came out. Stopped at any moment, the version is as it was before or as it is after.

    Args:
        version: whole and checked.
        photographs: the user's own, at least one; int8 is made with some of them.
        settings: threads, threshold, limits.
        truth: with it AP50 decides, without it the agreement with f32.
        accept_loss: install what did not pass too, and write that down.
        progress: called with what is being done, in a few words.

    Raises:
        DataSetError: no photograph can be read.
        WeightsError: NNCF is missing or can't quantise the network, or the version can't be run.
        StorageError: the version's folder can't be written.
    """
    say = progress or (lambda _: None)
    version = _own_copy(version, settings.data_dir)
    here = computed_by(version)
    why_no_int8 = _why_no_int8(version, here)
    if why_no_int8 is not None and "bf16" not in here.has:
        raise WeightsError(
            "for this network there is nothing faster than f32 on this machine",
            where=str(version.folder),
            got=f"{here.processor}, which does not compute faster in bf16; {why_no_int8}",
        )
    calibration = readable(spread(photographs, MAX_CALIBRATION_IMAGES), max_pixels=settings.max_pixels)
    if not calibration:
        raise DataSetError("none of the photographs can be read", where=str(photographs[0].parent))
    checked, notes = _to_check(photographs, calibration, truth, settings)
    if why_no_int8 is not None:
        notes += (f"{why_no_int8}; only bf16 was checked",)
    with scratch(version.folder) as aside:
        made, int8 = {}, None if why_no_int8 is not None else aside / f"{INT8}.xml"
        if int8 is not None:
            graph = version.folder / version.card.graph
            made = quantise(
                graph, int8, calibration, max_pixels=settings.max_pixels, input_size=_input_size(version), progress=say
            )
            gone = made.pop("left_out", [])
            if gone:
                notes += (f"{len(gone)} photographs could no longer be read, the first: {gone[0]}",)
        checked = [path for path in checked if truth is not None or path.exists()]
        runs = _run(version, int8, checked, settings, say)
        rows = _rows(runs, version, truth, settings)
        passed: list[Precision] = []
        for row in rows:
            if row.check is None:
                continue
            with writing(settings.data_dir):  # or a form that somebody else records meanwhile would be lost
                if row.precision == "int8" and (row.check.passed or accept_loss):
                    _install(version, aside, row.check, accept_loss=accept_loss, measured={"calibration": made})
                elif row.precision == "bf16":
                    record_variant(version.folder, "bf16", row.check.as_variant(accept_loss=accept_loss, here=here))
            if row.check.passed or accept_loss:
                passed.append(row.precision)
    return Report(
        version=replace(version, card=read_card(version.folder)),
        rows=rows,
        calibrated=made.get("images", 0),
        checked=len(checked),
        unseen=len(set(checked) - set(calibration)),
        installed=tuple(passed),
        refused=tuple(row.precision for row in rows if row.check is not None and row.precision not in passed),
        notes=notes,
    )


def _own_copy(version: ModelVersion, data_dir: Path) -> ModelVersion:
    """The version; of one that came with Spica the copy in the store, since the installation is not written to."""
    installed = version.folder.resolve().is_relative_to(Path(spica.__file__).resolve().parent)
    return bring_in(version.folder, data_dir)[0] if installed else version


def _why_no_int8(version: ModelVersion, here: Machine) -> str | None:
    """Why no int8 form is made of a version on this machine; None if one is."""
    if version.card.architecture in EXPORTED:
        return f"no int8 form is made of networks of other exporters ({version.card.architecture})"
    if here.device == "cuda":
        return "int8 is not computed on a GPU (with CUDA_VISIBLE_DEVICES=-1 the form is made for the processor)"
    return None


def _input_size(version: ModelVersion) -> int:
    """Longer side in pixels to which the network shrinks an image, also where it was trained at another size."""
    return max(input_size_of(version.card.architecture), *(trained_size(version.source) or (0,)))


def _to_check(
    photographs: Sequence[Path], calibration: Sequence[Path], truth: Sequence[KnownImage] | None, settings: Settings
) -> tuple[list[Path], tuple[str, ...]]:
    """The photographs to compare on, and what must be said of them."""
    if truth is not None:
        return [known.path for known in truth], ()
    calibrated = set(calibration)
    others = readable(
        spread([path for path in photographs if path not in calibrated], MAX_CHECK_IMAGES),
        max_pixels=settings.max_pixels,
    )
    if len(others) >= len(calibration):
        return others, ()
    return [*others, *calibration], ("there are few photographs: int8 is checked on those it was made with, too",)


def _run(
    version: ModelVersion,
    int8: Path | None,
    checked: Sequence[Path],
    settings: Settings,
    say: Callable[[str], None],
) -> dict[Precision, Run]:
    say("loading the forms")
    detectors: dict[Precision, Detector] = {"f32": detector_in(version, "f32", threads=settings.threads)}
    if "bf16" in computed_by(version).has:
        detectors["bf16"] = detector_in(version, "bf16", threads=settings.threads)
    if int8 is not None:
        detectors["int8"] = OpenVINODetector(int8, version.classes, threads=settings.threads, precision="int8")

    return run_all(
        detectors,
        checked,
        max_pixels=settings.max_pixels,
        between=lambda done: say(f"comparing on photograph {min(done + 1, len(checked))} of {len(checked)}"),
    )


def _rows(
    runs: dict[Precision, Run], version: ModelVersion, truth: Sequence[KnownImage] | None, settings: Settings
) -> tuple[Row, ...]:
    truths = [known.truth for known in truth] if truth is not None else None
    checks = judge(runs, threshold=settings.threshold, truths=truths, classes=version.classes)

    def metrics(detections: list[Detections]) -> Metrics | None:
        return evaluate(truths, detections, version.classes) if truths is not None else None

    return tuple(
        Row(name, run, checks[name].metrics if name in checks else metrics(run.detections), checks.get(name))
        for name, run in runs.items()
    )


def _install(version: ModelVersion, aside: Path, check: Check, *, accept_loss: bool, measured: dict[str, Any]) -> Card:
    """Put the int8 graph into the version's folder, then name it in the card, then remove the one before."""
    made = (f"{INT8}.xml", f"{INT8}.bin")
    digits = Variant(True, files=describe_files(aside, made)).digits
    names = tuple(f"{INT8}-{digits}{Path(name).suffix}" for name in made)
    try:
        for name, final in zip(made, names, strict=True):
            (aside / name).replace(version.folder / final)
    except OSError as error:
        raise storage_error(error, version.folder) from error
    files = describe_files(version.folder, names)
    card = record_variant(
        version.folder,
        "int8",
        check.as_variant(accept_loss=accept_loss, graph=names[0], files=files, measured=measured),
    )
    for other in version.folder.glob(f"{INT8}-*"):
        if other.name not in names:
            with contextlib.suppress(OSError):  # Windows: a server that still runs it holds it open
                other.unlink()
    return card

"""Whether a faster arithmetic costs accuracy, on real photographs that the network has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spica.boxes import Detections
from spica.detectors.comparison import LEAST_BOXES, agreement
from spica.detectors.contract import Precision
from spica.detectors.openvino import machine
from spica.evaluation.bootstrap import difference, draws
from spica.evaluation.matching import match_all
from spica.evaluation.metrics import evaluate
from spica.evaluation.predict import image_file, predict
from spica.evaluation.truth import Truth
from spica.models.load import load_detector
from spica.models.serving import Serving
from spica.models.version import ModelVersion
from spica.training.sources import load

from .train_detector import CLASSES

FOLDERS = ("bccd", "pear")


@dataclass(frozen=True, slots=True)
class Photographs:
    """Photographs with what is in them, the classes of :mod:`benchmarks.train_detector`."""

    paths: tuple[Path, ...]
    truths: tuple[Truth, ...]

    @property
    def boxes(self) -> int:
        """Objects in all of them."""
        return sum(map(len, self.truths))


def photographs(data: Path, part: str, folders: Sequence[str] = FOLDERS) -> Photographs:
    """The ``train`` or ``valid`` part of the data sets below ``data``."""
    found = [load(data / folder / f"{part}.json", classes=CLASSES) for folder in folders]
    examples = [example for each in found for example in each.examples]
    return Photographs(tuple(each.path for each in examples), tuple(each.truth for each in examples))


def answers(
    version: ModelVersion, precision: Precision, seen: Photographs, *, say: Callable[[str], None]
) -> list[Detections]:
    """What a version finds in the photographs, computed in one arithmetic."""
    detector = load_detector(version, device="cpu", serving=Serving(precision=precision, why="measured"))
    (predictions,) = predict(
        [detector],
        [image_file(path, max_pixels=10**9) for path in seen.paths],
        between=lambda done: None if done % 20 else say(f"{precision}: photograph {done} of {len(seen.paths)}"),
    )
    return predictions.of_all()


def measure(version: ModelVersion, seen: Photographs, *, most: int, say: Callable[[str], None]) -> dict[str, object]:
    """AP and AP50 in each arithmetic that the version and this machine have, and the differences with an interval.

    Args:
        version: with its int8 form.
        seen: photographs that it was not trained on.
        most: only so many, spread over them; 0 for all.
        say: told what is being done.
    """
    if most:
        step = max(1, len(seen.paths) // most)
        seen = Photographs(seen.paths[::step], seen.truths[::step])
    ways: list[Precision] = [way for way in ("f32", "bf16", "int8") if way in machine().has]
    found = {
        way: answers(version, way, seen, say=say) for way in ways if way != "int8" or "int8" in version.card.precisions
    }
    matches = {way: match_all(seen.truths, each, len(CLASSES)) for way, each in found.items()}
    weights = draws(len(seen.paths), groups=[_group(path) for path in seen.paths])
    rows = []
    for way, each in found.items():
        metrics = evaluate(seen.truths, each, CLASSES)
        lost = difference(matches["f32"].ap, matches[way].ap, weights)
        rows.append(
            {
                "way": way,
                "ap": metrics.ap,
                "ap50": metrics.ap50,
                "per_class": {row.name: row.ap50 for row in metrics.per_class},
                "difference": lost.estimate,
                "low": lost.low,
                "high": lost.high,
                "shown": sum(int((answer.scores >= 0.6).sum()) for answer in each),
                "same": agreement(found["f32"], each, threshold=0.6, least=LEAST_BOXES).share,
            }
        )
    return {"rows": rows, "images": len(seen.paths), "boxes": seen.boxes, "id": version.id}


def _group(path: Path) -> str:
    """The photograph that a tile was cut from: tiles of one are no independent witnesses."""
    return path.stem.rpartition("_")[0] if path.parts[-3] == "pear" else path.stem

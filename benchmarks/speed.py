"""Speed and accuracy on this machine: the tutorial's way against Spica's, for each architecture.

``python -m benchmarks.speed`` from the root of the repository; ``--help`` tells how to run less of it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from spica.bench import server
from spica.bench.photographs import ARCHITECTURE, choose_photographs
from spica.bench.run import run
from spica.boxes import Detections
from spica.detectors.comparison import agreement
from spica.detectors.openvino import machine
from spica.errors import UsageError
from spica.evaluation.bootstrap import difference, draws
from spica.evaluation.matching import match_all
from spica.evaluation.metrics import evaluate
from spica.evaluation.predict import image_file, predict
from spica.models import store
from spica.models.load import load_detector
from spica.models.optimise import optimise
from spica.models.serving import Serving
from spica.models.version import ModelVersion
from spica.settings import Settings
from spica.training import loop
from spica.training.dataset import Example
from spica.training.recipe import Recipe
from spica.training.sources import load

from . import report
from .report import DATA, number, percent, say, table, write_untrained

LIGHTER = (
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_efficientnet_lite0_fpn",
)
CLASSES = ("RBC", "WBC", "Platelets", "pear")
"""Of both data sets together: one network for all."""
_CALIBRATION = 32
"""Photographs from which the int8 form's ranges are taken, of those that the network was trained on."""
_MANY = 16
"""Tasks in the larger request."""
_HTTP_ROUNDS = 5


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add = parser.add_argument
    report.add_options(parser, ("tutorial", "lighter", "http", "accuracy"))
    add("--architectures", nargs="+", choices=LIGHTER, default=list(LIGHTER), help="of the part lighter")
    add("--startups", type=int, default=3, help="starts of the real server, once an arithmetic; 0 leaves them out")
    add("--rounds", type=int, default=6, help="times that each photograph is computed by the tutorial's architecture")
    add("--lighter-rounds", type=int, default=3, help="the same for the others")
    add("--data", type=Path, default=DATA, help="folder with bccd/ and pear/, a COCO json each")
    add("--detector", type=Path, help="weights for the accuracy; else the light network is trained, half an hour")
    add("--epochs", type=int, default=0, help="of that training; 0 for the recipe's own")
    add("--most", type=int, default=0, help="judge accuracy on as many photographs; 0 for all")
    return parser.parse_args(arguments)


def prepared(weights: Path, settings: Settings) -> ModelVersion:
    """The version of weights in the settings' store."""
    return store.prepare(
        weights,
        data_dir=settings.data_dir,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
        progress=say,
    )


def with_int8(weights: Path, images: Sequence[Path], settings: Settings) -> ModelVersion:
    """The version with an int8 form, whatever the form is worth: measuring that is what a benchmark is for."""
    return optimise(prepared(weights, settings), list(images), settings, accept_loss=True, progress=say).version


def architecture(name: str, images: Sequence[Path], folder: Path, *, rounds: int, startups: int) -> dict[str, Any]:
    """Untrained weights: what they find means nothing, how fast they find it does."""
    weights = write_untrained(folder / f"{name}.pth", name)
    settings = Settings(data_dir=folder / name)
    with_int8(weights, images, settings)
    result = run(weights, images, settings, methods=None, rounds=rounds, startups=startups, say=say)
    return {"rows": [row.as_json() for row in result.rows], "notes": result.notes}


def lighter(chosen: argparse.Namespace, images: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The same for each of the other architectures."""
    measured = {}
    for name in chosen.architectures:
        say(name)
        startups = min(1, chosen.startups)
        measured[name] = architecture(name, images, folder, rounds=chosen.lighter_rounds, startups=startups)
    return measured


def http(images: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Seconds an image of ``/predict`` with one task and with sixteen, against the bare network, in turn, in f32."""
    measured = {}
    root = images[0].parent
    many = [images[index % len(images)] for index in range(_MANY)]
    for name in (ARCHITECTURE, "ssdlite320_mobilenet_v3_large"):
        weights = write_untrained(folder / f"http-{name}.pth", name)
        settings = Settings(data_dir=folder / f"http-{name}")
        version = prepared(weights, settings)
        detector = load_detector(version, device="cpu", serving=Serving())
        arguments = ["--weights", str(weights), "--data-dir", str(settings.data_dir), "--precision", "f32"]
        # nothing may be remembered, or the second round would not run the network
        with (
            server.server(root, arguments, {"SPICA_MEMORY_BYTES": "0"}) as running,
            httpx.Client(timeout=300, trust_env=False) as client,
        ):
            running.wait_healthy()
            ask = partial(server.ask, client, running.url, root=root, classes=len(version.classes))

            def bare(paths: Sequence[Path], detector: Any = detector) -> None:
                predict([detector], [image_file(path, max_pixels=10**9) for path in paths])[0].of_all()

            ask(list(images[:1]))
            bare(images[:1])
            times: dict[str, list[float]] = {"one": [], "bare": [], "many": [], "bare_many": []}
            for _ in range(_HTTP_ROUNDS):
                for image in images:
                    times["one"].append(timed(ask, [image]))
                    times["bare"].append(timed(bare, [image]))
                times["many"].append(timed(ask, many) / _MANY)
                times["bare_many"].append(timed(bare, many) / _MANY)
        measured[name] = times
    return measured


def timed(act: Callable[[list[Path]], Any], images: list[Path]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    act(images)
    return time.perf_counter() - began


def accuracy(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """AP and AP50 in each arithmetic on photographs that the network has not seen, and what is lost against f32."""
    if not (chosen.data / "bccd").is_dir():
        raise UsageError(
            "there are no photographs with boxes", where=f"--data {chosen.data}", expected="bccd/ and pear/"
        )
    train, valid = examples(chosen.data, "train"), examples(chosen.data, "valid")
    weights = chosen.detector or trained(chosen, folder)
    calibration = [example.path for example in train[:: max(1, len(train) // _CALIBRATION)]]
    version = with_int8(weights, calibration, Settings(data_dir=folder / "accuracy"))
    if chosen.most:
        valid = valid[:: max(1, len(valid) // chosen.most)]
    truths = [example.truth for example in valid]
    images = [image_file(example.path, max_pixels=10**9) for example in valid]
    detections: dict[str, list[Detections]] = {}
    for precision in machine().has:
        if precision in version.card.precisions:
            say(f"accuracy, {precision}")
            detector = load_detector(version, device="cpu", serving=Serving(precision=precision, why="measured"))
            detections[precision] = predict([detector], images)[0].of_all()
    matches = {precision: match_all(truths, boxes, len(CLASSES)) for precision, boxes in detections.items()}
    weights_of_draws = draws(len(valid), groups=[group(example.path) for example in valid])
    rows = {}
    for name, boxes in detections.items():
        metrics = evaluate(truths, boxes, CLASSES)
        lost = difference(matches["f32"].ap, matches[name].ap, weights_of_draws)
        rows[name] = {
            "ap": metrics.ap,
            "ap50": metrics.ap50,
            "per_class": {row.name: row.ap50 for row in metrics.per_class},
            "difference": [lost.estimate, lost.low, lost.high],
            "same": agreement(detections["f32"], boxes, threshold=0.6).share,
        }
    architecture_name = version.card.architecture
    return {"rows": rows, "images": len(valid), "boxes": sum(map(len, truths)), "architecture": architecture_name}


def examples(data: Path, part: str) -> list[Example]:
    """The ``train`` or ``valid`` part of both data sets."""
    return [example for name in ("bccd", "pear") for example in load_part(data / name / f"{part}.json").examples]


load_part = partial(load, classes=CLASSES)


def trained(chosen: argparse.Namespace, folder: Path) -> Path:
    """Weights of the light network, trained on both data sets with the product's own recipe."""
    both = replace(load_part(chosen.data / "bccd" / "train.json"), examples=tuple(examples(chosen.data, "train")))
    recipe = Recipe.for_data(len(both.examples), **({"epochs": chosen.epochs} if chosen.epochs else {}))
    return loop.train(both, None, folder / "training", recipe).weights


def group(path: Path) -> str:
    """The photograph that a tile was cut from: tiles of one are no independent witnesses."""
    return path.stem.rpartition("_")[0] if path.parts[-3] == "pear" else path.stem


def pair(ratios: Sequence[float] | None) -> str:
    """By medians and by shortest times."""
    return " / ".join(f"{ratio:.2f}" for ratio in ratios) if ratios else "–"


def _architecture(measured: Mapping[str, Any]) -> str:
    head: tuple[str, ...] = (
        "way",
        "s/image, median",
        "min",
        "× tutorial (median / min)",
        "× inference mode",
        "boxes",
        "same boxes",
    )
    head += ("score differs by, median", "largest side difference, px", "memory, MiB", "start to healthy, s")
    head += ("start to first boxes, s",)
    rows = [
        (
            row["way"],
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f}",
            pair(row["times_tutorial"]),
            pair(row["times_inference_mode"]),
            number(row["boxes"], "d"),
            percent(row["same_boxes"]),
            number(row["score_difference_median"], ".5f"),
            number(row["worst_side_px"], ".4f"),
            number(row["memory_bytes"] and row["memory_bytes"] / 2**20, ".0f"),
            number(row["start_to_healthy_s"] or row["start_to_loaded_s"]),
            number(row["start_to_first_boxes_s"]),
        )
        for row in measured["rows"]
    ]
    return table(head, rows) + "".join(f"\nNote: {note}.\n" for note in measured["notes"])


def _lighter(measured: Mapping[str, Any]) -> str:
    return "\n\n".join(f"### {name}\n\n{_architecture(part)}" for name, part in measured.items())


def _http(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    head = ("network", "bare, s/image", "1 task : bare, medians", "mins", "16 tasks : bare, medians", "mins")
    rows = [
        (
            name,
            f"{median(times['bare']):.3f}",
            *(
                f"{how(times[over]) / how(times[bare]):.3f}"
                for over, bare in (("one", "bare"), ("many", "bare_many"))
                for how in (median, min)
            ),
        )
        for name, times in measured.items()
    ]
    return "`/predict` against decoding and computing the same photographs in this process, in turn, f32, nothing " + (
        "remembered. Goal: ≤ 1.05.\n\n" + table(head, rows)
    )


def _accuracy(measured: Mapping[str, Any]) -> str:
    names = list(measured["rows"]["f32"]["per_class"])
    head: tuple[str, ...] = ("arithmetic", "AP", "AP50", *(f"AP50 {name}" for name in names))
    head += ("AP50 minus f32's, 95 % interval", "same boxes as f32")
    rows = [
        (
            precision,
            f"{row['ap']:.4f}",
            f"{row['ap50']:.4f}",
            *(number(row["per_class"][name], ".3f") for name in names),
            "{:+.4f} ({:+.4f} to {:+.4f})".format(*row["difference"]),
            percent(row["same"]),
        )
        for precision, row in measured["rows"].items()
    ]
    return (
        f"{measured['architecture']}, judged on {measured['images']} photographs of the validation parts of bccd and "
        f"pear with {measured['boxes']} boxes, which neither the training nor the int8 form has seen. The interval is "
        f"a paired bootstrap over photographs, tiles of one photograph together.\n\n{table(head, rows)}"
    )


def main() -> None:
    """Measure what the command line asks for, and write the report."""
    chosen = options()
    with tempfile.TemporaryDirectory(prefix="spica-speed-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        images = choose_photographs(None, folder / "photographs", most=4, max_pixels=10**9).paths
        tutorial = partial(architecture, ARCHITECTURE, images, folder, rounds=chosen.rounds, startups=chosen.startups)
        parts: dict[str, Callable[[], Any]] = {
            "tutorial": tutorial,
            "lighter": partial(lighter, chosen, images, folder),
            "http": partial(http, images, folder),
            "accuracy": partial(accuracy, chosen, folder),
        }
        measured = report.measure(chosen, {part: parts[part] for part in chosen.only})
    sections: dict[str, tuple[str, Callable[[Any], str]]] = {
        "tutorial": (f"{ARCHITECTURE}, from the file to the boxes", _architecture),
        "lighter": ("Other architectures", _lighter),
        "http": ("HTTP", _http),
        "accuracy": ("Accuracy on real photographs", _accuracy),
    }
    introduction = (
        "Conclusions are ratios of what was measured in turn in one run: four rendered photographs of 1024 x 1024, "
        "weights that have learned nothing but answer with many boxes. *Same boxes*: share of the boxes with a score "
        "of 0.6 or more, of the best 100, that overlap with one of torch's by half or more. Memory and starts are "
        "those of `spica serve` with a warm cache; of the tutorial's ways, of a script that loads the network."
    )
    report.publish(report.text("Speed, measured", introduction, measured, sections), chosen.results)


if __name__ == "__main__":
    main()

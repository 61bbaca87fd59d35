"""Train the demo's detector on rendered wheat, export it, measure what was exported, and write its model card.

    python scripts/train_demo_detector.py --out src/spica/demo/model

Everything comes from seeds: images for training, calibration and evaluation, none of them an image of the demo. On one
kind of machine and with one number of threads the result is the same each time. Needs the extra ``spica[train]``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.demo import field, model_folder, network
from spica.evaluation.matching import match
from spica.evaluation.metrics import evaluate
from spica.evaluation.truth import Truth
from spica.files import sha256_file, write_text

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 100_000, 200_000, 300_000
"""First seeds of the three sets, far from each other and from the demo's."""
SHOWN_THRESHOLD = 0.6
LIMITS = "Knows rendered wheat only, in pictures where an ear is about 20 to 110 pixels long; not for real fields."

Detect = Callable[[NDArray[np.uint8]], Detections]


def _render(seed: int, width: int, height: int) -> field.Field:
    return field.render_field(seed, width=width, height=height)


def render_all(first_seed: int, count: int, options: argparse.Namespace) -> list[field.Field]:
    """``count`` fields of the options' size, rendered by as many processes as there are threads."""
    started = time.monotonic()
    render = partial(_render, width=options.width, height=options.height)
    seeds = range(first_seed, first_seed + count)
    if options.threads == 1:
        fields = [render(seed) for seed in seeds]
    else:
        with ProcessPoolExecutor(options.threads, mp_context=get_context("spawn")) as pool:
            fields = list(pool.map(render, seeds, chunksize=4))
    print(f"rendered {count} fields from seed {first_seed} in {time.monotonic() - started:.0f} s", flush=True)
    return fields


def blank_fields(count: int, options: argparse.Namespace) -> list[field.Field]:
    """Images without plants: one colour, a gradient, noise. They teach that nothing is there."""
    rng = np.random.default_rng(options.seed)
    nothing = np.zeros((0, 4), np.float32)
    blanks = []
    for number in range(count):
        base = np.broadcast_to(rng.uniform(0, 255, 3), (options.height, options.width, 3))
        ramp = np.linspace(0, 1, options.width)[None, :, None] * rng.uniform(-200, 200, 3) * (number % 3 == 1)
        noise = rng.normal(0, rng.uniform(1, 60), base.shape) if number % 3 == 2 else 0.0
        blanks.append(field.Field(np.clip(base + ramp + noise, 0, 255).astype(np.uint8), nothing))
    return blanks


def augmented(sample: field.Field, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirrored at random, colours shifted: an image (3, H, W) in [0, 1] and its boxes (N, 4)."""
    pixels, boxes = sample.pixels, sample.boxes_xyxy.copy()
    height, width = pixels.shape[:2]
    if rng.random() < 0.5:
        pixels, boxes[:, [0, 2]] = pixels[:, ::-1], width - boxes[:, [2, 0]]
    if rng.random() < 0.5:
        pixels, boxes[:, [1, 3]] = pixels[::-1], height - boxes[:, [3, 1]]
    gain = (rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    image = np.clip(pixels.astype(np.float32) / 255 * gain, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(boxes)


def batches(
    fields: Sequence[field.Field], size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """All fields once in random order: images (B, 3, H, W) and the boxes of each."""
    order = rng.permutation(len(fields))
    for first in range(0, len(order), size):
        samples = [augmented(fields[k], rng) for k in order[first : first + size]]
        yield torch.stack([image for image, _ in samples]), [boxes for _, boxes in samples]


def train(fields: Sequence[field.Field], options: argparse.Namespace) -> tuple[network.EarNetwork, list[float]]:
    """A trained network and the mean loss of each epoch."""
    torch.manual_seed(options.seed)
    model = network.EarNetwork().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    steps = options.epochs * math.ceil(len(fields) / options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=max(steps, 2), pct_start=0.1
    )
    rng = np.random.default_rng(options.seed)
    losses = []
    for epoch in range(1, options.epochs + 1):
        started, seen = time.monotonic(), []
        for images, truths in batches(fields, options.batch, rng):
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                logits, boxes = model(images)
            centres = network.cell_centres(_like_cells(images))
            step_loss = network.loss(logits.float(), boxes.float(), truths, centres)
            optimiser.zero_grad()
            step_loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
            schedule.step()
            seen.append(step_loss.item())
        losses.append(float(np.mean(seen)))
        print(f"epoch {epoch}: loss {losses[-1]:.4f} in {time.monotonic() - started:.0f} s", flush=True)
    return model.eval(), losses


def _like_cells(images: torch.Tensor) -> torch.Tensor:
    """An empty tensor with the spatial shape of the network's cells for ``images`` (B, 3, H, W)."""
    height, width = (-(-side // network.STRIDE_PX) for side in images.shape[-2:])
    return torch.empty(1, 1, height, width)


def calibrated(model: network.EarNetwork, fields: Sequence[field.Field]) -> network.DemoDetector:
    """The detector whose score is the chance that a box is right (IoU >= 0.5): Platt's scaling on held-out fields."""
    raw = network.DemoDetector(model, floor=0.01).eval()
    detections = [_detect_with_torch(raw, one.pixels) for one in fields]
    pairs = zip(detections, fields, strict=True)
    hits = np.concatenate([match(answer, truth_of(one), iou=0.5) >= 0 for answer, one in pairs])
    if hits.all() or not hits.any():
        print("nothing to calibrate with: the raw scores stay", flush=True)
        return network.DemoDetector(model).eval()
    scores = np.concatenate([answer.scores for answer in detections])
    logits = torch.logit(torch.from_numpy(scores).double(), eps=1e-6)
    correct = torch.from_numpy(hits).double()
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def miss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(line[0] * logits + line[1], correct)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(miss)  # type: ignore[no-untyped-call]
    slope, intercept = (round(value, 4) for value in line.tolist())
    print(f"calibration: score = sigmoid({slope} * logit + {intercept})", flush=True)
    return network.DemoDetector(model, slope=slope, intercept=intercept).eval()


def _tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


def _detect_with_torch(detector: network.DemoDetector, pixels: NDArray[np.uint8]) -> Detections:
    with torch.inference_mode():
        boxes, labels, scores = detector(_tensor(pixels))
    return Detections(boxes.numpy(), scores.numpy(), labels.numpy() - 1)


def export(detector: network.DemoDetector, path: Path, example: NDArray[np.uint8]) -> None:
    """Write the graph as ONNX, height and width free, with what a reader must know in its metadata."""
    import onnx

    torch.onnx.export(
        detector,
        (_tensor(example),),
        str(path),
        input_names=["image"],
        output_names=["boxes", "labels", "scores"],
        dynamic_axes={"image": {1: "height", 2: "width"}, "boxes": {0: "n"}, "labels": {0: "n"}, "scores": {0: "n"}},
        opset_version=17,
        dynamo=False,  # the newer exporter can't express a number of boxes that depends on the image
    )
    graph = onnx.load(path)
    facts = {
        "spica.format": "1",
        "spica.classes": json.dumps(["spike"]),
        "spica.architecture": network.ARCHITECTURE,
    }
    onnx.helper.set_model_props(graph, facts)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def served(path: Path, threads: int) -> Detect:
    """The exported graph as it is served: by OpenVINO, in float32."""
    from spica.detectors.openvino import openvino_core

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino_core().compile_model(path, "CPU", settings)

    def detect(pixels: NDArray[np.uint8]) -> Detections:
        answer = compiled([_tensor(pixels).numpy()])
        return Detections(answer["boxes"], answer["scores"], answer["labels"] - 1)

    return detect


def compare(detector: network.DemoDetector, detect: Detect, fields: Sequence[field.Field]) -> None:
    """Raise unless the exported graph answers as torch does, to 0.05 px and 0.001 in score."""
    for number, one in enumerate(fields):
        expected, got = _detect_with_torch(detector, one.pixels), detect(one.pixels)
        if len(expected) != len(got):
            raise RuntimeError(f"field {number}: torch finds {len(expected)} boxes, the exported graph {len(got)}")
        np.testing.assert_allclose(got.boxes_xyxy, expected.boxes_xyxy, atol=0.05, rtol=0)
        np.testing.assert_allclose(got.scores, expected.scores, atol=1e-3, rtol=0)


def measure(detect: Detect, fields: Sequence[field.Field]) -> dict[str, float | int]:
    """The card's metrics: COCO's AP and AP50, and precision and recall at :data:`SHOWN_THRESHOLD`."""
    detections = [detect(one.pixels) for one in fields]
    truths = [truth_of(one) for one in fields]
    metrics = evaluate(truths, detections, ["spike"])
    shown = [one.where(one.scores >= SHOWN_THRESHOLD) for one in detections]
    correct = sum(int((match(one, truth, iou=0.5) >= 0).sum()) for one, truth in zip(shown, truths, strict=True))
    boxes = sum(map(len, truths))
    return {
        "AP50": round(metrics.ap50 or 0.0, 4),
        "AP": round(metrics.ap or 0.0, 4),
        "images": len(fields),
        "boxes": boxes,
        "threshold": SHOWN_THRESHOLD,
        "precision": round(correct / max(1, sum(map(len, shown))), 4),
        "recall": round(correct / max(1, boxes), 4),
    }


def truth_of(one: field.Field) -> Truth:
    """What is in a rendered field, class 0."""
    height, width = one.pixels.shape[:2]
    return Truth(one.boxes_xyxy, np.zeros(len(one.boxes_xyxy), np.int64), width, height)


def card(options: argparse.Namespace, model: Path, training: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """What ``model.json`` says."""
    return {
        "format": 1,
        "name": "spica-demo-wheat",
        "architecture": network.ARCHITECTURE,
        "classes": ["spike"],
        "input": "image: float32 (3, H, W), RGB in [0, 1], any size, one image a call; boxes come in its pixels",
        "score_floor": network.SCORE_FLOOR,
        "max_detections": network.MAX_DETECTIONS,
        "norm_eps": network.NORM_EPS,
        "created": datetime.now(UTC).date().isoformat(),
        "parent": None,
        "training": {
            "data": "rendered by spica.demo.field",
            "size": [options.width, options.height],
            "seeds": {
                name: [first, first + count - 1]
                for name, first, count in (
                    ("train", TRAIN_SEED, options.train_images),
                    ("calibration", VALIDATION_SEED, options.validation_images),
                    ("evaluation", TEST_SEED, options.test_images),
                )
            },
            "images": options.train_images,
            "epochs": options.epochs,
            "precision": "bfloat16" if options.bfloat16 else "float32",
            "script": "scripts/train_demo_detector.py",
            "backbone": {"origin": "trained from scratch, no foreign weights", "licence": "Apache-2.0"},
            **training,
        },
        "metrics": metrics,
        "files": {model.name: {"sha256": sha256_file(model), "bytes": model.stat().st_size}},
        "limits": LIMITS,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo's wheat detector on rendered fields.")
    parser.add_argument("--out", type=Path, default=model_folder(), help="folder for model.onnx and model.json")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--train-images", type=int, default=1000)
    parser.add_argument("--validation-images", type=int, default=100, help="for the calibration of scores")
    parser.add_argument("--test-images", type=int, default=100, help="for the card's metrics")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mixed precision: twice as fast where the processor has bfloat16, slower elsewhere",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the network's first weights and the order of images")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, calibrate, export, check, measure, write."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    fields = render_all(TRAIN_SEED, options.train_images, options)
    fields += blank_fields(max(1, options.train_images // 30), options)
    model, losses = train(fields, options)
    detector = calibrated(model, render_all(VALIDATION_SEED, options.validation_images, options))

    options.out.mkdir(parents=True, exist_ok=True)
    part = options.out / "model.onnx.part"
    export(detector, part, fields[0].pixels)
    path = part.replace(options.out / "model.onnx")
    detect = served(path, options.threads)
    tests = render_all(TEST_SEED, options.test_images, options)
    compare(detector, detect, tests[:8])
    metrics = measure(detect, tests)
    print(json.dumps(metrics), flush=True)
    training = {
        "losses": [round(value, 4) for value in losses],
        "calibration": {"slope": detector.slope, "intercept": detector.intercept},
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    write_text(options.out / "model.json", json.dumps(card(options, path, training, metrics), indent=2) + "\n")


if __name__ == "__main__":
    main()

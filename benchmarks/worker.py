"""One bulk job in a process of its own, so that its memory and its waiting are its own.

Reads an order from standard input and prints what was measured, both JSON. Started by the other modules:
``python -m benchmarks.worker``.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr

from spica.bench.machine import status_bytes
from spica.boxes import Detections
from spica.detectors.contract import Detector, RGBImage
from spica.images import decode
from spica.inference import Engine
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.media import media_for
from spica.models import store
from spica.models.load import load_detector
from spica.predictor import Predictor
from spica.prelabel.claim import Claim
from spica.prelabel.job import BulkJob
from spica.prelabel.selection import Selection, prepare
from spica.server.build import warm_up
from spica.settings import Settings
from spica.training.footprint import peak_memory_bytes

from .watch import Meter, WatchedTransport


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        url: of Label Studio.
        token: of Label Studio's.
        project: its number.
        document_root: below which the photographs are.
        work_dir: for claims and converted models.
        weights: of the network; None for a detector that costs nothing.
        alone: photographs on which the network is timed without a job around it.
        threads: of the network; 0 lets the runtime choose.
    """

    url: str
    token: str
    project: int
    document_root: str
    work_dir: str
    weights: str | None = None
    alone: list[str] = field(default_factory=list)
    threads: int = 0


class FreeDetector:
    """Three boxes on every image, for nothing."""

    classes = ("spike",)
    input_size = 1333

    def __init__(self) -> None:
        boxes = [(10, 10, 60, 50), (100, 40, 140, 90), (60, 60, 90, 95)]
        self._answer = Detections(
            boxes_xyxy=np.array(boxes, np.float32),
            scores=np.array([0.9, 0.8, 0.7], np.float32),
            class_ids=np.zeros(3, np.int64),
        )

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The same answer for each image."""
        return [self._answer] * len(images)


class TimedDetector:
    """A detector that notes when it computes.

    Attributes:
        spans: begin and end of each call, in seconds of ``time.perf_counter``.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.spans: list[tuple[float, float]] = []

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the network."""
        return self._detector.classes

    @property
    def input_size(self) -> int:
        """Of the network."""
        return self._detector.input_size

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The network's answers."""
        began = time.perf_counter()
        answers = self._detector.detect(images)
        self.spans.append((began, time.perf_counter()))
        return answers


def run(order: Order) -> dict[str, Any]:
    """Run the job and measure it; see :func:`_measured` for what comes back."""
    settings = Settings(
        label_studio_url=order.url,
        label_studio_api_key=SecretStr(order.token),
        local_files_document_root=Path(order.document_root),
        label_studio_data_dir=Path(order.work_dir) / "no-uploads",
        data_dir=Path(order.work_dir),
        threads=order.threads,
    )
    with ExitStack() as stack:
        model_id, detector = _model(order, settings)
        engine = stack.enter_context(
            Engine(model_id, lambda: detector, queue_size=settings.queue_size, memory_bytes=settings.memory_bytes)
        )
        engine.wait_ready()
        media = stack.enter_context(media_for(settings, LabelStudioAuth(order.url, order.token)))
        predictor = Predictor(
            model_id=model_id,
            classes=detector.classes,
            engine=engine,
            media=media,
            threshold=settings.threshold,
            max_pixels=settings.max_pixels,
        )
        half = len(order.alone) // 2
        alone = _alone(detector, order.alone[:half])
        measured = _measured(order, predictor, detector)
        alone += _alone(detector, order.alone[half:])
    if alone:
        measured["network"]["alone_s"] = statistics.fmean(alone)
    return measured


def _model(order: Order, settings: Settings) -> tuple[str, TimedDetector]:
    if order.weights is None:
        detector = TimedDetector(FreeDetector())
        warm_up(detector)
        return "free-00000000", detector
    version = store.prepare(
        Path(order.weights),
        data_dir=settings.data_dir,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
    )
    detector = TimedDetector(load_detector(version, threads=settings.threads))
    warm_up(detector)
    return version.id, detector


def _alone(detector: TimedDetector, photographs: Sequence[str]) -> list[float]:
    """Seconds of the network for each photograph, with nothing else to do."""
    limit = Settings.model_fields["max_pixels"].default
    images = [decode(Path(name).read_bytes(), where=name, max_pixels=limit).pixels for name in photographs]
    detector.spans.clear()
    for image in images:
        detector.detect([image])
    return [end - begin for begin, end in detector.spans]


def _measured(order: Order, predictor: Predictor, detector: TimedDetector) -> dict[str, Any]:
    """The job's counts, its seconds in all and waiting for Label Studio, its memory, and when the network computed."""
    detector.spans.clear()
    meter = Meter()
    before = status_bytes("VmRSS")
    cpu, began = time.process_time(), time.perf_counter()
    with LabelStudioClient(order.url, order.token, transport=WatchedTransport(meter)) as client:
        work = prepare(client, order.project, predictor.spec, Selection())
        with Claim.take(
            Path(order.work_dir) / "claims", order.url, order.project, by="a benchmark", version=work.prediction.version
        ) as claim:
            job = BulkJob(client, predictor, work, claim)
            progress = job.run()
    seconds = time.perf_counter() - began
    spans = detector.spans
    return {
        "version": work.prediction.version,
        "total": progress.total,
        "stored": progress.stored,
        "failed": progress.failed,
        "boxes": progress.boxes,
        "counted": progress.counted,
        "seconds": seconds,
        "label_studio_seconds": meter.seconds,
        "processor_seconds": time.process_time() - cpu,
        "requests": {kind: asdict(requests) for kind, requests in sorted(meter.kinds.items())},
        "memory": {"before": before, "peak": peak_memory_bytes() or None},
        "network": {
            "images": len(spans),
            "busy_s": sum(end - begin for begin, end in spans),
            "span_s": spans[-1][1] - spans[0][0] if spans else 0.0,
            "image_s": statistics.fmean(end - begin for begin, end in spans) if spans else 0.0,
        },
    }


def main() -> None:
    """Run the order on standard input."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    order = Order(**json.loads(sys.stdin.read()))
    print(json.dumps(run(order)))


if __name__ == "__main__":
    main()

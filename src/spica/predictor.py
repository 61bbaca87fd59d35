"""From a task to a prediction: find the bytes, decode, detect, keep what is above the threshold, make regions of it.

The one place where media, images, inference and regions meet; the server's routes and the bulk job both call it.
A task that fails is answered with its reason, never with "no objects". One that lacks an image (a null beside another
image) is answered for those that it has; one that has none, or has one that can't be read, fails as a whole.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict
from urllib.parse import unquote

from spica.errors import LabelConfigError, SpicaError
from spica.images import decode, decoded_bytes, digest_of
from spica.inference import Engine, ImageDetections, Priority
from spica.labelstudio import regions
from spica.labelstudio.config import (
    ExtraParams,
    LabelConfig,
    LabelMatch,
    RectangleControl,
    effective_threshold,
    match_labels,
    parse_label_config,
    serving_version,
)
from spica.labelstudio.protocol import Task, image_places, image_uris

logger = logging.getLogger(__name__)

_AHEAD = 2
"""Tasks of one request that are begun before their turn, to keep the network busy. The engine bounds their bytes."""


@dataclass(frozen=True, slots=True)
class PredictionSpec:
    """How one project's tasks are answered."""

    label_config: str  # the XML
    config: LabelConfig
    matches: tuple[LabelMatch, ...]  # for each of config.controls, which class gets which label
    thresholds: tuple[float, ...]  # for each of config.controls, the lowest shown score
    version: str  # Label Studio's model_version; it changes when, and only when, answers can change
    problems: tuple[str, ...]  # classes and labels without a counterpart, and what else can't be used, a sentence each

    def parts(self) -> Iterator[tuple[RectangleControl, LabelMatch, float]]:
        """Control tag, label match and threshold of each control with at least one label that the model knows."""
        for control, match, threshold in zip(self.config.controls, self.matches, self.thresholds, strict=True):
            if not match.is_empty:
                yield control, match, threshold

    def require_match(self, where: str) -> None:
        """Raise unless a box can be drawn at all.

        Raises:
            LabelConfigError: no class of the model meets a label of the project.
        """
        if all(match.is_empty for match in self.matches):
            raise LabelConfigError(
                "no class of the model meets a label of the project",
                where=where,
                got="; ".join(self.problems) or None,
                hint='rename a label, or add predicted_values="…" to a <Label> with the model\'s class name',
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task: a prediction as Label Studio takes it, or the reason why there is none."""

    task_id: int | None
    prediction: dict[str, Any] | None
    error: SpicaError | None
    boxes: int = 0

    def __post_init__(self) -> None:
        if (self.prediction is None) == (self.error is None):
            raise ValueError("an outcome is either a prediction or an error")


class Media(Protocol):
    """Where the bytes of images come from; :class:`spica.labelstudio.media.MediaReader` is it usually."""

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        """The bytes of the image at an address of a task's."""


class Predictor:
    """Answers tasks with one model. Thread-safe.

    Args:
        model_id: stable id of the model, from its content.
        classes: names by class id, empty strings where the weights carry none.
        engine: the running model.
        media: where images come from.
        threshold: lowest shown score where a project says nothing else, in [0, 1].
        max_pixels: larger images are refused.
    """

    def __init__(
        self,
        *,
        model_id: str,
        classes: Sequence[str],
        engine: Engine,
        media: Media,
        threshold: float,
        max_pixels: int,
    ) -> None:
        self.model_id = model_id
        self.classes = tuple(classes)
        self.engine = engine
        self.media = media
        self._threshold = threshold
        self._max_pixels = max_pixels
        self._spec = functools.lru_cache(maxsize=256)(self._make_spec)

    def spec(self, label_config: str, extra_params: ExtraParams | None = None) -> PredictionSpec:
        """How tasks of a project with this labelling configuration are answered.

        Raises:
            LabelConfigError: malformed, or nothing in it that a detector could fill.
        """
        return self._spec(label_config, extra_params or ExtraParams())

    def predict(self, tasks: Sequence[Task], spec: PredictionSpec, priority: Priority) -> Iterator[Outcome]:
        """One outcome per task, in order. A few images are read and decoded ahead of the network."""
        ahead: deque[Callable[[], Outcome]] = deque()
        for task in tasks:
            ahead.append(self.begin(task, spec, priority))
            if len(ahead) > _AHEAD:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()

    def begin(
        self, task: Task, spec: PredictionSpec, priority: Priority, context: Mapping[str, Any] | None = None
    ) -> Callable[[], Outcome]:
        """Read and decode a task's images and ask for their detections; calling what is returned waits for them."""
        try:
            pending = self._request(task, spec, priority)
        except SpicaError as error:
            failed = _failed(task, error)
            return lambda: failed
        return lambda: self._answer(task, spec, pending, context)

    def suggest(self, task: Task, spec: PredictionSpec, context: Mapping[str, Any]) -> Outcome:
        """Answer a person who has drawn a rectangle or a point, from the raw detections down to the floor score.

        An image seen before is not run through the network again. Without a drawing, the usual answer.
        """
        return self.begin(task, spec, Priority.INTERACTIVE, context)()

    def with_media(self, media: Media) -> Predictor:
        """The same model, images read in another way."""
        other = copy.copy(self)
        other.media = media
        return other

    def _make_spec(self, label_config: str, extra_params: ExtraParams) -> PredictionSpec:
        config = parse_label_config(label_config)
        matches = tuple(match_labels(self.classes, control) for control in config.controls)
        thresholds = tuple(effective_threshold(self._threshold, extra_params, control) for control in config.controls)
        unmet = [match.explain() for match in matches if match.unmatched_classes or match.is_empty]
        problems = (*config.problems, *unmet)
        for problem in problems:  # the answer is cached, so each is logged once
            logger.warning("%s", problem)
        version = serving_version(self.model_id, config, matches, thresholds)
        return PredictionSpec(label_config, config, matches, thresholds, version, problems)

    def _request(self, task: Task, spec: PredictionSpec, priority: Priority) -> dict[str, Future[ImageDetections]]:
        """The detections to come, by address of the image."""
        spec.require_match(f"task {task.id}")
        pending: dict[str, Future[ImageDetections]] = {}
        lacking: list[RectangleControl] = []
        for control, _, _ in spec.parts():
            places = image_places(task, control)
            for uri in places:
                if uri is not None and uri not in pending:
                    pending[uri] = self._see(uri, task.id, priority)
            if not places or None in places:
                lacking.append(control)
        if not pending:
            image_uris(task, lacking[0])  # raises, with what is there instead
        for key in dict.fromkeys(control.image_key for control in lacking):
            logger.warning('task %s: an image is missing under "%s"; those that are there get boxes', task.id, key)
        return pending

    def _see(self, uri: str, task_id: int | None, priority: Priority) -> Future[ImageDetections]:
        data = self.media.read(uri, task_id=task_id)
        seen = self.engine.remembered(digest_of(data))
        if seen is not None:
            done: Future[ImageDetections] = Future()
            done.set_result(seen)
            return done
        where, limit = uri[:200], self._max_pixels
        nbytes = decoded_bytes(data, where=where, max_pixels=limit)
        return self.engine.submit_decoded(lambda: decode(data, where=where, max_pixels=limit), nbytes, priority)

    def _answer(
        self,
        task: Task,
        spec: PredictionSpec,
        pending: Mapping[str, Future[ImageDetections]],
        context: Mapping[str, Any] | None,
    ) -> Outcome:
        try:
            seen_by_uri = {uri: future.result() for uri, future in pending.items()}
            views = list(_views(task, spec, seen_by_uri))
            result = [region for view in views for region in view.regions(context)]
        except SpicaError as error:
            return _failed(task, error)
        # A Rectangle and its Labels share an id and are one box.
        scores = {item["id"]: float(item["score"]) for item in result}
        score = regions.prediction_score(list(scores.values()), max((view.highest for view in views), default=0.0))
        return Outcome(task.id, regions.prediction(result, score, spec.version), None, len(scores))


def _failed(task: Task, error: SpicaError) -> Outcome:
    """Without the frames in which the error was raised: they hold the image's bytes, and failures are kept."""
    shown = copy.copy(error)
    shown.where = _readable(error.where) if error.where is not None else None
    logger.warning("task %s: %s", task.id, shown.summary)
    return Outcome(task.id, None, shown)


def _readable(where: str) -> str:
    """An address with the file's name as people wrote it, not percent-encoded; others as they are."""
    decoded = unquote(where) if where.startswith(("/", "http:", "https:")) else where
    return decoded if decoded.isprintable() else where


class _Place(TypedDict):
    width: int
    height: int
    threshold: float
    item_index: int | None


@dataclass(frozen=True, slots=True)
class View:
    """One image as one control tag shows it."""

    control: RectangleControl
    match: LabelMatch
    threshold: float  # lowest shown score, in [0, 1]
    seen: ImageDetections  # raw detections and size
    item_index: int | None  # which image of a list, None where the tag shows one

    def regions(self, context: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Label Studio's regions; those that fit what a person has drawn, if there is a context."""
        shown = (self.seen.detections, self.control, self.match)
        place = _Place(
            width=self.seen.width, height=self.seen.height, threshold=self.threshold, item_index=self.item_index
        )
        return regions.suggestions(*shown, context, **place) if context else regions.to_regions(*shown, **place)

    @property
    def highest(self) -> float:
        """The highest raw score among the classes that have a label; 0 without any."""
        scored = zip(self.seen.detections.scores, self.seen.detections.class_ids, strict=True)
        met = (float(score) for score, class_id in scored if self.match.labels[int(class_id)] is not None)
        return max(met, default=0.0)


def _views(task: Task, spec: PredictionSpec, seen_by_uri: Mapping[str, ImageDetections]) -> Iterator[View]:
    for control, match, threshold in spec.parts():
        for index, uri in enumerate(image_places(task, control)):
            if uri is not None:
                yield View(control, match, threshold, seen_by_uri[uri], index if control.image_list else None)

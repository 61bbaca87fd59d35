"""Build the model server's parts from settings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

from spica.detectors.contract import Detector
from spica.errors import StorageError, UsageError
from spica.inference import Engine
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.media import MediaReader, media_for
from spica.models import active, store
from spica.models.active import Resolution
from spica.models.load import load_detector
from spica.models.locks import hold
from spica.models.serving import Serving, choose, served_id
from spica.models.version import ModelIdentity, ModelVersion, folder_of, open_version, peek, unchecked_info
from spica.predictor import Media, Predictor
from spica.project import ProjectKey
from spica.server.pool import ModelPool
from spica.server.service import Service
from spica.settings import Settings
from spica.training.takeover import take_over

logger = logging.getLogger(__name__)


def build_engine(identity: ModelIdentity, settings: Settings) -> Engine:
    """The model, which loads in the background once the engine is started; converted first if that is still to be done.

    Closing the engine gives a conversion under way up. Its name is the id under which it is served, which is that of
    the version with a suffix where the precision changes the answers.

    Raises:
        UsageError: the settings ask for a precision that the model does not have.
    """
    stopped = threading.Event()

    def version() -> ModelVersion:
        return store.ensure(identity, data_dir=settings.data_dir, progress=logger.info, stop=stopped)

    return _engine(identity, choose(identity, settings), version, settings, stopped)


def build_version(version: str, settings: Settings, *, media: Media) -> Predictor:
    """What answers with a version of the store; it is loading when this returns. Reads the version's card alone.

    Raises:
        UsageError: there is no such version.
        WeightsError: it is damaged, as far as that shows without reading all of it; the engine reads it all.
    """
    card = peek(settings.data_dir, version)
    identity = ModelIdentity.of_version(card, unchecked_info(folder_of(settings.data_dir, version), card))
    try:
        serving = choose(identity, settings)
    except UsageError as error:  # int8 was asked for, which a version has once it was made for it
        logger.warning("version %s is computed in f32: %s", version, error.summary)
        serving = Serving("f32", why=error.what)
    engine = _engine(identity, serving, lambda: open_version(settings.data_dir, version), settings, threading.Event())
    engine.start()
    return _predictor(engine, card.classes, settings, media)


def build_service(engine: Engine, identity: ModelIdentity, settings: Settings) -> Service:
    """A service for the Label Studio that the settings name.

    It answers with this model, and projects that have a version of their own with that.
    """
    default = _predictor(engine, identity.classes, settings, _media(settings))
    pool = ModelPool(
        default,
        base_id=identity.id,
        resolve=lambda project: resolve(settings.data_dir, project, identity.id),
        load=lambda version: build_version(version, settings, media=default.media),
    )
    named = identity.name if identity.card is not None else identity.weights.path.name
    return Service(
        default,
        weights=named,
        pool=pool,
        precision=choose(identity, settings).text,
        folder=identity.weights.path if identity.card is not None else None,
    )


def resolve(data_dir: Path, project: ProjectKey, base_id: str) -> Resolution:
    """What a project is to be answered with, after what an older Spica has kept of it was given its name."""
    try:
        take_over(data_dir, project)
    except StorageError as error:
        known = active.resolve(data_dir, project, base_id)
        return known if active.pointer_path(data_dir, project).exists() else known._replace(problem=error)
    return active.resolve(data_dir, project, base_id)


def warm_up(detector: Detector) -> None:
    """Pay now what the first request would pay: the network's first run."""
    detector.detect([np.zeros((64, 64, 3), np.uint8)])


def _engine(
    identity: ModelIdentity,
    serving: Serving,
    version: Callable[[], ModelVersion],
    settings: Settings,
    stopped: threading.Event,
) -> Engine:
    leases = ExitStack()

    def load() -> Detector:
        if not settings.data_dir.joinpath("models", identity.id).is_dir():  # a conversion comes first
            version()
        if settings.data_dir.joinpath("models", identity.id).is_dir():
            leases.enter_context(hold(settings.data_dir, identity.id))  # nobody deletes what is served
        return load_detector(version(), threads=settings.threads, serving=serving)

    def abandon() -> None:
        stopped.set()
        leases.close()

    return Engine(
        served_id(identity, serving),
        load,
        queue_size=settings.queue_size,
        memory_bytes=settings.memory_bytes,
        warm=warm_up,
        abandon=abandon,
    )


def _predictor(engine: Engine, classes: tuple[str, ...], settings: Settings, media: Media) -> Predictor:
    return Predictor(
        model_id=engine.name,
        classes=classes,
        engine=engine,
        media=media,
        threshold=settings.threshold,
        max_pixels=settings.max_pixels,
    )


def _media(settings: Settings) -> MediaReader:
    auth: httpx.Auth | None = None
    if settings.label_studio_api_key is not None:
        auth = LabelStudioAuth(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
    return media_for(settings, auth)

"""Build the model server's parts from settings."""

from __future__ import annotations

import logging
import threading

import httpx
import numpy as np

from spica.detectors.contract import Detector
from spica.detectors.load import load_detector
from spica.inference import Engine
from spica.labelstudio.control_tags import EXAMPLE
from spica.labelstudio.media import MediaReader
from spica.labelstudio.regions import check_result
from spica.labelstudio.tokens import LabelStudioAuth
from spica.models import store
from spica.models.version import ModelIdentity
from spica.prediction import Predictor
from spica.server.service import Service
from spica.settings import Settings

logger = logging.getLogger(__name__)


def build_engine(identity: ModelIdentity, settings: Settings) -> Engine:
    """The model, which loads in the background once the engine is started; converted first if that is still to be done.

    Closing the engine gives a conversion under way up.
    """
    abandoned = threading.Event()

    def load() -> Detector:
        version = store.ensure(identity, data_dir=settings.data_dir, progress=logger.info, stop=abandoned)
        detector = load_detector(version, threads=settings.threads)
        warm_up(detector)
        return detector

    return Engine(
        identity.id,
        load,
        queue_size=settings.queue_size,
        memory_bytes=settings.memory_bytes,
        abandon=abandoned.set,
    )


def build_service(engine: Engine, identity: ModelIdentity, settings: Settings) -> Service:
    """A service that answers with this model, for the Label Studio that the settings name."""
    predictor = Predictor(
        model_id=identity.id,
        classes=identity.classes,
        engine=engine,
        media=_media(settings),
        threshold=settings.threshold,
        max_pixels=settings.max_pixels,
    )
    named = identity.name if identity.weights.card is not None else identity.weights.path.name
    return Service(predictor, weights=named)


def warm_up(detector: Detector) -> None:
    """Pay now what the first request would pay: the network's first run, and the import of Label Studio's SDK."""
    detector.detect([np.zeros((64, 64, 3), np.uint8)])
    check_result(EXAMPLE, [])


def _media(settings: Settings) -> MediaReader:
    auth: httpx.Auth | None = None
    if settings.label_studio_api_key is not None:
        auth = LabelStudioAuth(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
    return media_for(settings, auth)


def media_for(settings: Settings, auth: httpx.Auth | None) -> MediaReader:
    """Reads images as the settings say, from Label Studio with this token; closed by the caller."""
    return MediaReader(
        label_studio_url=settings.label_studio_url,
        auth=auth,
        document_root=settings.local_files_document_root,
        media_dir=settings.label_studio_data_dir / "media",
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.media_timeout_s,
    )

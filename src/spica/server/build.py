"""Build the model server's parts from settings."""

from __future__ import annotations

import httpx

from spica.inference import Engine
from spica.labelstudio.media import MediaReader
from spica.labelstudio.tokens import LabelStudioAuth
from spica.models import store
from spica.models.store import ModelIdentity
from spica.prediction import Predictor
from spica.server.service import Service
from spica.settings import Settings


def build_service(identity: ModelIdentity, settings: Settings) -> Service:
    """A service whose model loads in the background, converted first if that is still to be done."""
    engine = Engine(
        identity.id,
        lambda: store.load(identity, data_dir=settings.data_dir, threads=settings.threads),
        queue_size=settings.queue_size,
        memory_bytes=settings.memory_bytes,
    )
    predictor = Predictor(
        model_id=identity.id,
        classes=identity.classes,
        engine=engine,
        media=_media(settings),
        threshold=settings.threshold,
        max_pixels=settings.max_pixels,
    )
    engine.start()
    return Service(predictor, weights=identity.path.name)


def _media(settings: Settings) -> MediaReader:
    auth: httpx.Auth | None = None
    if settings.label_studio_api_key is not None:
        auth = LabelStudioAuth(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
    return MediaReader(
        label_studio_url=settings.label_studio_url,
        auth=auth,
        document_root=settings.local_files_document_root,
        media_dir=settings.label_studio_data_dir / "media",
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.media_timeout_s,
    )

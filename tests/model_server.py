"""A model server around a scripted detector, with real images in a real folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as PILImage
from pydantic import SecretStr

from scripted_detector import ScriptedDetector, detections
from spica.inference import Engine
from spica.labelstudio.media import MediaReader
from spica.predictor import Predictor
from spica.server.run import ModelServer as RunningServer
from spica.server.service import Service
from spica.settings import Settings

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image" smart="true"><Label value="spike"/></RectangleLabels></View>'
)
SIZE = (200, 100)
"""Width and height of the test's photographs, in pixels."""


@dataclass
class ModelServer:
    """The server under test and what stands behind it."""

    client: httpx.Client
    detector: ScriptedDetector
    service: Service
    root: Path

    def photograph(self, name: str, colour: tuple[int, int, int] = (200, 180, 90)) -> str:
        """Make a photograph below the document root; its address in a task."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(np.full((SIZE[1], SIZE[0], 3), colour, np.uint8)).save(path)
        return f"/data/local-files/?d={name}"

    def setup(self, config: str = CONFIG, **more: Any) -> dict[str, Any]:
        """What `/setup` answers."""
        answer = self.client.post("/setup", json={"project": "1.1700000000", "schema": config, **more})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def predict(self, *uris: str, config: str = CONFIG, context: dict[str, Any] | None = None) -> Any:
        """The response of `/predict` for one task per address."""
        tasks = [{"id": number, "data": {"image": uri}} for number, uri in enumerate(uris, start=1)]
        body = {
            "tasks": tasks,
            "project": "1.1700000000",
            "label_config": config,
            "params": {"login": None, "password": None, "context": context},
        }
        return self.client.post("/predict", json=body)


ANSWER = detections((10, 10, 50, 30, 0.9), (100, 40, 140, 90, 0.7), (60, 60, 80, 80, 0.3))
"""Two boxes above the tutorial's threshold of 0.6 and one below."""


@contextmanager
def model_servers(tmp_path: Path) -> Iterator[Callable[..., ModelServer]]:
    """Make model servers; each stops with the block."""
    with ExitStack() as stack:

        def make(
            detector: ScriptedDetector | None = None,
            *,
            queue_size: int = 100,
            max_request_bytes: int = 1_000_000,
            max_tasks: int = 50,
            basic_auth: str | None = None,
            token: str | None = None,
            host: str = "127.0.0.1",
            allowed_hosts: tuple[str, ...] = (),
            load: Callable[[], ScriptedDetector] | None = None,
            label_studio_url: str = "http://127.0.0.1:9",
            prepare: Callable[[Service], None] = lambda _: None,
        ) -> ModelServer:
            root = tmp_path / "写真"
            root.mkdir(exist_ok=True)
            chosen = detector or ScriptedDetector(ANSWER)
            engine = stack.enter_context(
                Engine("test-0001", load or (lambda: chosen), queue_size=queue_size, memory_bytes=1_000_000)
            )
            media = MediaReader(
                label_studio_url=label_studio_url,
                auth=None,
                document_root=root,
                media_dir=None,
                max_bytes=10_000_000,
                timeout_s=5,
            )
            stack.callback(media.close)
            predictor = Predictor(
                model_id="test-0001",
                classes=chosen.classes,
                engine=engine,
                media=media,
                threshold=0.6,
                max_pixels=1_000_000,
            )
            service = Service(predictor, weights="gwhd.pth")
            prepare(service)
            settings = Settings(
                label_studio_url=label_studio_url,
                data_dir=tmp_path,
                max_request_bytes=max_request_bytes,
                max_tasks=max_tasks,
                basic_auth=SecretStr(basic_auth) if basic_auth is not None else None,
                label_studio_api_key=SecretStr(token) if token is not None else None,
                allowed_hosts=allowed_hosts,
            )
            running = stack.enter_context(RunningServer(service, settings, host=host, port=0))
            client = stack.enter_context(httpx.Client(base_url=running.url, timeout=60, trust_env=False))
            return ModelServer(client, chosen, service, root)

        yield make


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., ModelServer]]:
    """Make model servers; each stops with the test."""
    with model_servers(tmp_path) as make:
        yield make


@pytest.fixture
def server(make_server: Callable[..., ModelServer]) -> ModelServer:
    """A model server as it comes."""
    return make_server()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """The same, once for all tests of a module that leave nothing in it, or don't mind."""
    with model_servers(tmp_path_factory.mktemp("shared")) as make:
        yield make()

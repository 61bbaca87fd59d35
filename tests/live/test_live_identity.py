"""Two Label Studios with a project 1 each, one data folder: a second one, or one that was set up anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from label_studio_helpers import LABEL_CONFIG
from model_server import ModelServer
from scripted_detector import ScriptedDetector, detections
from spica import cli
from spica.inference import Engine
from spica.labelstudio.launch import LabelStudioProcess
from spica.models import active
from spica.predictor import Predictor
from spica.project import ProjectKey
from spica.server.build import resolve
from spica.server.pool import ModelPool
from spica.server.service import Service
from tiny_versions import tiny_version

BASE = "test-0001"


def test_a_label_studio_that_was_set_up_anew(
    label_studio_factory: Callable[..., LabelStudioProcess],
    make_server: Callable[..., ModelServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its project 1 is answered by the server's weights, whatever the old one's has, and by its own version once it has
    one; the command line means the project of the Label Studio that it is given.
    """
    own, other = tiny_version(tmp_path, "own"), tiny_version(tmp_path, "other")
    with ExitStack() as stack:

        def pooled(service: Service) -> None:
            def load(version: str) -> Predictor:
                detector = ScriptedDetector(detections((10, 10, 50, 30, 0.9)))
                engine = Engine(version, lambda: detector, queue_size=10, memory_bytes=1000)
                stack.enter_context(engine)
                media = service.predictor.media
                return Predictor(
                    model_id=version, classes=("spike",), engine=engine, media=media, threshold=0.6, max_pixels=10**6
                )

            service.pool = ModelPool(service.predictor, resolve=lambda key: resolve(tmp_path, key, BASE), load=load)

        server = make_server(prepare=pooled)
        url = str(server.client.base_url).rstrip("/")

        def chosen(studio: LabelStudioProcess, version: str | None) -> tuple[ProjectKey, str]:
            """Make project 1 there, or take it, choose a version for it; which it is, and what it is answered with."""
            with studio.client() as client:
                found = next(client.projects(), None) or client.create_project("wheat", LABEL_CONFIG)
                assert found.id == 1
                if version is not None:
                    place = ["--url", studio.url, "--token", studio.credentials.token, "--data-dir", str(tmp_path)]
                    arguments = ["models", "activate", version, "--project", "1", "--any-weights"]
                    monkeypatch.setattr(sys, "argv", ["spica", *arguments, *place])
                    with pytest.raises(SystemExit) as end:
                        cli.main()
                    assert not end.value.code
                    server.service.pool.refresh(found.key)
                return found.key, client.connect_backend(1, url=url).model_version.rpartition(".")[0]

        with label_studio_factory() as studio:
            old, answered = chosen(studio, own)
            assert answered == own
        with label_studio_factory() as studio:
            anew, answered = chosen(studio, None)
            assert (anew.number, answered) == (1, BASE)
            assert anew.created > old.created
            assert chosen(studio, other) == (anew, other)
    assert {key: pointer.version for key, pointer in active.pointers(tmp_path).items()} == {old: own, anew: other}

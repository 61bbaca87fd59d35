"""A clean environment for every test, and a real Label Studio for those that want one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

import label_studio_helpers as helpers
from label_studio_helpers import LABEL_CONFIG, LabelStudioFactory, png
from scripted_backend import ScriptedBackend
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.data_folder import DATABASE_NAME
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project

_OURS = ("LABEL_STUDIO_", "HEARTEX_", "SPICA_", "LOCAL_FILES_")
_HOMES = ("HOME", "USERPROFILE", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA", "APPDATA")
_START_TIMEOUT_S = 500.0
_LONGEST = frozenset({"live_kill", "live_up", "test_loop"})


def pytest_configure(config: pytest.Config) -> None:
    """Property tests try more examples in `make test-all`, unless they say how many.

    Children of the tests must understand Ctrl-C, also where a script has started the run in the background.
    """
    examples = 40 if "not exhaustive" in config.option.markexpr else 300
    hypothesis.settings.register_profile("spica", max_examples=examples)
    hypothesis.settings.load_profile("spica")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun last, one worker would still wait for servers when the others are done."""
    items.sort(key=lambda item: _LONGEST.isdisjoint((item.path.parent.name, item.path.stem)))


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the person who runs the tests reaches them, and no file of theirs is touched."""
    for name in [name for name in os.environ if name.upper().startswith(_OURS)]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    for name in _HOMES:
        monkeypatch.setenv(name, str(home))


@pytest.fixture(scope="session")
def migrated_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a data folder, at the path that it is given, in which Label Studio starts in a few seconds.

    Its database is migrated once per run: a worker that comes second waits for the first one's.
    """
    pytest.importorskip("label_studio", reason="needs the extra spica[label-studio]")
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    template = run / "label-studio-template"
    with FileLock(run / "label-studio-template.lock"):
        if not template.exists():
            _migrate(run / "label-studio-first").rename(template)

    def make(path: Path) -> Path:
        shutil.copytree(template, path)
        return path

    return make


def _migrate(folder: Path) -> Path:
    """A new folder with the files that a first start leaves, the database as it is while Label Studio runs."""
    copy = folder / "copy"
    for path in (copy, folder / "documents"):
        path.mkdir(parents=True)
    with LabelStudioProcess.start(
        folder / "data", port=0, document_root=folder / "documents", timeout_s=_START_TIMEOUT_S
    ) as process:
        with (
            contextlib.closing(sqlite3.connect(process.data_dir / DATABASE_NAME)) as source,
            contextlib.closing(sqlite3.connect(copy / DATABASE_NAME)) as target,
        ):
            source.backup(target)
        for name in (".env", "credentials.json"):
            shutil.copy2(process.data_dir / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def label_studio(
    migrated_data_dir: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelStudioProcess]:
    """The real Label Studio of this worker. Its ``document_root`` is a folder that tests may add sub-folders to."""
    root = tmp_path_factory.mktemp("label-studio")
    documents = root / "documents"
    documents.mkdir()
    data_dir = migrated_data_dir(root / "data")
    with LabelStudioProcess.start(data_dir, port=0, document_root=documents, timeout_s=_START_TIMEOUT_S) as process:
        yield process


@pytest.fixture
def label_studio_factory(migrated_data_dir: Callable[[Path], Path], tmp_path: Path) -> Iterator[LabelStudioFactory]:
    """Starts a Label Studio of the test's own, with further switches if it likes; stopped after the test.

    ``factory(extra_env={…}, **arguments of LabelStudioProcess.start)``; an empty text removes a switch.
    """
    with contextlib.ExitStack() as stack:
        made = 0

        def start(*, extra_env: Mapping[str, str] | None = None, **options: object) -> LabelStudioProcess:
            nonlocal made
            made += 1
            documents = tmp_path / f"documents-{made}"
            documents.mkdir()
            arguments: dict[str, object] = {
                "port": 0,
                "document_root": documents,
                "timeout_s": _START_TIMEOUT_S,
                "extra_env": extra_env,
                **options,
            }
            data_dir = migrated_data_dir(tmp_path / f"data-{made}")
            return stack.enter_context(LabelStudioProcess.start(data_dir, **arguments))  # type: ignore[arg-type]  # start() itself checks

        yield start


@pytest.fixture
def client(label_studio: LabelStudioProcess) -> Iterator[LabelStudioClient]:
    """A connection to the Label Studio of this run."""
    with label_studio.client() as connection:
        yield connection


@pytest.fixture
def project(client: LabelStudioClient, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A fresh project with the labels spike and other, deleted after the test."""
    created = client.create_project(f"test {request.node.name}"[:50], LABEL_CONFIG)
    yield created
    helpers.delete_project(client, created.id)


@pytest.fixture
def upload_images(client: LabelStudioClient, project: Project) -> Callable[..., list[int]]:
    """Uploads so many small images of one colour each to the project: ``upload_images(3, size=(64, 48))``."""

    def upload(count: int, size: tuple[int, int] = (64, 48)) -> list[int]:
        images = {f"image-{number:03}.png": png(size, 40 * number % 256) for number in range(count)}
        return helpers.upload_images(client, project.id, images)

    return upload


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    """A scripted model server."""
    with ScriptedBackend() as server:
        yield server

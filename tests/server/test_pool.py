"""The exchange of the served version: nothing waits, nothing fails, nothing is mixed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from model_server import ANSWER, CONFIG, ModelServer
from project_keys import ONE, known
from scripted_detector import WAIT_S, ScriptedDetector, detections
from spica.errors import StorageError, WeightsError
from spica.inference import Engine
from spica.models.active import Resolution
from spica.predictor import Media, Predictor
from spica.project import ProjectKey
from spica.server import pool as module
from spica.server.pool import ModelPool
from spica.server.service import Service

OTHER = detections((1, 1, 21, 21, 0.95))
"""One box: what the trained version answers."""


class Store:
    """Versions by id, the active one of each project, and what stands in the way of loading one."""

    def __init__(self, media: Media) -> None:
        self.media = media
        self.active: dict[ProjectKey, str | None] = {}
        self.doubt: Resolution | None = None
        self.go = threading.Event()
        self.go.set()
        self.damaged: set[str] = set()
        self.loaded: list[str] = []
        self.engines: dict[str, Engine] = {}

    def resolve(self, project: ProjectKey) -> Resolution:
        """As `spica.models.active.resolve`."""
        version = self.active.get(project)
        return self.doubt or Resolution(version, "tried" if version else "the weights of the server")

    def load(self, version: str) -> Predictor:
        """As `spica.server.build.build_version`."""
        self.loaded.append(version)

        def detector() -> ScriptedDetector:
            assert self.go.wait(WAIT_S)
            if version in self.damaged:
                raise WeightsError("this model version is damaged", where=version)
            return ScriptedDetector(OTHER)

        engine = self.engines[version] = Engine(version, detector, queue_size=100, memory_bytes=1_000_000)
        engine.start()
        return predictor(version, engine, self.media)


def predictor(version: str, engine: Engine, media: Media) -> Predictor:
    """One that answers with an engine."""
    return Predictor(
        model_id=version, classes=("spike",), engine=engine, media=media, threshold=0.6, max_pixels=1_000_000
    )


class NoMedia:
    """Nothing is read."""

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        """Never called."""
        raise AssertionError(uri)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., tuple[ModelPool, Store]]]:
    """Pools whose looks the test makes itself, with :meth:`ModelPool.refresh`."""
    with ExitStack() as stack:

        def make(*, limit: int = 2, shown: int = 8) -> tuple[ModelPool, Store]:
            store = Store(NoMedia())
            engine = stack.enter_context(
                Engine("base-0001", lambda: ScriptedDetector(ANSWER), queue_size=10, memory_bytes=1000)
            )
            pool = ModelPool(
                predictor("base-0001", engine, NoMedia()),
                resolve=store.resolve,
                load=store.load,
                limit=limit,
                shown=shown,
            )
            stack.callback(pool.close)
            return pool, store

        yield make


def test_without_an_active_version_the_weights_answer(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Nothing is loaded for a project that has no version of its own, or no number."""
    pool, store = make_pool()
    assert pool.predictor(ONE) is pool.default
    assert pool.predictor(None) is pool.default
    assert pool.refresh(ONE).version == "base-0001"
    assert store.loaded == []


def test_exchange_and_rollback(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """A project gets its version when it is loaded, others keep theirs; going back loads nothing anew."""
    pool, store = make_pool()
    told: list[ProjectKey] = []
    pool.on_exchange(told.append)
    pool.predictor(ONE), pool.predictor(known(2))
    store.active[ONE] = "own-0002"
    assert pool.refresh(ONE).version == "own-0002"
    assert (pool.predictor(ONE).model_id, pool.predictor(known(2)).model_id) == ("own-0002", "base-0001")
    store.active[ONE] = None
    assert pool.refresh(ONE).version == "base-0001"
    store.active[ONE] = "own-0002"
    assert pool.refresh(ONE).version == "own-0002"
    assert store.loaded == ["own-0002"]
    assert told == [ONE] * 3


def test_a_version_is_loaded_once_for_all_projects(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Projects with the same version share it."""
    pool, store = make_pool()
    store.active = {ONE: "own-0002", known(2): "own-0002"}
    pool.refresh(ONE), pool.refresh(known(2))
    assert pool.predictor(ONE) is pool.predictor(known(2))
    assert store.loaded == ["own-0002"]


def test_nobody_waits_for_a_version_that_loads(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """While a version loads the old one answers, at once."""
    pool, store = make_pool()
    pool.predictor(ONE)
    store.active[ONE] = "own-0002"
    store.go.clear()
    exchange = threading.Thread(target=pool.refresh, args=(ONE,))
    exchange.start()
    while not store.loaded:
        exchange.join(0.01)
    assert pool.predictor(ONE) is pool.default
    assert pool.served(ONE).wanted == "own-0002"
    store.go.set()
    exchange.join(WAIT_S)
    assert pool.predictor(ONE).model_id == "own-0002"


def test_a_damaged_version_is_never_put_in_front(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """The old version goes on, with the reason; once the damage is mended, the new one takes over."""
    pool, store = make_pool()
    pool.predictor(ONE)
    store.active[ONE] = "own-0002"
    store.damaged.add("own-0002")
    served = pool.refresh(ONE)
    assert (served.version, served.wanted) == ("base-0001", "own-0002")
    assert served.problem is not None
    assert "damaged" in served.problem.what
    assert pool.predictor(ONE) is pool.default
    store.damaged.clear()
    assert pool.refresh(ONE).version == "own-0002"


def test_a_damaged_version_at_the_start(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Where no older version is at work yet, a damaged one gives way to the weights of the server."""
    pool, store = make_pool()
    store.active[ONE] = "own-0002"
    store.damaged.add("own-0002")
    store.go.clear()
    first = pool.predictor(ONE)
    assert first.model_id == "own-0002"
    store.go.set()
    with pytest.raises(WeightsError):
        first.engine.wait_ready(WAIT_S)
    assert pool.predictor(ONE) is pool.default
    served = pool.refresh(ONE)
    assert (served.version, served.problem is not None) == ("base-0001", True)


UNREADABLE = StorageError("a part of the data folder can't be read")


def test_a_hiccup_of_the_folder_takes_nothing_back(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """While it can't be read what is active, the version that works goes on, with the reason, and nobody is called."""
    pool, store = make_pool()
    told: list[ProjectKey] = []
    pool.on_exchange(told.append)
    store.active[ONE] = "own-0002"
    pool.refresh(ONE)
    store.doubt = Resolution(None, "damaged", UNREADABLE)
    served = pool.refresh(ONE)
    assert (served.version, served.problem is not None, told) == ("own-0002", True, [])
    assert pool.predictor(ONE).model_id == "own-0002"
    store.doubt = None
    served = pool.refresh(ONE)
    assert (served.version, served.problem, told) == ("own-0002", None, [])
    store.active[ONE] = None
    assert pool.refresh(ONE).version == "base-0001"
    assert told == [ONE]


def test_a_hiccup_while_a_version_loads(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Also one that is not ready yet stays; where it turns out damaged, the weights answer and nobody is called."""
    pool, store = make_pool()
    told: list[ProjectKey] = []
    pool.on_exchange(told.append)
    store.active[ONE] = "own-0002"
    store.damaged.add("own-0002")
    store.go.clear()
    first = pool.predictor(ONE)
    store.doubt = Resolution(None, "damaged", UNREADABLE)
    assert pool.refresh(ONE).version == "own-0002"
    store.go.set()
    with pytest.raises(WeightsError):
        first.engine.wait_ready(WAIT_S)
    served = pool.refresh(ONE)
    assert (served.version, served.problem, told) == ("base-0001", UNREADABLE, [])


def test_at_the_start_a_doubt_is_told(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Where no version works yet the weights answer, and say why."""
    pool, store = make_pool()
    store.doubt = Resolution(None, "damaged", UNREADABLE)
    pool.predictor(ONE)
    assert (pool.served(ONE).version, pool.served(ONE).problem) == ("base-0001", UNREADABLE)
    store.doubt = None
    assert pool.refresh(ONE).problem is None


def test_strangers_are_forgotten(
    make_pool: Callable[..., tuple[ModelPool, Store]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many numbers are asked with, the last ones are remembered, and none that has a version of its own."""
    monkeypatch.setattr(module, "PROJECTS", 3)
    pool, store = make_pool()
    store.active[ONE] = "own-0002"
    pool.refresh(ONE)
    for project in range(2, 10):
        pool.predictor(known(project))
    assert pool.projects == {ONE, known(7), known(8), known(9)}


def test_models_that_nobody_uses_are_closed(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Of versions that no project shows, so many stay loaded; one that a request or a job uses stays until its end."""
    pool, store = make_pool(limit=1)
    store.active[ONE] = "own-1"
    pool.refresh(ONE)
    with pool.lease(ONE) as used:
        for number in (2, 3, 4):
            store.active[ONE] = f"own-{number}"
            pool.refresh(ONE)
        pool.tidy()
        assert used.engine.status.state == "ready"
        assert {each.model_id for each in pool.predictors} == {"base-0001", "own-1", "own-3", "own-4"}
    pool.tidy()
    assert {each.model_id for each in pool.predictors} == {"base-0001", "own-3", "own-4"}
    assert store.engines["own-1"].status.state == "closed"


def test_quiet_projects_are_forgotten(make_pool: Callable[..., tuple[ModelPool, Store]]) -> None:
    """Only the projects that asked last are kept ready, however many have versions of their own."""
    pool, store = make_pool(limit=0, shown=2)
    for project in range(1, 6):
        store.active[known(project)] = f"own-{project}"
        pool.refresh(known(project))
    pool.tidy()
    assert {each.model_id for each in pool.predictors} == {"base-0001", "own-4", "own-5"}
    assert pool.refresh(ONE).version == "own-1"


def test_under_load_nothing_fails_and_nothing_is_mixed(make_server: Callable[..., ModelServer]) -> None:
    """While versions are exchanged back and forth, every request is answered, each by one version alone."""
    stores: list[Store] = []

    def pooled(service: Service) -> None:
        store = Store(service.predictor.media)
        service.pool = ModelPool(service.predictor, resolve=store.resolve, load=store.load, every_s=0.01)
        stores.append(store)

    server = make_server(prepare=pooled)
    store = stores[0]
    address = server.photograph("a.png")
    wrong: list[str] = []
    seen: set[str] = set()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answer = server.predict(address, address, address)
            if answer.status_code != 200:
                wrong.append(answer.text)
                continue
            for result in answer.json()["results"]:
                version, boxes = result["model_version"].rpartition(".")[0], len(result["result"])
                seen.add(version)
                if boxes != {"test-0001": 2, "own-a": 1, "own-b": 1}[version]:
                    wrong.append(f"{version}: {boxes} boxes")

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for version in ("own-a", None, "own-b", "own-a", None, "own-b"):
        store.active[ONE] = version
        server.service.pool.refresh(ONE)
        server.predict(address)
    over.set()
    for asker in askers:
        asker.join(WAIT_S)
    assert wrong == []
    assert seen == {"test-0001", "own-a", "own-b"}


def test_setup_and_predict_tell_the_same_version(make_server: Callable[..., ModelServer]) -> None:
    """/setup names the version that /predict answers with, before and after an exchange; /state says why."""
    stores: list[Store] = []

    def pooled(service: Service) -> None:
        stores.append(Store(service.predictor.media))
        service.pool = ModelPool(service.predictor, resolve=stores[0].resolve, load=stores[0].load)

    server = make_server(prepare=pooled)
    address = server.photograph("a.png")
    for active in (None, "own-a", None):
        stores[0].active[ONE] = active
        server.service.pool.refresh(ONE)
        told = server.setup(CONFIG)["model_version"]
        (result,) = server.predict(address).json()["results"]
        assert result["model_version"] == told
        assert told.startswith(active or "test-0001")
        (served,) = server.client.get("/state").json()["learning"]["served"]
        assert served["model_id"] == (active or "test-0001")

"""`spica up` and `spica demo` as a person runs them: a child process, a real Label Studio, the demo's detector."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

import httpx
import pytest
from PIL import Image

from label_studio_helpers import LABEL_CONFIG
from spica.demo import model_folder
from spica.demo.field import write_images
from spica.errors import LabelStudioError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.data_folder import load_or_create
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.up import label_config_for

pytestmark = pytest.mark.label_studio

WAIT_S = 400
LABELS = ["--labels", "spike"]


class Terminal:
    """A running command: its lines as they come, and ways to end it."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spica", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200", "BROWSER": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self._queue: Queue[str | None] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip())
        self._queue.put(None)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until a line matches."""
        deadline = time.monotonic() + WAIT_S
        while (line := self._next(deadline)) is not None:
            self.lines.append(line)
            found = re.search(pattern, line)
            if found is not None:
                return found
        raise AssertionError(f"{pattern!r} did not appear in:\n{self.text}")

    def wait(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + WAIT_S
        while (line := self._next(deadline)) is not None:
            self.lines.append(line)
        return self.process.wait(WAIT_S)

    def _next(self, deadline: float) -> str | None:
        try:
            return self._queue.get(timeout=max(0.1, deadline - time.monotonic()))
        except Empty:
            raise AssertionError(f"nothing more came after:\n{self.text}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Runs `spica …` in an empty folder; what still runs after the test is ended."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str | Path) -> Terminal:
            terminal = Terminal(*arguments, cwd=tmp_path)
            stack.callback(terminal.close)
            return terminal

        yield start


@dataclass(frozen=True)
class Shared:
    """A Label Studio on a data folder of `spica up`, and the folder above all photographs; many runs take it over."""

    process: LabelStudioProcess
    root: Path
    data: Path

    def folder(self, name: str) -> Path:
        """Three rendered photographs."""
        folder = self.root / name
        write_images(folder / "圃場 A", 2, first_seed=1)
        write_images(folder, 1, first_seed=3)
        return folder

    def command(self, folder: Path, *options: str) -> list[str | Path]:
        line: list[str | Path] = ["up", folder, "--weights", model_folder(), "--data-dir", self.data, "--check"]
        return [*line, "--port", "0", "--label-studio-port", "0", *options]

    def project(self, client: LabelStudioClient, title: str) -> Project:
        project = client.find_project(title)
        assert project is not None
        return project


@pytest.fixture(scope="module")
def shared(migrated_data_dir: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One Label Studio for the runs that need none of their own."""
    root = tmp_path_factory.mktemp("up") / "デスクトップ"
    data = root / "spica-data"
    data.mkdir(parents=True)
    migrated_data_dir(data / "label-studio")
    with LabelStudioProcess.start(
        data / "label-studio", port=0, document_root=root, served_root=data / "served"
    ) as process:
        yield Shared(process, root, data)


@pytest.fixture
def photographs(tmp_path: Path, migrated_data_dir: Callable[[Path], Path]) -> Path:
    """Three rendered photographs in a folder on a Japanese desktop, beside a prepared data folder."""
    folder = tmp_path / "デスクトップ" / "写真 #1 +%"
    write_images(folder / "圃場 A", 2, first_seed=1)
    write_images(folder, 1, first_seed=3)
    (tmp_path / "デスクトップ" / "spica-data").mkdir()
    migrated_data_dir(tmp_path / "デスクトップ" / "spica-data" / "label-studio")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_network_address() -> str | None:
    """An address of this machine that others could reach, or None; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def frame(terminal: Terminal, data: Path) -> Iterator[tuple[LabelStudioClient, str]]:
    """The Label Studio of a command that has shown its frame, and its address; Ctrl-C at the end."""
    url = terminal.wait_for(r"Open\s+(http://\S+)/projects/\d+/data")[1]
    terminal.wait_for("Stop")
    with LabelStudioClient(url, load_or_create(data / "label-studio").token) as client:
        yield client, url
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0, terminal.text
    assert "Everything is kept" in terminal.text


def fetched(client: LabelStudioClient, name: str) -> bytes:
    """What Label Studio serves as a local file, b"" if it refuses."""
    answer = client._http.get("/data/local-files/", params={"d": name})
    return answer.content if answer.is_success else b""


def add_storage(client: LabelStudioClient, project: int, path: str, **fields: object) -> bool:
    """Whether Label Studio takes a folder as a local storage and reads it."""
    body = {"project": project, "path": path, "use_blob_urls": True, "recursive_scan": True, **fields}
    try:
        storage = client.call("POST", "/api/storages/localfiles/", json=body)
        client.sync_storage(storage["id"])
    except LabelStudioError:
        return False
    return True


@pytest.mark.slow
def test_the_demo_predicts_all_its_photographs(
    run: Callable[..., Terminal], tmp_path: Path, migrated_data_dir: Callable[[Path], Path]
) -> None:
    """24 photographs are rendered and predicted; the last line counts what Label Studio stores."""
    (tmp_path / "demo" / "spica-data").mkdir(parents=True)
    migrated_data_dir(tmp_path / "demo" / "spica-data" / "label-studio")
    terminal = run("demo", "--check", "--no-browser", "--folder", "demo")
    assert terminal.wait() == 0, terminal.text
    assert terminal.lines[0].startswith("Rendering 24 photographs")
    found = re.fullmatch(r"24 tasks, 24 predicted, (\d+) new boxes", terminal.lines[-1])
    assert found is not None, terminal.text
    assert int(found[1]) > 24


def test_up_adds_new_photographs_and_doubles_nothing(run: Callable[..., Terminal], shared: Shared) -> None:
    """A second run with two more photographs adds these; the predictions of the first keep their ids. The Label Studio
    that runs on the data is used, and left running.
    """
    folder = shared.folder("写真 #1 +%")
    terminal = run(*shared.command(folder))
    assert terminal.wait() == 0, terminal.text
    assert terminal.lines[-1].startswith("3 tasks, 3 predicted, ")
    assert shared.process.is_running
    with shared.process.client() as client:
        project = shared.project(client, folder.name)
        before = {prediction.task: prediction.id for prediction in client.iter_predictions(project.id)}
        uris = [str(task.data["image"]) for task in client.iter_tasks(project.id)]
        assert len(before) == len(set(uris)) == 3
        write_images(folder / "圃場 B", 2, first_seed=10)
        terminal = run(*shared.command(folder))
        assert terminal.wait() == 0, terminal.text
        assert terminal.lines[-1].startswith("5 tasks, 5 predicted, ")
        (backend,) = client.backends(project.id)
        after = {prediction.task: prediction.id for prediction in client.iter_predictions(project.id)}
        (version,) = client.prediction_versions(project.id)
        assert backend.title == version == client.project(project.id).model_version
    assert after.items() >= before.items()
    assert len(after) == 5


def test_up_names_what_it_does_not_take(run: Callable[..., Terminal], shared: Shared) -> None:
    """A folder with a name of one letter: AVIF is predicted, a TIFF is named before anything is started, and other
    labels than at the first time are named with what to do.
    """
    folder = shared.root / "田"
    folder.mkdir()
    with Image.open(write_images(shared.root / "one", 1, first_seed=3)[0]) as photograph:
        for name in ("a.jpg", "b.avif", "grey 16.tif"):
            photograph.save(folder / name)
    terminal = run(*shared.command(folder))
    assert terminal.wait() == 0, terminal.text
    assert terminal.lines[-1].startswith("2 tasks, 2 predicted, ")
    assert re.search(r"^Note: .*passed over: 1 \.tif \(grey 16\.tif\)", terminal.lines[0]), terminal.text
    again = run(*shared.command(folder, "--labels", "spike,leaf"))
    assert again.wait() == 0, again.text
    (note,) = [line for line in again.lines if "Labeling Interface" in line]
    assert note.startswith("Note: ")
    assert "spike, leaf" in note


def test_up_with_a_broken_photograph_predicts_the_others_and_says_which(
    run: Callable[..., Terminal], shared: Shared
) -> None:
    """With --check the exit status is not 0, and the reason is printed."""
    folder = shared.folder("broken")
    (folder / "壊れた.jpg").write_bytes(b"\xff\xd8\xff and then nothing")
    terminal = run(*shared.command(folder))
    assert terminal.wait() == 1, terminal.text
    assert "not every task has a prediction" in terminal.text
    assert "壊れた.jpg" in terminal.text
    assert "Traceback" not in terminal.text


def test_labels_that_the_model_does_not_know_make_no_project(run: Callable[..., Terminal], shared: Shared) -> None:
    """Both name lists are printed; in a data folder that is in use this is seen before a project is made."""
    folder = shared.folder("panicles")
    terminal = run(*shared.command(folder, "--labels", "panicle"))
    assert terminal.wait() == 1, terminal.text
    assert "no class of the model meets a label" in terminal.text
    assert "spike" in terminal.text
    assert "panicle" in terminal.text
    with shared.process.client() as client:
        assert client.find_project(folder.name) is None


def test_no_local_storage_reaches_anything_but_the_photographs(run: Callable[..., Terminal], shared: Shared) -> None:
    """Whoever has an account may add storages: none gives away the password, the database, or what lies beside."""
    parent, data, photographs = shared.root, shared.data, shared.folder("guarded")
    (parent / "private").mkdir()
    (parent / "private" / "diary.txt").write_text("secret", "utf-8")
    terminal = run(*shared.command(photographs))
    assert terminal.wait() == 0, terminal.text
    served, password = data / "served", load_or_create(data / "label-studio").password
    folders = [data, data / "label-studio", data / "logs", parent, parent / "private", served, parent.parent, Path("/")]
    up = [
        *map(str, folders),
        f"{served}/{photographs.name}/../../label-studio",
        f"{served}/../label-studio",
        f"{served}/.",
    ]
    with shared.process.client() as client:
        project = client.create_project("attempts", LABEL_CONFIG).id
        assert not [path for path in up if add_storage(client, project, path)]
        assert not [path for path in up if add_storage(client, project, path, use_blob_urls=False)]
        assert add_storage(client, project, str(served / photographs.name))
        names = ["spica-data/label-studio/credentials.json", "label-studio/credentials.json", "private/diary.txt"]
        tries = [
            f"{before}{name}" for name in names for before in ("", "../", "/", f"{photographs.name}/../../", "../../")
        ]
        tries += [str(data / "label-studio" / "credentials.json"), str(data / "label-studio" / "label_studio.sqlite3")]
        for name in tries:
            content = fetched(client, name)
            assert password.encode() not in content
            assert b"secret" not in content
            assert not content.startswith(b"SQLite")
        image = next(photographs.glob("*.*"))
        assert fetched(client, f"{photographs.name}/{image.name}") == image.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a console's whole group there")
@pytest.mark.parametrize("kind", ["network", "IPv6"])
def test_up_on_another_address_connects_the_model(
    run: Callable[..., Terminal], photographs: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network's address and on ::1, Label Studio may call the model and send it events."""
    host = own_network_address() if kind == "network" else "::1"
    if host is None or (kind == "IPv6" and not socket.has_ipv6):
        pytest.skip("this machine has no such address")
    monkeypatch.setenv("NO_PROXY", host)
    terminal = run(
        *("up", photographs, "--weights", model_folder(), "--no-browser", "--port", "0", "--label-studio-port", "0"),
        *("--host", host, *(["--expose"] if kind == "network" else [])),
    )
    with frame(terminal, photographs.parent / "spica-data") as (client, _):
        assert "3 of 3 photographs" in terminal.text
        assert "Note" not in terminal.text
        project = client.find_project(photographs.name)
        assert project is not None
        (hook,) = client.webhooks(project.id)
        assert ("127.0.0.1" if kind == "IPv6" else host) in hook.url


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_label_studio_ends_with_the_command_and_the_next_run_finds_everything(
    run: Callable[..., Terminal], photographs: Path
) -> None:
    """The frame shows address, login and data; Ctrl-C ends with status 0 and closes both ports. However the command
    ends, its Label Studio ends with it, and the next run has nothing left to do.
    """
    data, port, model_port = photographs.parent / "spica-data", free_port(), free_port()
    command = ["up", photographs, "--weights", model_folder(), "--no-browser"]
    command += ["--label-studio-port", str(port), "--port", str(model_port)]
    terminal = run(*command)
    with frame(terminal, data) as (_, url):
        assert url == f"http://127.0.0.1:{port}"
        assert load_or_create(data / "label-studio").password in terminal.text
        assert str(data) in terminal.text
        health = httpx.get(f"http://127.0.0.1:{model_port}/health", trust_env=False).json()
        assert health["model"]["state"] == "ready"
    assert not answers(f"http://127.0.0.1:{port}")
    assert not answers(f"http://127.0.0.1:{model_port}")
    for sent in (signal.SIGTERM, signal.SIGKILL):
        again = run(*command)
        again.wait_for("Stop")
        assert "3 of 3 photographs, 0 new boxes" in again.text
        state = json.loads((data / "label-studio" / "label-studio.json").read_text("utf-8"))
        again.process.send_signal(sent)
        again.wait()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and Path(f"/proc/{state['pid']}").exists():
            time.sleep(0.1)
        assert not answers(f"http://127.0.0.1:{port}")


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a console's whole group there")
def test_data_of_an_older_spica_is_taken_over(run: Callable[..., Terminal], photographs: Path) -> None:
    """Photographs, labels and addresses stay, nothing is doubled, and the older root is served no more."""
    parent, data = photographs.parent, photographs.parent / "spica-data"
    with (
        LabelStudioProcess.start(data / "label-studio", port=0, document_root=parent) as process,
        process.client() as client,
    ):
        project = client.create_project(photographs.name, label_config_for(["spike"]))
        client.sync_storage(client.ensure_local_storage(project.id, photographs).id)
        before = {task.id: task.data["image"] for task in client.iter_tasks(project.id)}
        client.call("POST", f"/api/tasks/{min(before)}/annotations/", json={"result": []})
        running = run("up", photographs, "--weights", model_folder(), *LABELS, "--check", "--port", "0")
        assert running.wait() == 0, running.text
        assert "Note: the Label Studio that runs on this data serves all files below" in running.text
    terminal = run(
        "up", photographs, "--weights", model_folder(), "--no-browser", "--port", "0", "--label-studio-port", "0"
    )
    with frame(terminal, data) as (client, _):
        assert "3 of 3 photographs" in terminal.text
        assert "serves all files" not in terminal.text
        assert {task.id: task.data["image"] for task in client.iter_tasks(project.id)} == before
        assert sum(task.total_annotations for task in client.iter_tasks(project.id)) == 1
        (storage,) = client.local_storages(project.id)
        assert storage.path == str(data / "served" / photographs.name)
        image = next(photographs.glob("*.*"))
        assert fetched(client, f"{photographs.name}/{image.name}") == image.read_bytes()
        assert fetched(client, "spica-data/label-studio/credentials.json") == b""


def test_a_taken_port_is_said_before_anything_is_started(run: Callable[..., Terminal], photographs: Path) -> None:
    """Label Studio itself would silently take another one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option in ("--port", "--label-studio-port"):
            other = "--label-studio-port" if option == "--port" else "--port"
            terminal = run(
                *("up", photographs, "--weights", model_folder(), *LABELS, "--check", option, port, other, "0")
            )
            assert terminal.wait() == 1
            assert port in terminal.text
            assert option in terminal.text
            assert "Traceback" not in terminal.text

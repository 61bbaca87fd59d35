"""Starting, sharing and stopping a real Label Studio."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from label_studio_helpers import LABEL_CONFIG, LabelStudioFactory, delete_project
from spica.errors import LaunchError, StorageError
from spica.labelstudio import launch
from spica.labelstudio.data_folder import LOCK_NAME, STATE_NAME, RunningState, load_or_create
from spica.labelstudio.launch import LabelStudioProcess
from spica.locks import Lock

needs_label_studio = pytest.mark.label_studio
MakeDataDir = Callable[[Path], Path]

HOSTILE = {
    "DEBUG": "release",
    "PORT": "1",
    "HOST": "nonsense",
    "DJANGO_DB": "oracle",
    "CI": "please",
    "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "nonsense",
    "LABEL_STUDIO_HOST": "https://elsewhere.example/sub",
    "DJANGO_SETTINGS_MODULE": "nothing.here",
    "PYTHONWARNINGS": "error",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "",
}
"""Settings meant for something else, or for another Label Studio."""


def gone(pid: int) -> bool:
    """Whether no process of ours has this number any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# Against a real Label Studio


@needs_label_studio
def test_started(label_studio: LabelStudioProcess) -> None:
    """A started Label Studio answers at its own address, with its account, and says so in the state file."""
    state = RunningState.read(label_studio.data_dir)
    assert state is not None
    assert (state.url, state.port, state.pid) == (label_studio.url, label_studio.port, label_studio.pid)
    assert label_studio.is_running
    assert not label_studio.adopted
    assert label_studio.url == f"http://127.0.0.1:{label_studio.port}"


@needs_label_studio
def test_secrets_are_kept(label_studio: LabelStudioProcess) -> None:
    """Password and token are readable by their owner only, and in no log and no representation."""
    path = label_studio.data_dir / "credentials.json"
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o600
    told = label_studio.log_file.read_text(encoding="utf-8") + repr(label_studio.credentials)
    assert label_studio.credentials.password not in told
    assert label_studio.credentials.token not in told


@needs_label_studio
def test_login_form(label_studio: LabelStudioProcess) -> None:
    """The e-mail address and the password open the login page, as a person would use them."""
    with httpx.Client(base_url=label_studio.url, trust_env=False) as http:
        http.get("/user/login/")
        form = {
            "email": label_studio.credentials.email,
            "password": label_studio.credentials.password,
            "csrfmiddlewaretoken": http.cookies["csrftoken"],
        }
        answer = http.post("/user/login/", data=form, headers={"Referer": f"{label_studio.url}/user/login/"})
        assert answer.is_redirect
        assert http.get("/api/current-user/whoami").json()["email"] == label_studio.credentials.email


@needs_label_studio
def test_stays_local(label_studio: LabelStudioProcess) -> None:
    """It listens on this machine only, answers to its own names only, and still refuses private networks."""
    with httpx.Client(base_url=label_studio.url, trust_env=False) as http:
        assert http.get("/health").is_success
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 400
    with label_studio.client() as client:
        created = client.create_project("stays local", LABEL_CONFIG)
        for url in ("http://10.1.2.3:9090", "http://169.254.169.254"):
            answer = httpx.post(
                f"{label_studio.url}/api/ml/",
                json={"url": url, "project": created.id},
                headers={"Authorization": f"Token {label_studio.credentials.token}"},
                trust_env=False,
            )
            assert answer.status_code == 403
        delete_project(client, created.id)
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"}:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert address.startswith("127.") or probe.connect_ex((address, label_studio.port)) != 0


@needs_label_studio
def test_adopted(label_studio: LabelStudioProcess) -> None:
    """A second start in the same folder takes the running one, whatever port it asks for, and leaves it running."""
    second = LabelStudioProcess.start(label_studio.data_dir, port=1, document_root=label_studio.document_root)
    assert second.adopted
    assert second.url == label_studio.url
    assert second.credentials == label_studio.credentials
    assert second.is_running
    second.close()
    assert label_studio.is_running
    assert RunningState.read(label_studio.data_dir) is not None


@needs_label_studio
def test_stopped_and_started_again(
    label_studio_factory: LabelStudioFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After closing, process, state and port are gone; a start in the same folder finds everything as it was.

    Settings of others in the environment do not reach it.
    """
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    first = label_studio_factory()
    with first.client() as client:
        project = client.create_project("kept", LABEL_CONFIG)
    pid, port = first.pid, first.port
    first.close()
    first.close()
    assert gone(pid)
    assert not first.is_running
    assert not (first.data_dir / STATE_NAME).exists()
    # A stale state with a number that somebody else has now: only the server itself is believed.
    RunningState(os.getpid(), port, first.url, str(tmp_path)).write(first.data_dir)
    told: list[str] = []
    with LabelStudioProcess.start(
        first.data_dir, port=port, document_root=first.document_root, on_progress=told.append, timeout_s=500
    ) as again:
        assert not again.adopted
        assert again.port == port
        assert again.credentials == first.credentials
        assert told == ["starting Label Studio"]
        with again.client() as client:
            assert client.find_project("kept") == project


@needs_label_studio
def test_database_of_somebody_else(
    migrated_data_dir: MakeDataDir, label_studio_factory: LabelStudioFactory, tmp_path: Path
) -> None:
    """In a folder whose database exists without our account and with legacy tokens off, an account of its own is
    added with a personal token, the setting stays off, and the next start uses the same token.
    """
    first = label_studio_factory()
    with first.client() as client:
        client.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": False})
    first.close()
    (first.data_dir / "credentials.json").unlink()
    tokens = []
    for _ in range(2):
        with LabelStudioProcess.start(
            first.data_dir, port=0, document_root=first.document_root, timeout_s=500
        ) as process:
            assert process.credentials.email != first.credentials.email
            tokens.append(process.credentials.token)
            with process.client() as client:
                assert client.whoami().email == process.credentials.email
                assert client.call("GET", "/api/jwt/settings")["legacy_api_tokens_enabled"] is False
    assert tokens[0] == tokens[1]
    assert tokens[0].count(".") == 2


STARTER = """
import sys, time
from pathlib import Path
from spica.labelstudio.launch import LabelStudioProcess
with LabelStudioProcess.start(
    Path(sys.argv[1]), port=0, document_root=Path(sys.argv[2]), timeout_s=500
) as process:
    print(process.pid, process.port, flush=True)
    sys.stdin.read()
"""


@needs_label_studio
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("interrupt", marks=pytest.mark.exhaustive),
        pytest.param("terminate", marks=pytest.mark.exhaustive),
        "kill",
    ],
)
def test_no_orphan(migrated_data_dir: MakeDataDir, tmp_path: Path, how: str) -> None:
    """However the process that started it ends, Label Studio ends too."""
    data_dir = migrated_data_dir(tmp_path / "data")
    documents = tmp_path / "documents"
    documents.mkdir()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(data_dir), str(documents)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        pid, port = map(int, starter.stdout.readline().split())
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
        starter.send_signal({"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill": signal.SIGKILL}[how])
        starter.wait()
        with contextlib.suppress(ChildProcessError):  # where it became our child's orphan, init reaps it
            _wait_until_gone(pid)


def _wait_until_gone(pid: int) -> None:
    """Return when the process has ended; the test's timeout ends it otherwise."""
    pulse = threading.Event()
    while not gone(pid):
        pulse.wait(0.05)


@needs_label_studio
def test_two_at_once(migrated_data_dir: MakeDataDir, tmp_path: Path) -> None:
    """Two starts in one folder at the same time give one Label Studio, and the second says that it waits."""
    data_dir = migrated_data_dir(tmp_path / "data")
    started: list[LabelStudioProcess] = []
    told: list[str] = []

    def start() -> None:
        started.append(
            LabelStudioProcess.start(data_dir, port=0, document_root=tmp_path, on_progress=told.append, timeout_s=500)
        )

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert sorted(process.adopted for process in started) == [False, True]
        assert started[0].url == started[1].url
        assert sum("waiting" in text for text in told) == 1
    finally:
        for process in started:
            process.close()


@needs_label_studio
def test_damaged_database(migrated_data_dir: MakeDataDir, tmp_path: Path) -> None:
    """A Label Studio that ends while starting gives its last lines and a remedy, and leaves the folder free."""
    data_dir = migrated_data_dir(tmp_path / "data")
    (data_dir / "label_studio.sqlite3").write_bytes(b"no database at all" * 1000)
    with pytest.raises(LaunchError, match="ended while starting") as caught:
        LabelStudioProcess.start(data_dir, port=0, document_root=tmp_path, timeout_s=500)
    assert "not a database" in str(caught.value.got)
    assert "damaged" in str(caught.value.hint)
    credentials = load_or_create(data_dir)
    assert credentials.password not in str(caught.value)
    lock = Lock(data_dir / LOCK_NAME)
    assert lock.acquire()
    lock.release()


# Without a Label Studio


def test_port_taken(tmp_path: Path) -> None:
    """A taken port is named, together with the option that changes it, before anything is started."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(LaunchError, match=f"127.0.0.1:{port}") as caught:
            LabelStudioProcess.start(tmp_path / "data", port=port, document_root=tmp_path)
    assert "--label-studio-port" in str(caught.value.hint)
    assert not (tmp_path / "data" / launch.LOG_NAME).exists()


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Label Studio, the command that installs it is named."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LaunchError) as caught:
        LabelStudioProcess.start(tmp_path / "data", port=0, document_root=tmp_path)
    assert caught.value.hint == 'pip install "spica[label-studio]"'


def test_folder_is_a_file(tmp_path: Path) -> None:
    """A data folder that can't be one is named with the option that changes it."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="--data-dir"):
        LabelStudioProcess.start(tmp_path / "file" / "data", port=0, document_root=tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser writes everywhere")
def test_folder_not_writable(tmp_path: Path) -> None:
    """A data folder that can't be written is named with the option that changes it."""
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="--data-dir"):
        LabelStudioProcess.start(tmp_path, port=0, document_root=tmp_path)


def test_no_address_of_this_machine(tmp_path: Path) -> None:
    """A host that is not this machine's is named with the option that changes it."""
    with pytest.raises(LaunchError, match="--host"):
        LabelStudioProcess.start(tmp_path / "data", port=0, document_root=tmp_path, host="192.0.2.1")


def test_folder_held_by_another(tmp_path: Path) -> None:
    """A folder in which another start never gets ready is given up with a clear message."""
    (tmp_path / "data").mkdir()
    lock = Lock(tmp_path / "data" / LOCK_NAME)
    assert lock.acquire()
    try:
        with pytest.raises(LaunchError, match="another program"):
            LabelStudioProcess.start(tmp_path / "data", port=0, document_root=tmp_path, timeout_s=0)
    finally:
        lock.release()


def test_early_end_shows_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a child that ends early come without password and token, and its exit status is told."""
    folder = tmp_path / "data"
    folder.mkdir()
    credentials = load_or_create(folder)
    script = tmp_path / "child.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            print("token", os.environ["LABEL_STUDIO_USER_TOKEN"], "password", os.environ["LABEL_STUDIO_PASSWORD"])
            print("OSError: [Errno 28] No space left on device")
            sys.exit(7)
            """
        ),
        encoding="utf-8",
    )
    monkeypatch.setattr(launch, "_command", lambda host, port: [sys.executable, str(script)])
    monkeypatch.setattr(launch, "_require_installed", lambda: None)
    with pytest.raises(LaunchError, match="exit status 7") as caught:
        LabelStudioProcess.start(folder, port=0, document_root=tmp_path)
    assert credentials.token not in str(caught.value)
    assert credentials.password not in str(caught.value)
    assert "make room" in str(caught.value.hint)


def test_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Label Studio that is not ready in time is stopped, and the error says what it was doing."""
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    monkeypatch.setattr(launch, "_command", lambda host, port: [sys.executable, "-c", script])
    monkeypatch.setattr(launch, "_require_installed", lambda: None)
    with pytest.raises(LaunchError, match="ready in time"):
        LabelStudioProcess.start(tmp_path / "data", port=0, document_root=tmp_path, timeout_s=2)
    log = (tmp_path / "data" / launch.LOG_NAME).read_text(encoding="utf-8")
    assert gone(int(log.split()[-1]))


def test_grandchildren_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child itself started ends with it, also when it does not listen."""
    if sys.platform == "win32":
        pytest.skip("groups of processes of POSIX")
    script = tmp_path / "child.py"
    script.write_text(
        textwrap.dedent(
            """
            import signal, subprocess, sys
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            print(subprocess.Popen([sys.executable, "-c", stubborn]).pid, flush=True)
            sys.exit(3)
            """
        ),
        encoding="utf-8",
    )
    monkeypatch.setattr(launch, "_command", lambda host, port: [sys.executable, str(script)])
    monkeypatch.setattr(launch, "_require_installed", lambda: None)
    with pytest.raises(LaunchError, match="exit status 3"):
        LabelStudioProcess.start(tmp_path / "data", port=0, document_root=tmp_path)
    log = (tmp_path / "data" / launch.LOG_NAME).read_text(encoding="utf-8")
    _wait_until_gone(int(log.split()[-1]))


def test_state_is_no_state(tmp_path: Path) -> None:
    """A state file that can't be understood counts as none."""
    for text in ("", "[]", "{}", json.dumps({"pid": "x"})):
        (tmp_path / STATE_NAME).write_text(text, encoding="utf-8")
        assert RunningState.read(tmp_path) is None

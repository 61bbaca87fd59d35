"""`spica doctor` without a Label Studio: who answers at an address, what is shown, what is to be pasted."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from rich.console import Console

from fake_spica import FakeSpica
from scripted_backend import ScriptedBackend
from spica.doctor import Finding, examine, print_findings
from spica.doctor.checks import Check, Examination, ask, covered, run_checks
from spica.doctor.remedies import environment
from spica.errors import LabelStudioError
from spica.labelstudio.records import LocalStorage
from spica.settings import Settings


class FakeLabelStudio(ScriptedBackend):
    """Answers its release and nothing else."""

    def __init__(self, release: str) -> None:
        super().__init__()
        self.release = release

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """The release, or 401."""
        if path == "/api/version":
            return 200, {"release": self.release, "label-studio-os-package": {"version": self.release}}
        return 401, {"detail": "Invalid token."}


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def banner_server(banner: bytes) -> Iterator[int]:
    """Greets whoever connects with ``banner`` and hangs up; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(banner)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def look(*, url: str = "", model_url: str = "", project: int | None = None, **fields: Any) -> dict[str, Finding]:
    """The findings by check."""
    nowhere = f"http://127.0.0.1:{closed_port()}"
    settings = Settings(label_studio_url=url or nowhere, **fields)
    found = examine(settings, project=project, model_url=model_url or nowhere)
    return {finding.check: finding for finding in found}


def test_nothing_runs() -> None:
    """With nothing running, two checks fail, each with the command that starts what is missing; the rest waits."""
    found = look()
    failed = {check: finding for check, finding in found.items() if not finding.ok}
    assert failed.keys() == {"label-studio-reachable", "model-server-reachable"}
    assert "spica up" in str(failed["label-studio-reachable"].hint)
    assert "spica serve --weights FILE" in str(failed["model-server-reachable"].hint)
    assert {finding.status for check, finding in found.items() if check not in failed} == {"skipped"}


def test_port_of_another_program() -> None:
    """A listener that speaks no HTTP is told from nobody listening, for both servers."""
    with banner_server(b"SSH-2.0-OpenSSH_9.6\r\n") as port:
        found = look(url=f"http://127.0.0.1:{port}", model_url=f"http://127.0.0.1:{port}")
    for check in ("label-studio-reachable", "model-server-reachable"):
        assert found[check].status == "problem"
        assert "another program has this port" in found[check].what
        assert "--url" in str(found[check].hint) or "--model-url" in str(found[check].hint)


def test_other_web_servers() -> None:
    """A web server that is neither Label Studio nor Spica's is named as such."""
    with ScriptedBackend() as other:
        found = look(url=other.url, model_url=other.url)
    assert not found["label-studio-reachable"].ok
    assert not found["model-server-reachable"].ok
    assert found["label-studio-reachable"].what == "what answers there is not Label Studio"
    assert found["model-server-reachable"].what == "what answers there is not a model server of Spica's"


def test_other_model_server() -> None:
    """Another kind of model server is called by its class."""
    with FakeSpica() as other:
        other.answer = lambda path, body: (200, {"status": "UP", "model_class": "YOLO"})  # type: ignore[method-assign]
        finding = look(model_url=other.url)["model-server-reachable"]
    assert not finding.ok
    assert finding.what == "another model server answers there, not Spica's"
    assert finding.got == "model_class YOLO"


@pytest.mark.parametrize("address", ["127.0.0.1:8080", "ftp://example.org", "http://", "nonsense", "http://[::1"])
def test_no_address(address: str) -> None:
    """What is no web address is a problem, never a traceback."""
    found = look(url=address, model_url=address)
    for check in ("label-studio-reachable", "model-server-reachable"):
        assert found[check].status == "problem"
        assert found[check].hint


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("1.23.2", "release 1.23.2, with which Spica is tested"),
        ("1.23.9", "release 1.23.9, with which Spica is tested"),
        ("1.9.0", "release 1.9.0, older than 1.23"),
        ("1.100.0", "release 1.100.0, newer than 1.23"),
        ("2.0.0dev1", "release 2.0.0dev1, newer than 1.23"),
        ("", "Label Studio does not say its release"),
    ],
)
def test_release(release: str, words: str) -> None:
    """Releases are compared by number, and an untested one is no problem but a note."""
    with FakeLabelStudio(release) as label_studio:
        finding = look(url=label_studio.url)["label-studio-version"]
    assert (finding.status, finding.what) == ("ok", words)
    assert (finding.hint is None) == release.startswith("1.23.")


def test_missing_token() -> None:
    """Without a token, the page to copy it from and the line that sets it are named."""
    with FakeLabelStudio("1.23.2") as label_studio:
        finding = look(url=label_studio.url)["token"]
    assert finding.status == "problem"
    assert f"{label_studio.url}/user/account" in str(finding.hint)
    assert "LABEL_STUDIO_API_KEY" in str(finding.hint)
    assert "--data-dir" in str(finding.hint)


def test_a_data_folder_without_a_label_studio_is_named(tmp_path: Path) -> None:
    """Nobody who gave --data-dir is told to give it."""
    with FakeLabelStudio("1.23.2") as label_studio:
        finding = look(url=label_studio.url, data_dir=tmp_path)["token"]
    assert str(tmp_path) in str(finding.got)
    assert "--data-dir" not in str(finding.hint)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("wrong-token", "Label Studio refused the legacy token"),
        ("Token abc", "this can't be a token of Label Studio's"),
    ],
)
def test_bad_token(token: str, words: str) -> None:
    """A token that is refused, or can't be one, is a problem that never repeats the token."""
    with FakeLabelStudio("1.23.2") as label_studio:
        found = look(url=label_studio.url, label_studio_api_key=SecretStr(token), project=7)
    assert (found["token"].ok, found["token"].what) == (False, words)
    assert token not in json.dumps([finding.as_json() for finding in found.values()])
    assert found["project-exists"].status == "skipped"


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ({"state": "ready"}, "ok", "is loaded"),
        ({"state": "loading"}, "ok", "is still loading"),
        ({"state": "failed", "error": {"message": "truncated", "hint": "copy it again"}}, "problem", "truncated"),
        ({"state": "failed", "error": None}, "problem", "failed"),
        ({"state": "closed"}, "problem", "closed"),
        ({"state": None}, "problem", "None"),
    ],
)
def test_model_state(model: dict[str, Any], status: str, words: str) -> None:
    """The model's own reason and remedy are passed on; loading is no problem."""
    with FakeSpica(**model) as server:
        finding = look(model_url=server.url)["model-loaded"]
    assert finding.status == status
    assert words in finding.what
    if isinstance(model.get("error"), dict):
        assert finding.hint == "copy it again"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "it asks for user and password"),
        ("me:wrong", "the model server refuses this user and password"),
        ("me:pass:word", None),
    ],
)
def test_password(given: str | None, what: str | None) -> None:
    """A model server with a password says whether it is missing, wrong or right."""
    with FakeSpica() as server:
        server.basic_auth = "me:pass:word"
        secret = SecretStr(given) if given is not None else None
        finding = look(model_url=server.url, basic_auth=secret)["model-server-reachable"]
    if what is None:
        assert finding.status == "ok"
    else:
        assert (finding.status, finding.what) == ("problem", what)
        assert "SPICA_BASIC_AUTH" in str(finding.hint)


def test_reach_tells_kinds_apart() -> None:
    """Nobody, no HTTP, no JSON and JSON are four different answers."""
    with ScriptedBackend() as server, banner_server(b"") as silent:
        assert ask(f"http://127.0.0.1:{closed_port()}/").kind == "closed"
        assert ask(f"http://127.0.0.1:{silent}/").kind == "foreign"
        assert ask(f"{server.url}/health").fields == {"status": "UP"}
        assert ask(f"{server.url}/setup", json={}).fields == {"model_version": "scripted-1"}


def test_a_check_that_fails_ends_no_other() -> None:
    """Whatever a check raises becomes a finding; one that needs it is skipped with the reason, the next goes on."""

    def known(_: Examination) -> Finding:
        raise LabelStudioError("it refused", where="here", expected="200", got="500", hint="look there")

    def unforeseen(_: Examination) -> Finding:
        raise KeyError("total")

    def fine(_: Examination) -> Finding:
        return Finding("", "", "ok", "fine")

    table = [
        Check("first", known),
        Check("second", unforeseen),
        Check("third", fine, "first", "it waits"),
        Check("fourth", fine, "first"),
        Check("fifth", fine),
        Check("sixth", fine, "fifth"),
    ]
    first, second, third, *others = run_checks(table, Examination(Settings(), ""), "Project 1", 1)
    assert (first.what, first.where, first.got, first.hint) == (
        "it refused",
        "here",
        "500 (expected: 200)",
        "look there",
    )
    assert (second.ok, second.got) == (False, "KeyError: 'total'")
    assert (third.check, third.group, third.project, third.status, third.what) == (
        "third",
        "Project 1",
        1,
        "skipped",
        "it waits",
    )
    assert [(finding.check, finding.status) for finding in others] == [("fifth", "ok"), ("sixth", "ok")]


FINDINGS = [
    Finding("token", "Label Studio", "ok", "the legacy token works"),
    Finding("webhook", "Project 1 (麦)", "problem", "no [bold] webhook", "here", "a\nb", "do this:\n" + "x" * 200, 1),
    Finding("labels-match", "Project 1 (麦)", "skipped", "the server can't be asked", project=1),
]


def shown(encoding: str, findings: list[Finding] = FINDINGS) -> str:
    """What a console of this encoding, 80 columns wide, shows."""
    buffer = io.BytesIO()
    console = Console(file=io.TextIOWrapper(buffer, encoding, newline="\n"), width=80, force_terminal=False)
    print_findings(findings, console)
    console.file.flush()
    return buffer.getvalue().decode(encoding)


def test_output() -> None:
    """Findings stand below what they belong to, remedies below them in lines that can be pasted whole."""
    assert shown("utf-8").splitlines() == [
        "Label Studio",
        "  ✓ the legacy token works",
        "",
        "Project 1 (麦)",
        "  ✗ no [bold] webhook",
        "    where: here",
        "    got: a b",
        "    to do: do this:",
        "      " + "x" * 200,
        "  – the server can't be asked",
        "",
        "1 problem. 1 check could not be made.",
    ]


@pytest.mark.parametrize("encoding", ["cp932", "cp1252", "ascii"])
def test_output_of_poor_consoles(encoding: str) -> None:
    """A console without the marks gets plain ones, and no character breaks it."""
    lines = shown(encoding).splitlines()
    assert lines[1].strip() == "ok the legacy token works"
    assert [line[2:4] for line in lines if line.startswith("  ") and line[2] != " "] == ["ok", "XX", "--"]


def test_output_of_all_well() -> None:
    """With nothing wrong, the last line says so."""
    assert shown("utf-8", FINDINGS[:1]).splitlines()[-1] == "All is well."


def test_json() -> None:
    """Programs get stable names, and can tell a passed check from a skipped one."""
    assert FINDINGS[2].as_json() == {
        "check": "labels-match",
        "status": "skipped",
        "project": 1,
        "what": "the server can't be asked",
        "where": None,
        "got": None,
        "hint": None,
    }
    assert [finding.ok for finding in FINDINGS] == [True, False, True]


def test_environment_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are shown for each shell, this system's own first."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert environment(A="C:\\my data", B="it's").splitlines() == [
        "  PowerShell:  $env:A='C:\\my data'; $env:B='it''s'",
        '  cmd:         set "A=C:\\my data" & set "B=it\'s"',
        "  bash, zsh:   export A='C:\\my data' B='it'\"'\"'s'",
    ]
    monkeypatch.setattr(sys, "platform", "linux")
    assert environment(A="1").splitlines()[0] == "  bash, zsh:   export A=1"


@pytest.mark.skipif(sys.platform == "win32", reason="runs a POSIX shell")
def test_bash_line_works() -> None:
    """The line for bash, pasted into a shell, sets just these values."""
    line = environment(FIRST="it's $HOME", SECOND="写真 1").splitlines()[0].partition(":   ")[2]
    command = f'{line}; {sys.executable} -c \'import os; print(os.environ["FIRST"], os.environ["SECOND"])\''
    env = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True, env=env)
    assert done.stdout.decode().strip() == "it's $HOME 写真 1"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_a_storage_that_links_to_the_photographs_covers_them(tmp_path: Path) -> None:
    """`spica up` gives Label Studio such links; nobody is told to add the folder that is served already."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "served").symlink_to(tmp_path / "photos", target_is_directory=True)
    body = {"id": 1, "path": str(tmp_path / "served"), "recursive_scan": True, "use_blob_urls": True}
    storages = [LocalStorage.read(body)]
    assert covered(tmp_path / "photos" / "a" / "b.jpg", storages)
    assert not covered(tmp_path / "photos-2" / "b.jpg", storages)

"""How Spica's own HTTP clients reach a server: proxies of the environment, and certificates that nobody vouches for."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fake_spica import FakeSpica
from recording_server import Answer, RecordingServer
from spica.connect import RemoteServer
from spica.doctor import examine
from spica.errors import SpicaError, UsageError
from spica.labelstudio.client import LabelStudioClient
from spica.project import ProjectKey
from spica.server.app import _CallersAuth, _post
from spica.settings import Settings

USER = {"id": 1, "email": "a@b.c"}
BODY = {**USER, "model_class": "Spica", "classes": ["spike"], "model_version": "v1", "problems": []}
"""Enough of an answer for every client."""


def whoami(url: str) -> Any:
    with LabelStudioClient(url, "f" * 40) as client:
        return client.whoami()


def state(url: str) -> Any:
    with RemoteServer(url, None) as server:
        return server.state()


def setup(url: str) -> Any:
    with RemoteServer(url, None) as server:
        return server.setup(ProjectKey(1), "<View/>")


CLIENTS: dict[str, Callable[[str], Any]] = {
    "Label Studio": whoami,
    "the commands about a server": state,
    "spica connect": setup,
}


@pytest.fixture
def _proxy_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_proxy_that_is_gone")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("client", CLIENTS)
def test_no_proxy_is_asked_for_this_machine(client: str, host: str) -> None:
    """With HTTP_PROXY set and no NO_PROXY, every client still reaches a server of this machine."""
    with RecordingServer(lambda asked: Answer(json.dumps(BODY).encode())) as server:
        assert CLIENTS[client](server.url.replace("127.0.0.1", host))


@pytest.mark.usefixtures("_proxy_that_is_gone")
def test_the_forwarded_action_asks_no_proxy_for_this_machine() -> None:
    """Label Studio's answer comes back, and not the trouble of a proxy."""
    with RecordingServer(lambda asked: Answer(b"{}", 418)) as server:
        assert _post(server.url, {"project": "1"}, _CallersAuth("Token x"), b"").status_code == 418


@pytest.mark.usefixtures("_proxy_that_is_gone")
def test_the_doctor_asks_no_proxy_for_this_machine() -> None:
    """A model server that runs is found."""
    with FakeSpica() as server:
        findings = examine(Settings(label_studio_url="http://127.0.0.1:9"), project=None, model_url=server.url)
    assert [each.status for each in findings if each.check == "model-server-reachable"] == ["ok"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a key and a certificate for 127.0.0.1 that vouches for itself."""
    pytest.importorskip("cryptography", reason="comes with the extra spica[label-studio]")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "lab.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def https(certificate: Path) -> Iterator[str]:
    """The address of a server with that certificate, which answers as Label Studio and as Spica would."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = json.dumps({**BODY, "release": "1.23.2", "label-studio-os-package": {}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are part of the tests."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


TOLD = [name for name in CLIENTS if name != "spica models activate"]  # which says only that it could not tell


@pytest.mark.parametrize("client", TOLD)
def test_an_untrusted_certificate_is_named_with_what_to_set(client: str, https: str) -> None:
    """It is not said that nothing runs there."""
    with pytest.raises(SpicaError) as refused:
        CLIENTS[client](https)
    assert "self-signed certificate" in str(refused.value)
    assert "SSL_CERT_FILE" in str(refused.value.hint)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_that_is_trusted_by_ssl_cert_file_works_on_this_machine(
    client: str, https: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the message says to set is heeded."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert CLIENTS[client](https)


@pytest.mark.parametrize("trusted", [False, True])
def test_the_doctor_names_an_untrusted_certificate(
    trusted: bool, https: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio's and the model server's alike, until SSL_CERT_FILE names it."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    found = {each.check: each for each in examine(Settings(label_studio_url=https), project=None, model_url=https)}
    for check in ("label-studio-reachable", "model-server-reachable"):
        finding = found[check]
        assert finding.ok is trusted
        assert trusted or ("certificate" in finding.what and "SSL_CERT_FILE" in str(finding.hint))


def test_certificates_that_can_not_be_read_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong SSL_CERT_FILE is a mistake in a setting, not an internal error."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    with pytest.raises(UsageError, match="SSL_CERT_FILE"):
        whoami("http://127.0.0.1:9")

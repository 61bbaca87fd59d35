"""Finding images' bytes: on disk, at a Label Studio, elsewhere. The servers are real and record their requests."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import socket
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest

from recording_server import Answer, Asked, RecordingServer
from spica.errors import ConfinementError, MediaError
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.media import MediaReader

TOKEN = "0123456789abcdef0123456789abcdef01234567"
IMAGE = b"\x89PNG not really, but bytes are bytes here"
NOWHERE = "http://ls.invalid:8080"

Form = Literal["NFC", "NFD"]
Reader = Callable[..., MediaReader]
Serve = Callable[..., RecordingServer]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def reader(stack: ExitStack) -> Reader:
    """Makes readers that are closed after the test."""

    def make(url: str = NOWHERE, *, token: str | None = None, **options: Any) -> MediaReader:
        auth = None if token is None else LabelStudioAuth(url, token)
        usual: dict[str, Any] = {"document_root": None, "media_dir": None, "max_bytes": 10_000, "timeout_s": 20.0}
        return stack.enter_context(MediaReader(label_studio_url=url, auth=auth, **{**usual, **options}))

    return make


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    """Starts servers that are stopped after the test: ``serve(answer)`` or ``serve(bytes)``."""

    def make(answer: Callable[[Asked], Answer] | Answer) -> RecordingServer:
        given = answer if callable(answer) else lambda _asked: answer
        return stack.enter_context(RecordingServer(given))

    return make


def put(path: Path, data: bytes = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


NAMES = [
    "a.jpg",
    "圃場/穂 1.jpg",
    "a+b.jpg",
    "50%.jpg",
    "100%25.jpg",
    "#1 & co.jpg",
    "a=b;c.jpg",
    "ünï.jpg",
    "deep/er/and/deeper.jpg",
    "...dots.jpg",
    "a..b/c.jpg",
]


@pytest.mark.parametrize("prefix", ["", "http://host:8080", "https://host/sub/path", "/sub/path"])
@pytest.mark.parametrize("name", NAMES)
def test_local_files_as_label_studio_writes_them(name: str, prefix: str, reader: Reader, tmp_path: Path) -> None:
    """Every name that Label Studio's storage writes is read on disk, with any host and sub-path before it."""
    put(tmp_path / name)
    assert reader(document_root=tmp_path).read(f"{prefix}/data/local-files/?d={quote(name)}") == IMAGE


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/local-files/?d=a+b.jpg", "a b.jpg"),
        ("/data/local-files/?d=a+b.jpg", "a+b.jpg"),
        ("/data/local-files/?d=a&b.jpg", "a&b.jpg"),
        ("/data/local-files/?d=a#1.jpg", "a#1.jpg"),
        ("/data/local-files/?d=圃場/a b.jpg", "圃場/a b.jpg"),
        ("/data/local-files?d=a.jpg", "a.jpg"),
        ("/data/local-files/?x=1&d=a.jpg", "a.jpg"),
        ("/data/local-files/?d=/sub/a.jpg", "sub/a.jpg"),
        ("  /data/local-files/?d=a.jpg\n", "a.jpg"),
        ("/data/local-files/?d=sub/./a.jpg", "sub/a.jpg"),
    ],
    ids=["plus-space", "plus", "ampersand", "hash", "raw", "no-slash", "second", "leading-slash", "space", "dot"],
)
def test_local_files_as_people_write_them(address: str, name: str, reader: Reader, tmp_path: Path) -> None:
    """An address written by hand is read as Label Studio reads it, and literally where that finds nothing."""
    put(tmp_path / name)
    assert reader(document_root=tmp_path).read(address) == IMAGE


def test_label_studios_reading_comes_first(reader: Reader, tmp_path: Path) -> None:
    """Where both readings of a bare + exist, the one that Label Studio shows is read."""
    put(tmp_path / "a b.jpg", b"space")
    put(tmp_path / "a+b.jpg", b"plus")
    assert reader(document_root=tmp_path).read("/data/local-files/?d=a+b.jpg") == b"space"


@pytest.mark.skipif(os.sep != "/", reason="there the backslash is the separator anyway")
def test_backslashes_of_a_label_studio_on_windows(reader: Reader, tmp_path: Path) -> None:
    """Label Studio on Windows writes backslashes; the same files are found on other systems."""
    put(tmp_path / "圃場" / "a.jpg")
    assert reader(document_root=tmp_path).read(f"/data/local-files/?d={quote('圃場')}%5Ca.jpg") == IMAGE


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_unicode_forms_find_the_file(stored: Form, asked: Form, reader: Reader, tmp_path: Path) -> None:
    """A file named in composed letters is found by decomposed ones and the other way round."""
    put(tmp_path / unicodedata.normalize(stored, "ガーデン é.jpg"))
    address = f"/data/local-files/?d={quote(unicodedata.normalize(asked, 'ガーデン é.jpg'))}"
    assert reader(document_root=tmp_path).read(address) == IMAGE


UPLOAD = "upload/3/1a2b3c4d-穂 +1%#.jpg"


@pytest.mark.parametrize(
    "address",
    [
        f"/data/{quote(UPLOAD)}",
        f"/ls/data/{quote(UPLOAD)}",
        f"http://host:8080/data/{quote(UPLOAD)}",
        f"https://host/ls/data/{quote(UPLOAD)}",
        f"/data/{UPLOAD}",
        f"/storage-data/uploaded/?filepath={quote(UPLOAD)}",
        f"/storage-data/uploaded/?filepath={quote(quote(UPLOAD))}",
        f"/storage-data/uploaded/?filepath={UPLOAD}",
        f"http://host/ls/storage-data/uploaded/?filepath={quote(UPLOAD)}",
    ],
)
def test_uploads_are_read_on_disk(address: str, reader: Reader, tmp_path: Path) -> None:
    """Uploads are found in Label Studio's media folder, percent-encoded, with or without host and sub-path."""
    put(tmp_path / UPLOAD)
    assert reader(media_dir=tmp_path).read(address) == IMAGE


def test_the_rest_of_the_media_folder_is_closed(reader: Reader, tmp_path: Path) -> None:
    """Only uploads are read in the media folder: avatars and exports are not images of tasks."""
    put(tmp_path / "avatars" / "me.png")
    for address in ("/storage-data/uploaded/?filepath=avatars/me.png", "/data/upload/../avatars/me.png"):
        with pytest.raises(MediaError):
            reader(media_dir=tmp_path).read(address)


def test_a_media_folder_behind_a_link(reader: Reader, tmp_path: Path) -> None:
    """A folder of uploads that itself is a symbolic link, to a larger disk say, is read."""
    put(tmp_path / "disk" / "3" / "1a2b3c4d-a.jpg")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "upload").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert reader(media_dir=tmp_path / "media").read("/data/upload/3/1a2b3c4d-a.jpg") == IMAGE


# --- what is on disk but is no image


def test_a_folder_is_no_image(reader: Reader, tmp_path: Path) -> None:
    """The address of a folder is refused as such, with its path."""
    (tmp_path / "photos").mkdir()
    with pytest.raises(MediaError, match="a folder") as refusal:
        reader(document_root=tmp_path).read("/data/local-files/?d=photos")
    assert str(tmp_path / "photos") in str(refusal.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(reader: Reader, tmp_path: Path) -> None:
    """A named pipe, which would block its reader for ever, is refused."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(MediaError, match="neither a file nor a folder"):
        reader(document_root=tmp_path).read("/data/local-files/?d=pipe.jpg")


def test_the_size_limit_on_disk(reader: Reader, tmp_path: Path) -> None:
    """A file of exactly the limit is read, one byte more is refused with both numbers and the setting."""
    put(tmp_path / "fits.jpg", b"x" * 100)
    put(tmp_path / "large.jpg", b"x" * 101)
    small = reader(document_root=tmp_path, max_bytes=100)
    assert len(small.read("/data/local-files/?d=fits.jpg")) == 100
    with pytest.raises(MediaError, match="101 bytes") as refusal:
        small.read("/data/local-files/?d=large.jpg")
    assert "at most 100" in str(refusal.value)
    assert "SPICA_MAX_IMAGE_BYTES" in str(refusal.value)


def test_a_missing_file_names_the_path_and_the_settings(reader: Reader, tmp_path: Path) -> None:
    """Without a token, a missing file's message has the path tried and what to set."""
    with pytest.raises(MediaError) as refusal:
        reader(document_root=tmp_path).read("/data/local-files/?d=sub/a.jpg")
    assert f"{tmp_path / 'sub' / 'a.jpg'}: no such file" in str(refusal.value.got)
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT" in str(refusal.value.hint)
    assert "LABEL_STUDIO_API_KEY" in str(refusal.value.hint)


@pytest.mark.parametrize(
    ("address", "setting"),
    [
        ("/data/local-files/?d=a.jpg", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"),
        ("/data/upload/3/1a2b3c4d-a.jpg", "LABEL_STUDIO_BASE_DATA_DIR"),
    ],
)
def test_nothing_configured_names_what_to_set(address: str, setting: str, reader: Reader) -> None:
    """With neither folder nor token, the message names both ways to the image."""
    with pytest.raises(MediaError) as refusal:
        reader().read(address)
    assert setting in str(refusal.value.hint)
    assert "LABEL_STUDIO_API_KEY" in str(refusal.value.hint)


# --- Label Studio over HTTP


def test_disk_comes_before_http(reader: Reader, serve: Serve, tmp_path: Path) -> None:
    """What is on disk is never asked over HTTP."""
    put(tmp_path / "a.jpg")
    label_studio = serve(Answer(b"other"))
    assert reader(label_studio.url, token=TOKEN, document_root=tmp_path).read("/data/local-files/?d=a.jpg") == IMAGE
    assert label_studio.asked == []


@pytest.mark.parametrize("name", NAMES)
def test_local_files_over_http(name: str, reader: Reader, serve: Serve, tmp_path: Path) -> None:
    """What is not on this disk is asked from Label Studio, with the token and with the name that it wrote."""
    label_studio = serve(Answer(IMAGE))
    assert (
        reader(label_studio.url, token=TOKEN, document_root=tmp_path).read(f"/data/local-files/?d={quote(name)}")
        == IMAGE
    )
    (asked,) = label_studio.asked
    assert asked.token == f"Token {TOKEN}"
    assert urlsplit(asked.path).path == "/data/local-files/"
    assert parse_qs(urlsplit(asked.path).query) == {"d": [name]}


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/data/upload/3/1a2b3c4d-a%20b.jpg", "/ls/data/upload/3/1a2b3c4d-a%20b.jpg"),
        ("/ls/data/upload/3/1a2b3c4d-a%20b.jpg", "/ls/data/upload/3/1a2b3c4d-a%20b.jpg"),
        ("http://other/ls/data/local-files/?d=a.jpg", "/ls/data/local-files/?d=a.jpg"),
        ("/tasks/7/resolve/?fileuri=czM6Ly9i", "/ls/tasks/7/resolve/?fileuri=czM6Ly9i"),
        ("/ls/tasks/7/presign/?fileuri=czM6Ly9i", "/ls/tasks/7/presign/?fileuri=czM6Ly9i"),
        ("/projects/2/file-proxy/?url=aHR0cA==", "/ls/projects/2/file-proxy/?url=aHR0cA=="),
    ],
)
def test_label_studio_below_a_sub_path(address: str, path: str, reader: Reader, serve: Serve) -> None:
    """A Label Studio at http://host/ls is asked below /ls, whether or not the address says so."""
    label_studio = serve(Answer(IMAGE))
    assert reader(f"{label_studio.url}/ls", token=TOKEN).read(address) == IMAGE
    assert [(asked.path, asked.token) for asked in label_studio.asked] == [(path, f"Token {TOKEN}")]


def test_stored_uploads_fall_back_to_the_plain_address(reader: Reader, serve: Serve) -> None:
    """A Label Studio with uploads on disk answers 400 to /storage-data/: the upload's own address follows."""
    label_studio = serve(lambda asked: Answer(IMAGE) if "/data/upload/" in asked.path else Answer(status=400))
    assert (
        reader(label_studio.url, token=TOKEN).read("/storage-data/uploaded/?filepath=upload/3/1a2b3c4d-a.jpg") == IMAGE
    )
    assert [asked.path for asked in label_studio.asked] == [
        "/storage-data/uploaded/?filepath=upload/3/1a2b3c4d-a.jpg",
        "/data/upload/3/1a2b3c4d-a.jpg",
    ]


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob", "azure_spi"])
def test_buckets_are_resolved_by_label_studio(scheme: str, reader: Reader, serve: Serve) -> None:
    """An object's address goes to the task's resolve endpoint; the signed address is fetched without the token."""
    bucket = serve(Answer(IMAGE))
    label_studio = serve(Answer.redirect(f"{bucket.url}/b/a.jpg?X-Amz-Signature=s3cr3t", 303))
    uri = f"{scheme}://bucket/圃場/a b?.jpg"
    assert reader(label_studio.url, token=TOKEN).read(uri, task_id=7) == IMAGE
    (asked,) = label_studio.asked
    assert urlsplit(asked.path).path == "/tasks/7/resolve/"
    (encoded,) = parse_qs(urlsplit(asked.path).query)["fileuri"]
    assert base64.urlsafe_b64decode(encoded).decode() == uri
    assert asked.token == f"Token {TOKEN}"
    assert [(given.path, given.token) for given in bucket.asked] == [("/b/a.jpg?X-Amz-Signature=s3cr3t", None)]


def test_buckets_need_a_task_and_a_token(reader: Reader) -> None:
    """Without the task's id or the token, the message says which is missing."""
    with pytest.raises(MediaError, match="task's id"):
        reader(token=TOKEN).read("s3://bucket/a.jpg")
    with pytest.raises(MediaError, match="LABEL_STUDIO_API_KEY"):
        reader().read("s3://bucket/a.jpg", task_id=7)


def test_a_personal_token_is_renewed_on_the_way(reader: Reader, serve: Serve) -> None:
    """With a personal token, images come over HTTP as well."""
    part = base64.urlsafe_b64encode(json.dumps({"token_type": "refresh"}).encode()).rstrip(b"=").decode()

    def answer(asked: Asked) -> Answer:
        if asked.path == "/api/token/refresh/":
            return Answer(b'{"access": "short"}')
        return Answer(IMAGE) if asked.token == "Bearer short" else Answer(status=401)

    assert reader(serve(answer).url, token=f"e30.{part}.x").read("/data/local-files/?d=a.jpg") == IMAGE


@pytest.mark.parametrize(
    ("address", "status", "told"),
    [
        ("/data/local-files/?d=a.jpg", 403, "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"),
        ("/data/local-files/?d=a.jpg", 404, "local storage"),
        ("/data/local-files/?d=a.jpg", 401, "token"),
        ("/data/local-files/?d=a.jpg", 502, "502 bad gateway"),
        ("/data/upload/3/1a2b3c4d-a.jpg", 500, "knows no upload"),
        ("/data/upload/3/1a2b3c4d-a.jpg", 403, "may not see"),
        ("s3://bucket/a.jpg", 404, "No storage of the task's project"),
        ("/data/local-files/?d=a.jpg", 204, "204 no content"),
        ("/data/local-files/?d=a.jpg", 599, "599"),
    ],
)
def test_label_studios_refusals_say_what_to_do(
    address: str, status: int, told: str, reader: Reader, serve: Serve, tmp_path: Path
) -> None:
    """Each status that Label Studio answers is told with its address, the paths tried before, and its remedy."""
    label_studio = serve(Answer(status=status))
    with pytest.raises(MediaError) as refusal:
        reader(label_studio.url, token=TOKEN, document_root=tmp_path, media_dir=tmp_path).read(address, task_id=7)
    assert told in str(refusal.value)
    assert label_studio.url in str(refusal.value.got)
    assert str(status) in str(refusal.value.got)
    assert TOKEN not in str(refusal.value)


# --- elsewhere


def test_other_sites_get_no_token(reader: Reader, serve: Serve) -> None:
    """A plain web address is fetched, and its server sees neither token nor cookie."""
    site, label_studio = serve(Answer(IMAGE, headers={"Set-Cookie": "a=b"})), serve(Answer(IMAGE))
    images = reader(label_studio.url, token=TOKEN)
    assert images.read(f"{site.url}/a.jpg?size=large") == IMAGE
    assert images.read(f"{site.url}/b.jpg") == IMAGE
    assert [(asked.path, asked.token, asked.headers.get("cookie")) for asked in site.asked] == [
        ("/a.jpg?size=large", None, None),
        ("/b.jpg", None, None),
    ]
    assert label_studio.asked == []


def test_label_studios_own_pages_get_the_token(reader: Reader, serve: Serve) -> None:
    """Any address at Label Studio's scheme, host and port gets the token."""
    label_studio = serve(Answer(IMAGE))
    assert reader(f"{label_studio.url}/ls", token=TOKEN).read(f"{label_studio.url}/static/a.png") == IMAGE
    assert [asked.token for asked in label_studio.asked] == [f"Token {TOKEN}"]


def test_label_studios_other_name_gets_no_token(reader: Reader, serve: Serve) -> None:
    """An upload's absolute address at another host: Label Studio is asked first, then that host without the token."""
    label_studio, other = serve(Answer(status=404)), serve(Answer(IMAGE))
    address = f"{other.url}/data/upload/3/1a2b3c4d-a.jpg"
    assert reader(label_studio.url, token=TOKEN).read(address) == IMAGE
    assert [asked.token for asked in label_studio.asked] == [f"Token {TOKEN}"]
    assert [asked.token for asked in other.asked] == [None]


def test_a_redirect_back_does_not_bring_the_token(reader: Reader, serve: Serve) -> None:
    """A foreign site can't send us to Label Studio with the token: it would choose what we ask there."""
    label_studio = serve(Answer(IMAGE))
    site = serve(Answer.redirect(f"{label_studio.url}/api/users/"))
    assert reader(label_studio.url, token=TOKEN).read(f"{site.url}/a.jpg") == IMAGE
    assert [asked.token for asked in label_studio.asked] == [None]


def test_a_redirect_inside_label_studio_keeps_the_token(reader: Reader, serve: Serve) -> None:
    """Label Studio may send us from one of its addresses to another."""
    label_studio = serve(lambda asked: Answer(IMAGE) if asked.path == "/there" else Answer.redirect("/there"))
    assert reader(label_studio.url, token=TOKEN).read("/data/local-files/?d=a.jpg") == IMAGE
    assert [asked.token for asked in label_studio.asked] == [f"Token {TOKEN}"] * 2


def test_few_redirects_are_followed_many_are_not(reader: Reader, serve: Serve) -> None:
    """Five redirects are followed; a circle ends."""

    def answer(asked: Asked) -> Answer:
        left = int(asked.path.strip("/"))
        return Answer.redirect(f"/{left - 1}") if left else Answer(IMAGE)

    site = serve(answer)
    assert reader().read(f"{site.url}/5") == IMAGE
    with pytest.raises(MediaError, match="more than 5 redirects"):
        reader().read(f"{site.url}/6")


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://host/a", "data:,x", "gopher://x", "http://", "http://[x/", "//"]
)
def test_redirects_lead_to_http_only(target: str, reader: Reader, serve: Serve) -> None:
    """A redirect to a file, or to anything but http(s), is refused."""
    with pytest.raises(MediaError):
        reader().read(f"{serve(Answer.redirect(target)).url}/a.jpg")


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.1.1:8080",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "2852039166",
        "0xa9fea9fe",
    ],
)
def test_link_local_addresses_are_refused(host: str, reader: Reader, serve: Serve) -> None:
    """The address of a cloud machine's credentials is never asked, in no spelling, nor after a redirect."""
    for address in (f"http://{host}/latest/", f"{serve(Answer.redirect(f'http://{host}/latest/')).url}/a.jpg"):
        with pytest.raises(MediaError, match="link-local"):
            reader(timeout_s=2.0).read(address)


def test_names_that_lead_to_link_local_addresses_are_refused(reader: Reader) -> None:
    """A host name whose connection ended at a link-local address gives no bytes."""

    class Stream:
        def get_extra_info(self, name: str) -> Any:
            """The peer's address, as the network's stream gives it."""
            return ("169.254.169.254", 80) if name == "server_addr" else None

    transport = httpx.MockTransport(
        lambda _request: httpx.Response(200, content=IMAGE, extensions={"network_stream": Stream()})
    )
    with pytest.raises(MediaError, match="link-local"):
        reader(transport=transport).read("http://innocent.example/a.jpg")


def test_the_peers_address_is_known(reader: Reader, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a connection's far end sees real connections."""
    seen: list[str] = []

    def record(address: object) -> bool:
        seen.append(str(address))
        return False

    monkeypatch.setattr("spica.labelstudio.download._is_link_local", record)
    reader().read(f"{serve(Answer(IMAGE)).url}/a.jpg")
    assert seen == ["127.0.0.1", "127.0.0.1"]  # the address's host, then the connection's


# --- transfers that go wrong


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"x" * 101),
        Answer(b"x" * 101, length=None),
        Answer(b"", length=10**12),
        Answer(gzip.compress(b"x" * 101), headers={"Content-Encoding": "gzip"}),
        Answer(gzip.compress(b"x" * 5_000_000), headers={"Content-Encoding": "gzip"}, length=None),
    ],
    ids=["announced", "unannounced", "lying", "gzip", "gzip-bomb"],
)
def test_the_size_limit_over_http(answer: Answer, reader: Reader, serve: Serve) -> None:
    """More bytes than the limit are refused, whatever the headers say and however they are packed."""
    with pytest.raises(MediaError, match="too large") as refusal:
        reader(max_bytes=100).read(f"{serve(answer).url}/a.jpg")
    assert "SPICA_MAX_IMAGE_BYTES" in str(refusal.value.hint)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"x" * 100),
        Answer(b"x" * 100, length=None),
        Answer(gzip.compress(b"x" * 100), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["announced", "unannounced", "gzip"],
)
def test_exactly_the_limit_over_http(answer: Answer, reader: Reader, serve: Serve) -> None:
    """As many bytes as the limit are read, with or without an announced length, packed or not."""
    assert reader(max_bytes=100).read(f"{serve(answer).url}/a.jpg") == b"x" * 100


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "x-own"])
def test_stacked_encodings_are_refused(coding: str, reader: Reader, serve: Serve) -> None:
    """Encodings in several layers, with which a small answer fills the memory, are refused."""
    packed = gzip.compress(gzip.compress(IMAGE))
    with pytest.raises(MediaError, match="content encoding"):
        reader().read(f"{serve(Answer(packed, headers={'Content-Encoding': coding})).url}/a.jpg")


def test_a_broken_transfer_is_an_error(reader: Reader, serve: Serve) -> None:
    """Half an image is an error and not an image."""
    with pytest.raises(MediaError, match="transfer failed"):
        reader().read(f"{serve(Answer(IMAGE, length=1000)).url}/a.jpg")


def test_damaged_compression_is_an_error(reader: Reader, serve: Serve) -> None:
    """An answer that is not as compressed as it says is an error."""
    with pytest.raises(MediaError, match="transfer failed"):
        reader().read(f"{serve(Answer(IMAGE, headers={'Content-Encoding': 'gzip'})).url}/a.jpg")


def test_a_slow_server_is_given_up(reader: Reader, serve: Serve) -> None:
    """A server that does not answer in time is an error that names the setting."""
    never = threading.Event()
    try:
        with pytest.raises(MediaError, match=r"not complete after 0\.2 s") as refusal:
            reader(timeout_s=0.2).read(f"{serve(Answer(IMAGE, wait=never)).url}/a.jpg")
        assert "SPICA_MEDIA_TIMEOUT" in str(refusal.value.hint)
    finally:
        never.set()


def silences(stack: ExitStack) -> dict[str, str]:
    """Addresses of ports that give no image: closed, silent, and of something that speaks no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def greet() -> None:
        connection, _ = other.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    threading.Thread(target=greet, daemon=True).start()
    ports = {"closed": port, "silent": silent.getsockname()[1], "ssh": other.getsockname()[1]}
    return {name: f"http://127.0.0.1:{port}/a.jpg" for name, port in ports.items()}


def test_nobody_learns_which_ports_are_open(reader: Reader, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """A closed port, a silent one and one that speaks no HTTP give the same error; the log tells them apart."""
    caplog.set_level(logging.INFO, logger="spica")
    told = set()
    for address in silences(stack).values():
        with pytest.raises(MediaError) as refusal:
            reader(timeout_s=0.3).read(address)
        told.add(json.dumps(refusal.value.as_json()).replace(urlsplit(address).netloc, "HOST"))
    assert len(told) == 1
    assert "no connection" in caplog.text
    assert "not complete" in caplog.text
    assert "the transfer failed" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_read_for_others(reader: Reader, host: str) -> None:
    """Where others can reach the server, its loopback addresses are refused before anything is asked of them."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(200, content=IMAGE)

    transport = httpx.MockTransport(answer)
    with pytest.raises(MediaError, match="own machine"):
        reader(loopback=False, transport=transport).read(f"http://{host}:8081/a.jpg")
    assert asked == []
    assert reader(loopback=False, transport=transport).read("http://192.168.1.5/a.jpg") == IMAGE
    assert reader(transport=transport).read(f"http://{host}:8081/a.jpg") == IMAGE


def test_label_studio_on_this_machine_is_read_for_others(reader: Reader, serve: Serve) -> None:
    """Its own address, and a name that leads to this machine is not."""
    server = serve(Answer(IMAGE))
    assert reader(server.url, loopback=False).read(f"{server.url}/a.jpg") == IMAGE
    with pytest.raises(MediaError, match="own machine"):
        reader(loopback=False).read(f"{server.url}/a.jpg")


def test_nobody_listens(reader: Reader, tmp_path: Path) -> None:
    """A Label Studio that is not running is told with its address, beside the path that was tried first."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(MediaError, match="no connection") as refusal:
        reader(url, token=TOKEN, document_root=tmp_path).read("/data/local-files/?d=a.jpg")
    assert url in str(refusal.value.got)
    assert str(tmp_path / "a.jpg") in str(refusal.value.got)


def test_an_untrusted_connection(reader: Reader) -> None:
    """A certificate that is not trusted is told as that, with the way to trust it."""

    def answer(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")

    with pytest.raises(MediaError, match="SSL_CERT_FILE"):
        reader(transport=httpx.MockTransport(answer)).read("https://site.example/a.jpg")


def test_messages_and_errors_keep_signatures_to_themselves(
    reader: Reader, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """An address's signature and password are not in the message; the token is not even in debug logs."""
    caplog.set_level(logging.DEBUG)
    bucket = serve(Answer(status=403))
    signed = f"{bucket.url.replace('http://', 'http://user:pa55@')}/b/a.jpg?X-Amz-Signature=s3cr3t#s3cr3t"
    with pytest.raises(MediaError) as refusal:
        reader(serve(Answer.redirect(signed)).url, token=TOKEN).read("s3://bucket/a.jpg", task_id=7)
    shown = f"{refusal.value} {refusal.value.summary} {refusal.value.as_json()}"
    assert f"{bucket.url}/b/a.jpg" in shown
    assert "s3cr3t" not in shown
    assert "pa55" not in shown
    assert TOKEN not in caplog.text


def test_an_address_is_shown_without_control_characters(reader: Reader) -> None:
    """An address that would write to the terminal is shown without what would."""
    with pytest.raises(MediaError) as refusal:
        reader().read("/a\x1b[2J\nfake log line")
    assert "\x1b" not in str(refusal.value.where)
    assert "\n" not in str(refusal.value.where)


# --- data: addresses, and what is no address


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64," + base64.b64encode(IMAGE).decode(),
        "DATA:image/png;charset=x;BASE64," + base64.b64encode(IMAGE).decode(),
        "data:;base64," + base64.b64encode(IMAGE).decode().rstrip("="),
        "data:;base64," + quote(base64.b64encode(IMAGE).decode(), safe=""),
        "data:;base64,\n" + "\n".join(base64.encodebytes(IMAGE).decode().split()),
        "data:image/png," + quote(IMAGE),
    ],
    ids=["base64", "case", "no-padding", "quoted", "lines", "percent"],
)
def test_embedded_images(uri: str, reader: Reader) -> None:
    """Images inside the address itself are read, in base64 and percent-encoded."""
    assert reader().read(uri) == IMAGE


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("data:image/png;base64,@@@@", "damaged"),
        ("data:image/png;base64,A", "damaged"),
        ("data:image/png;base64", "holds nothing"),
        ("data:,", "holds nothing"),
        ("data:;base64," + "A" * 200, "too large"),
        ("data:;base64," + "A" * 100_000, "too large"),
        ("data:," + "x" * 101, "too large"),
        ("data:;base64,\ud800", "damaged"),
    ],
    ids=["alphabet", "length", "no-comma", "empty", "large", "huge", "large-text", "surrogate"],
)
def test_embedded_images_that_are_none(uri: str, told: str, reader: Reader) -> None:
    """A damaged, empty or too large data: address is refused without being repeated in the message."""
    with pytest.raises(MediaError, match=told) as refusal:
        reader(max_bytes=100).read(uri)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "address",
    [
        "",
        " ",
        "a.jpg",
        "photos/a.jpg",
        "/etc/passwd",
        "C:\\photos\\a.jpg",
        "C:/photos/a.jpg",
        "\\\\server\\share\\a.jpg",
        "//server/share/a.jpg",
        "file:///etc/passwd",
        "file:a.jpg",
        "ftp://host/a.jpg",
        "http:a.jpg",
        "http://",
        "http://[x/a.jpg",
        "http://host:port/a.jpg",
        "javascript:alert(1)",
        "/data/local-files/",
        "/data/local-files/?d=",
        "/data/local-files/?x=a.jpg",
        "data/local-files/?d=a.jpg",
        "/data/upload/",
        "/storage-data/uploaded/",
        "/api/projects/",
        "\x00",
        "s3://\ud800",
        "http://\ud800/",
    ],
)
def test_what_is_no_address_of_an_image_is_refused(address: str, reader: Reader, serve: Serve, tmp_path: Path) -> None:
    """Plain paths, other schemes and incomplete addresses are refused without asking anybody."""
    put(tmp_path / "a.jpg")
    label_studio = serve(Answer(IMAGE))
    with pytest.raises(MediaError) as refusal:
        reader(label_studio.url, token=TOKEN, document_root=tmp_path, media_dir=tmp_path).read(address, task_id=1)
    str(refusal.value).encode()
    assert label_studio.asked == []


def test_escapes_are_not_asked_over_http_either(reader: Reader, serve: Serve) -> None:
    """A name that leads out of the root is refused before Label Studio, which may follow it, is asked."""
    label_studio = serve(Answer(IMAGE))
    for address in (
        "/data/local-files/?d=../secret",
        "/data/upload/%2e%2e/secret",
        f"{label_studio.url}/data/upload/../x",
    ):
        with pytest.raises(ConfinementError):
            reader(label_studio.url, token=TOKEN).read(address)
    assert label_studio.asked == []


def test_closing_twice_is_fine(reader: Reader) -> None:
    """A reader may be closed more than once."""
    images = reader()
    images.close()
    images.close()


def test_many_threads_read_at_once(reader: Reader, serve: Serve, tmp_path: Path) -> None:
    """One reader serves several threads, from disk and over HTTP."""
    label_studio = serve(lambda asked: Answer(asked.path.encode()))
    images = reader(label_studio.url, token=TOKEN, document_root=tmp_path)
    for index in range(0, 16, 2):
        put(tmp_path / f"{index}.jpg", str(index).encode())
    seen: dict[int, bytes] = {}

    def work(index: int) -> None:
        seen[index] = images.read(f"/data/local-files/?d={index}.jpg")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {index: f"/data/local-files/?d={index}.jpg" if index % 2 else str(index) for index in range(16)}
    assert seen == {index: text.encode() for index, text in expected.items()}

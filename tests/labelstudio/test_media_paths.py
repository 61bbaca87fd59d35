"""Path confinement as a property: whatever a task says, no byte from outside the root is read."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from recording_server import Answer, RecordingServer
from spica.errors import ConfinementError, MediaError
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.media import MediaReader
from spica.labelstudio.paths import ConfinedFolder, escape_reason, read_file

SECRET = b"secret"
INSIDE = b"inside"


@pytest.fixture(scope="module")
def field() -> Iterator[Path]:
    """A folder with a root, a media folder, secrets around them, and links that lead out and in.

    ::

        field/secret.jpg, outside/secret.jpg, root-2/secret.jpg   must never be read
        field/root/inside.jpg, sub/inside.jpg, loop -> loop
        field/root/out -> ../outside, out.jpg -> ../secret.jpg, absolute.jpg -> /…/secret.jpg, gone.jpg -> ../gone.jpg
        field/root/sub/twice -> ../out, in.jpg -> inside.jpg, sibling -> ../root-2
        field/media/upload/inside.jpg, field/media/secret.jpg
    """
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        root, outside, upload = top / "root", top / "outside", top / "media" / "upload"
        for folder in (root / "sub", outside, upload, top / "root-2"):
            folder.mkdir(parents=True)
        for secret in (top, outside, top / "root-2", top / "media"):
            (secret / "secret.jpg").write_bytes(SECRET)
        for inside in (root, root / "sub", upload):
            (inside / "inside.jpg").write_bytes(INSIDE)
        links = {
            root / "out": Path("..", "outside"),
            root / "out.jpg": Path("..", "secret.jpg"),
            root / "absolute.jpg": top / "secret.jpg",
            root / "gone.jpg": Path("..", "gone.jpg"),
            root / "loop": Path("loop"),
            root / "sub" / "twice": Path("..", "out"),
            root / "in.jpg": Path("inside.jpg"),
            root / "sibling": Path("..", "root-2"),
            upload / "up": Path(".."),
        }
        try:
            for link, target in links.items():
                link.symlink_to(target, target_is_directory=target.suffix == "")
        except OSError:
            pytest.skip("this account may not make symbolic links")
        yield top


@pytest.fixture(scope="module")
def reader(field: Path) -> Iterator[MediaReader]:
    with MediaReader(
        label_studio_url="http://ls.invalid",
        auth=None,
        document_root=field / "root",
        media_dir=field / "media",
        max_bytes=1000,
        timeout_s=1.0,
    ) as made:
        yield made


# Fragments that mean something to one file system or another, mixed with the names that are really there.
FRAGMENTS = st.sampled_from(
    [
        *("..", ".", "...", "/", "//", "\\", "\\\\", "\0", " ", "%", "~", "C:", "con", "NUL.jpg", "::$DATA", "\u2215"),
        *("%2e%2e", "%2E.", "%2f", "%5c", "%00", "%252e%252e", "%252f", "%c0%ae", "%25", "\uff0e\uff0e", "\ud800"),
        *("secret.jpg", "inside.jpg", "root", "root-2", "outside", "media", "upload", "sub", "out", "out.jpg"),
        *(
            "absolute.jpg",
            "twice",
            "sibling",
            "loop",
            "in.jpg",
            "up",
            "?",
            "&",
            "#",
            "=",
            "+",
            "d=",
            "?d=",
            "data/upload/",
        ),
    ]
)
PATHS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=9).map("".join) | st.lists(
    FRAGMENTS, min_size=1, max_size=8
).map("/".join)
PREFIXES = st.sampled_from(
    [
        *("/data/local-files/?d=", "/data/local-files?x=1&d=", "http://h.invalid/ls/data/local-files/?d="),
        *("/data/upload/", "/ls/data/upload/", "/storage-data/uploaded/?filepath=", "file://", "", "/"),
        "/storage-data/uploaded/?filepath=upload/",
    ]
)


def times_quoted(path: str, times: int) -> str:
    for _ in range(times):
        path = quote(path, safe="", errors="surrogatepass")
    return path


def assert_confined(reader: MediaReader, address: str) -> None:
    try:
        data = reader.read(address)
    except MediaError as error:
        str(error).encode()  # fit for any log
    else:
        assert data == INSIDE


@settings(deadline=None)
@given(prefix=PREFIXES, path=PATHS, times=st.integers(0, 3))
@example(prefix="/data/local-files/?d=", path="../secret.jpg", times=0)
@example(prefix="/data/local-files/?d=", path="../root-2/secret.jpg", times=1)
@example(prefix="/data/local-files/?d=", path="out/secret.jpg", times=0)
@example(prefix="/data/local-files/?d=", path="absolute.jpg", times=0)
@example(prefix="/data/local-files/?d=", path="sub/twice/secret.jpg", times=1)
@example(prefix="/data/upload/", path="../secret.jpg", times=2)
@example(prefix="/data/upload/", path="up/secret.jpg", times=0)
@example(prefix="/data/local-files/?d=", path="in.jpg", times=0)
def test_nothing_outside_is_ever_read(reader: MediaReader, prefix: str, path: str, times: int) -> None:
    """Any address made of dots, separators, encodings, links and rubbish gives bytes from inside, or a MediaError."""
    assert_confined(reader, prefix + times_quoted(path, times))


@settings(deadline=None)
@given(path=PATHS, times=st.integers(0, 2))
def test_absolute_paths_to_the_secret(reader: MediaReader, field: Path, path: str, times: int) -> None:
    """The secret's own absolute path, whatever stands around it, does not lead to the secret."""
    for text in (f"{field}/secret.jpg", f"{path}/{field}/secret.jpg", f"{field}/root/{path}/secret.jpg"):
        assert_confined(reader, f"/data/local-files/?d={times_quoted(text, times)}")


LETTERS = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters='/\\:*?"<>|%')


def is_plain(part: str) -> bool:
    """Whether a name may be stored by every file system; dots and spaces at its ends are special on Windows."""
    whole = part == part.strip(". ") and len(unicodedata.normalize("NFD", part).encode()) <= 200
    return whole and escape_reason(part, windows=True) is None


PARTS = st.text(LETTERS, min_size=1, max_size=12).filter(is_plain)


@settings(deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=4))
@example(parts=["圃場 2024", "穂+1&2=3#4;5.jpg"])
@example(parts=["が", "か\u3099.jpg"])
def test_valid_names_come_back(reader: MediaReader, field: Path, parts: list[str]) -> None:
    """Any name that a file system takes is found again, quoted as Label Studio quotes it."""
    with tempfile.TemporaryDirectory(dir=field / "root") as folder:
        path = Path(folder, *parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes("/".join(parts).encode())
        except OSError:
            assume(False)
        relative = "/".join([Path(folder).name, *parts])
        assert reader.read(f"/data/local-files/?d={quote(relative)}") == "/".join(parts).encode()


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=../secret.jpg",
        "/data/local-files/?d=sub/../../secret.jpg",
        "/data/local-files/?d=sub/../inside.jpg",
        "/data/local-files/?d=%2e%2e%2fsecret.jpg",
        "/data/local-files/?d=%252e%252e%252fsecret.jpg",
        "/data/local-files/?d=%25252e%25252e%25252fsecret.jpg",
        "/data/local-files/?d=..%5Csecret.jpg",
        "/data/local-files/?d=/etc/passwd",
        "/data/local-files/?d=%2Fetc%2Fpasswd",
        "/data/local-files/?d=//server/share",
        "/data/local-files/?d=%5C%5Cserver%5Cshare",
        "/data/local-files/?d=C:%5CWindows%5Cwin.ini",
        "/data/local-files/?d=C:/Windows/win.ini",
        "/data/local-files/?d=/C:/Windows/win.ini",
        "/data/local-files/?d=a%00.jpg",
        "/data/local-files/?d=out/secret.jpg",
        "/data/local-files/?d=out",
        "/data/local-files/?d=out.jpg",
        "/data/local-files/?d=absolute.jpg",
        "/data/local-files/?d=sub/twice/secret.jpg",
        "/data/local-files/?d=sibling/secret.jpg",
        "http://host/ls/data/local-files/?d=../secret.jpg",
        "/data/upload/../secret.jpg",
        "/data/upload/%2e%2e/secret.jpg",
        "/data/upload/3/..%2f..%2fsecret.jpg",
        "/data/upload/up/secret.jpg",
        "/storage-data/uploaded/?filepath=upload/../secret.jpg",
        "/storage-data/uploaded/?filepath=upload/%252e%252e/secret.jpg",
    ],
)
def test_each_way_out_is_refused_as_such(address: str, reader: MediaReader, field: Path) -> None:
    """Each known way out of a folder is a ConfinementError that says so, with what to do."""
    with pytest.raises(ConfinementError, match="outside the folder that may be read") as refusal:
        reader.read(address)
    assert refusal.value.got
    assert refusal.value.hint
    assert refusal.value.status == 403


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ("out/secret.jpg", "out/nothing.jpg"),
        ("out.jpg", "gone.jpg"),
        ("../secret.jpg", "../gone.jpg"),
        ("/etc/passwd", "/etc/nothing"),
    ],
    ids=["folder-link", "file-link", "dots", "absolute"],
)
def test_a_refusal_does_not_tell_what_exists(there: str, missing: str, reader: MediaReader) -> None:
    """The refusal of a file outside reads the same whether or not that file exists."""

    def told(name: str) -> tuple[object, ...]:
        with pytest.raises(ConfinementError) as refusal:
            reader.read(f"/data/local-files/?d={name}")
        return refusal.value.what, refusal.value.expected, refusal.value.got, refusal.value.hint

    assert told(there) == told(missing)


def test_links_that_stay_inside_are_followed(reader: MediaReader) -> None:
    """A symbolic link to a file below the same root is read."""
    assert reader.read("/data/local-files/?d=in.jpg") == INSIDE


def test_a_circle_of_links_is_a_missing_file(reader: MediaReader) -> None:
    """A link to itself ends in a MediaError, not in a recursion."""
    with pytest.raises(MediaError):
        reader.read("/data/local-files/?d=loop/a.jpg")


def test_a_root_behind_a_link_is_the_root(field: Path) -> None:
    """A root that itself is reached by a symbolic link (macOS: /tmp) is read like any other."""
    link = field / "link-to-root"
    link.symlink_to(field / "root", target_is_directory=True)
    folder = ConfinedFolder(link, setting="root")
    found = folder.find("inside.jpg")
    assert found is not None
    assert read_file(found, max_bytes=100) == INSIDE
    with pytest.raises(ConfinementError):
        folder.find("out.jpg")


def test_a_root_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    """A document root that does not exist (yet) has no files; it is no crash."""
    assert ConfinedFolder(tmp_path / "gone", setting="root").find("a.jpg") is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_asked_from_label_studio(tmp_path: Path) -> None:
    """A file that this account may not read is asked from Label Studio; if that fails too, both reasons are told."""
    (tmp_path / "a.jpg").write_bytes(INSIDE)
    (tmp_path / "a.jpg").chmod(0)
    answers = [Answer(INSIDE), Answer(status=404)]
    with (
        RecordingServer(lambda _asked: answers.pop(0)) as server,
        MediaReader(
            label_studio_url=server.url,
            auth=LabelStudioAuth(server.url, "0" * 40),
            document_root=tmp_path,
            media_dir=None,
            max_bytes=100,
            timeout_s=20.0,
        ) as reader,
    ):
        assert reader.read("/data/local-files/?d=a.jpg") == INSIDE
        with pytest.raises(MediaError, match="Permission denied") as refusal:
            reader.read("/data/local-files/?d=a.jpg")
    assert "404" in str(refusal.value)


def test_a_link_put_in_place_of_the_file_is_not_followed(field: Path) -> None:
    """Between the check and the opening nobody can slip a symbolic link in."""
    if not hasattr(os, "O_NOFOLLOW"):
        pytest.skip("this system can't refuse links while opening")
    with pytest.raises(OSError, match="symbolic links"):
        read_file(field / "root" / "out.jpg", max_bytes=100)


@pytest.mark.parametrize(
    ("name", "refused_on_windows"),
    [
        ("a.jpg", False),
        ("a/b.jpg", False),
        ("/a.jpg", False),
        ("a..b", False),
        (".hidden/a.jpg", False),
        ("console.jpg", False),
        ("12:30.jpg", True),
        ("a.jpg::$DATA", True),
        ("con", True),
        ("sub/NUL.jpg", True),
        ("com1.tar.gz", True),
        ("LPT².jpg", True),
        ("aux .jpg", True),
        ("a.", True),
        ("a ", True),
        ("a./b", True),
    ],
)
def test_names_that_only_windows_minds(name: str, refused_on_windows: bool) -> None:
    """Device names, streams and trailing dots are refused on Windows and are ordinary names elsewhere."""
    assert (escape_reason(name, windows=True) is not None) is refused_on_windows
    assert escape_reason(name, windows=False) is None


@pytest.mark.parametrize(
    "name",
    [
        *("..", "../a", "a/..", "a/../b", "..\\a", "a\\..\\b", ".. /a", "..../a", "%2e%2e", "%2e%2e/a", ".%2e/a"),
        *("%252e%252e/a", "..%2fa", "..%5ca", "//a", "\\\\a", "\\a", "C:", "C:\\a", "c:/a", "/c:/a", "a\0", "\ud800"),
        "%" + "25" * 12 + "2e",
    ],
)
@pytest.mark.parametrize("windows", [True, False], ids=["windows", "posix"])
def test_names_that_every_system_minds(name: str, windows: bool) -> None:
    """Ways out of a folder are refused on every system, also those that only another system would take."""
    assert escape_reason(name, windows=windows) is not None

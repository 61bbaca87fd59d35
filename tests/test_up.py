"""What `spica up` checks before anything is started."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from spica.errors import StorageError, UsageError
from spica.labelstudio.client import checked_title
from spica.labelstudio.config import parse_label_config
from spica.server.run import bind, refuse_exposed
from spica.up import (
    document_root,
    find_images,
    host_of_model,
    label_config_for,
    prepare_data_dir,
    project_title,
)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_photographs_are_found_in_sub_folders_whatever_their_names(tmp_path: Path) -> None:
    """Japanese names, spaces, signs and capital endings are photographs too; other files are not."""
    names = ["a.jpg", "B.JPEG", "写真 1.png", "sub/c+%#.webp", "sub/深い/d.bmp", "e.avif", "f.jfif"]
    expected = sorted(touch(tmp_path / name) for name in names)
    touch(tmp_path / "notes.txt")
    touch(tmp_path / "sub/e.tiff")
    touch(tmp_path / "._a.jpg")  # macOS's shadow of a.jpg
    assert find_images(tmp_path)[0] == expected


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    """Kinds and their number, three names, and what to do; the systems' own hidden files are no news."""
    for name in ("a.jpg", "grey.tif", "sub/b.TIF", "c.jp2", "写真.heic", "README", ".DS_Store", "Thumbs.db", ".git/x"):
        touch(tmp_path / name)
    _, told = find_images(tmp_path)
    assert told is not None
    for part in ("2 .tif", "1 .jp2", "1 .heic", "1 without an ending", "(README, c.jp2, grey.tif, …)", "PNG or JPEG"):
        assert part in told
    assert "DS_Store" not in told
    assert find_images(touch(tmp_path / "alone" / "a.png").parent)[1] is None


@pytest.mark.parametrize("name", ["田", "ab", "p" * 51, "圃場" * 40, "x" * 42 + " 2024 plot 1 " + "y" * 9])
def test_every_folders_name_gives_a_title_that_label_studio_takes(name: str) -> None:
    """Short and long ones too, and long names that begin alike stay different projects."""
    title = checked_title(project_title(Path(name)))
    assert title == title.strip()
    assert title.startswith(name[:40])
    assert len(name) < 51 or project_title(Path(name + "2")) != title


def test_a_name_within_the_limits_is_the_title() -> None:
    """3 and 50 characters are taken as they are."""
    assert [project_title(Path(name)) for name in ("abc", "y" * 50)] == ["abc", "y" * 50]


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "without photographs"])
def test_a_folder_without_photographs_is_said(tmp_path: Path, kind: str) -> None:
    """The message names the folder and what is there instead."""
    folder = tmp_path / "写真"
    if kind == "a file":
        touch(folder)
    elif kind != "missing":
        folder.mkdir()
    if kind == "without photographs":
        touch(folder / "a.tif")
    with pytest.raises(UsageError) as refused:
        find_images(folder)
    assert str(folder) in str(refused.value)
    if kind == "without photographs":
        assert ".tif" in str(refused.value)


def test_labels_become_a_configuration_that_can_be_read_back() -> None:
    """Names with XML's signs survive, and spaces around commas don't matter."""
    config = label_config_for(["spike", ' 穂 <a> & "b" '])
    (control,) = parse_label_config(config).controls
    assert [label.value for label in control.labels] == ["spike", '穂 <a> & "b"']
    assert control.smart


@pytest.mark.parametrize("labels", [[], [""], ["a", " "], ["a", "a"]], ids=["none", "empty", "blank", "twice"])
def test_labels_that_are_no_names_are_refused(labels: list[str]) -> None:
    """An empty or doubled label would give a configuration that Label Studio refuses."""
    with pytest.raises(UsageError):
        label_config_for(labels)


def test_the_data_folder_is_made_and_kept_out_of_the_photographs(tmp_path: Path) -> None:
    """Data inside the photographs' folder would be taken for photographs."""
    images = tmp_path / "photos"
    images.mkdir()
    assert prepare_data_dir(tmp_path / "data", images) == (tmp_path / "data").resolve()
    assert (tmp_path / "data").is_dir()
    for inside in (images, images / "data"):
        with pytest.raises(UsageError, match="inside the folder of photographs"):
            prepare_data_dir(inside, images)


def test_a_data_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    """A file in the way is named."""
    with pytest.raises(StorageError) as refused:
        prepare_data_dir(touch(tmp_path / "data"), tmp_path / "photos")
    assert str(tmp_path / "data") in str(refused.value)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_data_folder_that_is_not_writable_is_an_error(tmp_path: Path) -> None:
    """A folder of somebody else's is named before anything is started."""
    (tmp_path / "data").mkdir(mode=0o500)
    with pytest.raises(StorageError):
        prepare_data_dir(tmp_path / "data", tmp_path / "photos")


def test_the_document_root_stays_what_it_was(tmp_path: Path) -> None:
    """Addresses of tasks are relative to it, so another place is refused instead of breaking them."""
    data = tmp_path / "data"
    data.mkdir()
    first, sibling, elsewhere = tmp_path / "p" / "one", tmp_path / "p" / "two", tmp_path / "q"
    for folder in (first, sibling, elsewhere):
        folder.mkdir(parents=True)
    assert document_root(data, first) == tmp_path / "p"
    assert document_root(data, sibling) == tmp_path / "p"
    with pytest.raises(UsageError, match="another place"):
        document_root(data, elsewhere)
    with pytest.raises(UsageError, match="another place"):
        document_root(data, tmp_path / "p")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machines_own_addresses_are_fine(host: str) -> None:
    """Only this machine can reach a server there."""
    refuse_exposed(host, expose=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_other_addresses_need_to_be_exposed_on_purpose(host: str) -> None:
    """A server that others can reach is never an accident."""
    with pytest.raises(UsageError, match="other machines"):
        refuse_exposed(host, expose=False)
    refuse_exposed(host, expose=True)


@pytest.mark.parametrize(
    ("host", "model"),
    [("127.0.0.1", "127.0.0.1"), ("192.168.1.5", "192.168.1.5"), ("lab", "lab"), ("::1", "127.0.0.1"), ("::", "::")],
)
def test_the_model_server_listens_where_label_studio_can_call_it(host: str, model: str) -> None:
    """Beside Label Studio, but never at an address that it can't look up."""
    assert host_of_model(host) == model


def test_a_networks_ipv6_address_is_refused_with_what_works() -> None:
    """Label Studio would answer minutes later that it can't resolve the name."""
    with pytest.raises(UsageError, match="IPv6") as refused:
        host_of_model("fd00::2")
    assert "::" in str(refused.value.hint)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_all_addresses_are_the_old_ones_too() -> None:
    """Whoever listens on :: answers at 127.0.0.1, where Label Studio looks."""
    with bind("::", 0, option="--port") as listening:
        socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=10).close()

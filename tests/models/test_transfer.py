from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spica.errors import StorageError, UsageError, WeightsError
from spica.models.transfer import bring_in, export, is_archive
from spica.models.version import ModelVersion, open_version
from tiny_versions import tiny_version


@pytest.fixture
def version(tmp_path: Path) -> ModelVersion:
    return open_version(tmp_path / "a", tiny_version(tmp_path / "a", "wheat"))


@pytest.mark.parametrize("out", ["wheat.zip", "folder", "新しい/wheat.zip"])
def test_a_version_comes_back_as_it_was(tmp_path: Path, version: ModelVersion, out: str) -> None:
    """Exported and imported elsewhere, every file is the same, under the same id; importing again changes nothing."""
    path = export(version, tmp_path / out)
    there, is_new = bring_in(path, tmp_path / "b")
    assert is_new
    assert there.card == version.card
    for name in ("model.json", *version.card.files):
        assert (there.folder / name).read_bytes() == (version.folder / name).read_bytes()
    assert bring_in(path, tmp_path / "b") == (there, False)
    assert [each.name for each in (tmp_path / "b" / "models").iterdir()] == [version.id]


def test_a_folder_that_is_there_gets_one_of_the_versions_name(tmp_path: Path, version: ModelVersion) -> None:
    """Exporting into an existing folder makes one in it, and never twice."""
    (tmp_path / "usb.zip").mkdir()
    assert export(version, tmp_path / "usb.zip") == tmp_path / "usb.zip" / version.id
    with pytest.raises(UsageError, match="already"):
        export(version, tmp_path / "usb.zip")


def test_the_bare_weights_need_nothing(tmp_path: Path, version: ModelVersion) -> None:
    """As .safetensors the weights are copied byte by byte, an older file replaced."""
    (tmp_path / "w.safetensors").write_bytes(b"old")
    path = export(version, tmp_path / "w.safetensors")
    assert path.read_bytes() == (version.folder / "model.safetensors").read_bytes()


@pytest.mark.torch
def test_the_pth_is_a_plain_state_dict(tmp_path: Path, version: ModelVersion) -> None:
    """torch.load with weights_only gives the tensors by name, as the tutorial's script loads them."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    path = export(version, tmp_path / "gwhd.pth")
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    assert list(loaded) == ["w"]
    assert loaded["w"].tolist() == [1.0]
    assert not is_archive(path)


def test_a_version_without_weights_says_what_can_be_had(tmp_path: Path, version: ModelVersion) -> None:
    """A version of a graph alone is exported whole, and its weights are refused with a hint."""
    bare = ModelVersion(version.folder, version.card, version.cache_dir)
    with pytest.raises(WeightsError, match="no weights") as refused:
        export(bare, tmp_path / "w.pth")
    assert ".zip" in str(refused.value)


@pytest.mark.parametrize("out", ["w.safetensors", "w.zip", "folder", pytest.param("w.pth", marks=pytest.mark.torch)])
def test_a_full_disk_leaves_no_half_of_an_export(
    tmp_path: Path, version: ModelVersion, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Whatever the form, a full disk is a storage error and nothing half-written stays."""
    if out.endswith(".pth"):
        pytest.importorskip("torch", reason="needs the extra spica[train]")
    there = sorted(tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="could not be written"):
        export(version, tmp_path / out)
    assert sorted(tmp_path.iterdir()) == there


Archive = Callable[[zipfile.ZipFile, ModelVersion], None]


def write(archive: zipfile.ZipFile, version: ModelVersion, **changed: bytes) -> None:
    """The version in an archive, some files with other contents."""
    for name in ("model.json", *version.card.files):
        archive.writestr(f"v/{name}", changed.get(name.replace(".", "_"), (version.folder / name).read_bytes()))


def card_with(version: ModelVersion, **changed: Any) -> bytes:
    told = json.loads((version.folder / "model.json").read_text("utf-8"))
    return json.dumps({**told, **changed}).encode()


def extra(name: str) -> Archive:
    def make(archive: zipfile.ZipFile, version: ModelVersion) -> None:
        write(archive, version)
        archive.writestr(zipfile.ZipInfo(name), b"evil")

    return make


def link(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    write(archive, version)
    info = zipfile.ZipInfo("v/link")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def listed_outside(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    entry = {"sha256": "0" * 64, "bytes": 4}
    files = json.loads(card_with(version))["files"]
    write(archive, version, model_json=card_with(version, files={**files, "../../evil": entry}))


def device(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    files = json.loads(card_with(version))["files"]
    empty = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    write(archive, version, model_json=card_with(version, files={**files, "NUL.txt": empty}))
    archive.writestr("v/NUL.txt", b"")


def same_but_case(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    files = json.loads(card_with(version))["files"]
    changed = {**files, "MODEL.XML": files["model.xml"]}
    write(archive, version, model_json=card_with(version, files=changed))
    archive.writestr("v/MODEL.XML", (version.folder / "model.xml").read_bytes())


def bomb(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    write(archive, version, model_bin=bytes(50_000_000))


def huge(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    files = json.loads(card_with(version))["files"]
    entry = {"sha256": "0" * 64, "bytes": 2**40}
    write(archive, version, model_json=card_with(version, files={**files, "model.bin": entry}))


def many(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    write(archive, version)
    for number in range(1000):
        archive.writestr(f"v/{number}", b"")


def two(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    write(archive, version)
    archive.writestr("w/model.json", card_with(version))


def evil_id(archive: zipfile.ZipFile, version: ModelVersion) -> None:
    write(archive, version, model_json=card_with(version, id="../evil"))


MALICIOUS: dict[str, Archive] = {
    "a name that leads up": extra("../evil"),
    "a name that leads up from a folder": extra("v/../../evil"),
    "an absolute name": extra("/evil"),
    "a drive": extra("C:/evil"),
    "backslashes": extra("..\\evil"),
    "an empty part": extra("v//evil"),
    "a link": link,
    "a card that lists a name outside": listed_outside,
    "an id that leads up": evil_id,
    "a device of Windows": device,
    "names that differ in case alone": same_but_case,
    "more bytes than the card says": bomb,
    "a terabyte": huge,
    "too many entries": many,
    "two versions": two,
    "other bytes": lambda archive, version: write(archive, version, model_bin=b"x" * 20),
    "fewer bytes": lambda archive, version: write(archive, version, model_bin=b"x"),
    "no card": lambda archive, _: archive.writestr("v/model.xml", b"<net/>"),
    "nothing": lambda *_: None,
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", MALICIOUS.values(), ids=MALICIOUS)
def test_an_archive_that_is_not_what_it_should_be_is_refused_whole(
    tmp_path: Path, version: ModelVersion, make: Archive
) -> None:
    """Nothing of such an archive gets into the store or anywhere else."""
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        make(archive, version)
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError):
        bring_in(path, tmp_path / "b")
    assert [each for each in sorted(tmp_path.rglob("*")) if each not in there] == [
        tmp_path / "b",
        tmp_path / "b" / "models",
    ]


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    """Half a download is a sentence."""
    (tmp_path / "half.zip").write_bytes(b"PK\3\4 half")
    with pytest.raises(WeightsError, match="archive"):
        bring_in(tmp_path / "half.zip", tmp_path / "b")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_folder_with_a_link_in_it_is_refused(tmp_path: Path, version: ModelVersion) -> None:
    """A link in place of a listed file is not followed."""
    path = version.folder / "model.bin"
    path.rename(tmp_path / "elsewhere.bin")
    path.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(WeightsError, match="plain file"):
        bring_in(version.folder, tmp_path / "b")


def test_another_version_under_the_same_id_is_not_replaced(tmp_path: Path, version: ModelVersion) -> None:
    """What is in the store stays, and the message says how to replace it."""
    archive = export(version, tmp_path / "wheat.zip")
    tiny_version(tmp_path / "b", "wheat", nbytes=21)
    with pytest.raises(UsageError, match="another version") as refused:
        bring_in(archive, tmp_path / "b")
    assert "spica models delete" in str(refused.value)
    assert (tmp_path / "b" / "models" / version.id / "model.bin").stat().st_size == 21

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spica.detectors.convert import Request
from spica.errors import StorageError, WeightsError
from spica.files import put_in_place, scratch
from spica.models import store
from spica.models.card import check_files
from spica.models.locks import hold
from spica.models.version import ModelIdentity
from weights_builder import Prepared, hollow_state_dict

pytestmark = pytest.mark.torch


class Conversion:
    """Stands for the real one: writes two small files, and remembers what it was asked."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.requests: list[Request] = []
        self.before = before

    def __call__(self, request: Request, **_: Any) -> dict[str, Any]:
        self.requests.append(request)
        self.before()
        (Path(request.folder) / "model.xml").write_bytes(b"<net/>")
        (Path(request.folder) / "model.bin").write_bytes(b"numbers")
        return {"boxes": 7}


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> Conversion:
    fake = Conversion()
    monkeypatch.setattr(store, "convert", fake)
    return fake


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    path = tmp_path_factory.mktemp("hollow") / "gwhd.pth"
    torch.save(hollow_state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hollow_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    path = tmp_path_factory.mktemp("hollow") / "batch.pth"
    torch.save(hollow_state_dict(norm="batch"), path)
    return path


def identify(weights: Path, data_dir: Path, **changed: Any) -> ModelIdentity:
    options: dict[str, Any] = {"score_floor": 0.05, "max_detections": 1000, "norm_eps": 0.0}
    return store.identify(weights, data_dir=data_dir, **(options | changed))


def test_an_identity_is_known_without_writing_anything(hollow: Path, tmp_path: Path) -> None:
    """Id, classes and settings are known before anything is converted, and the data folder is not touched."""
    identity = identify(hollow, tmp_path / "data")
    assert identity.id.startswith("gwhd-")
    assert len(identity.id) == len("gwhd-") + 8
    assert (identity.classes, identity.architecture) == (("",), "fasterrcnn_resnet50_fpn")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "changed",
    [{"score_floor": 0.1}, {"max_detections": 100}, {"norm_eps": 1e-5}],
    ids=["score floor", "max detections", "eps"],
)
def test_a_setting_that_changes_answers_changes_the_id(hollow: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    """Each setting on which the answers depend is in the id."""
    assert identify(hollow, tmp_path, **changed).id != identify(hollow, tmp_path).id


def test_the_id_is_stable(hollow: Path, tmp_path: Path) -> None:
    """Asked again, the id is the same."""
    assert identify(hollow, tmp_path).id == identify(hollow, tmp_path).id


def test_eps_does_not_matter_to_trained_batch_norm(hollow_batch: Path, tmp_path: Path) -> None:
    """Weights with BatchNorm2d keep torch's eps whatever the setting is."""
    identity = identify(hollow_batch, tmp_path, norm_eps=0.0)
    assert identity.norm_eps == 1e-5
    assert identity.id == identify(hollow_batch, tmp_path, norm_eps=1e-5).id


def test_a_version_is_made_once(hollow: Path, tmp_path: Path, conversion: Conversion) -> None:
    """The second time nothing is converted, and the version is the same."""
    identity = identify(hollow, tmp_path / "データ")
    first = store.ensure(identity, data_dir=tmp_path / "データ")
    second = store.ensure(identify(hollow, tmp_path / "データ"), data_dir=tmp_path / "データ")
    assert len(conversion.requests) == 1
    assert first == second
    assert first.folder == tmp_path / "データ" / "models" / identity.id
    assert sorted(path.name for path in first.folder.iterdir()) == ["model.bin", "model.json", "model.xml"]
    assert [path.name for path in first.folder.parent.iterdir()] == [identity.id]
    assert first.source == hollow


def test_the_card_tells_what_it_is(hollow: Path, tmp_path: Path, conversion: Conversion) -> None:
    """The card holds the settings, the origin, the comparison and the digests of the files."""
    version = store.ensure(identify(hollow, tmp_path, norm_eps=1e-5), data_dir=tmp_path)
    told = json.loads((version.folder / "model.json").read_text("utf-8"))
    expected = {
        "format": 1,
        "id": version.id,
        "name": "gwhd",
        "architecture": "fasterrcnn_resnet50_fpn",
        "classes": [""],
        "score_floor": 0.05,
        "max_detections": 1000,
        "norm": "frozen",
        "norm_eps": 1e-5,
        "parent": None,
        "training": None,
        "metrics": {"verification": {"boxes": 7}},
    }
    assert {key: told[key] for key in expected} == expected
    assert told["files"]["model.bin"]["bytes"] == len(b"numbers")
    assert told["weights"]["name"] == "gwhd.pth"
    assert told["created"].endswith("+00:00")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "model.bin").write_bytes(b"Numbers"), id="a byte of the numbers"),
        pytest.param(lambda folder: (folder / "model.xml").unlink(), id="a file is missing"),
        pytest.param(lambda folder: (folder / "model.json").write_bytes(b"{"), id="half a card"),
        pytest.param(lambda folder: (folder / "model.json").unlink(), id="no card"),
        pytest.param(lambda folder: _recard(folder, fingerprint="0" * 64), id="another content's card"),
        pytest.param(lambda folder: _recard(folder, id="other-12345678"), id="another version's card"),
    ],
)
def test_a_damaged_version_is_made_again(
    hollow: Path,
    tmp_path: Path,
    conversion: Conversion,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A version that is not what its card says is thrown away and made again, with a word in the log."""
    identity = identify(hollow, tmp_path)
    first = store.ensure(identity, data_dir=tmp_path)
    damage(first.folder)
    with caplog.at_level(logging.WARNING):
        second = store.ensure(identity, data_dir=tmp_path)
    assert len(conversion.requests) == 2
    assert (second.folder / "model.bin").read_bytes() == b"numbers"
    assert "damaged" in caplog.text
    assert [path.name for path in second.folder.parent.iterdir()] == [identity.id]


def _recard(folder: Path, **changed: str) -> None:
    card = folder / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text("utf-8")) | changed), "utf-8")


def test_a_renamed_file_keeps_its_version(hollow: Path, tmp_path: Path, conversion: Conversion) -> None:
    """The same bytes under another name are the version that is already there."""
    first = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    renamed = Path(shutil.copyfile(hollow, tmp_path / "best model (2).pth"))
    identity = identify(renamed, tmp_path)
    assert identity.id == first.id
    store.ensure(identity, data_dir=tmp_path)
    assert len(conversion.requests) == 1
    elsewhere = identify(renamed, tmp_path / "elsewhere")
    assert elsewhere.id == f"best-model-2-{first.id[-8:]}"


@pytest.mark.parametrize(
    ("stem", "slug"),
    [
        ("gwhd", "gwhd"),
        ("My Model+v1.2%#", "my-model-v1-2"),
        ("デスクトップ", "model"),
        ("Café", "cafe"),
        ("x" * 99, "x" * 40),
    ],
)
def test_ids_are_plain(stem: str, slug: str) -> None:
    """An id has small letters, digits and dashes alone, whatever the file is called."""
    from spica.models.card import version_id

    assert version_id(stem, "0123456789abcdef") == f"{slug}-01234567"


def test_two_at_once_both_end_well(hollow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that convert at the same time end with one whole version, and leave nothing else behind."""
    both_convert = threading.Barrier(2, timeout=60)
    conversion = Conversion(before=both_convert.wait)
    monkeypatch.setattr(store, "convert", conversion)
    identity, versions = identify(hollow, tmp_path), []
    threads = [
        threading.Thread(target=lambda: versions.append(store.ensure(identity, data_dir=tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversion.requests) == 2
    assert len(versions) == 2
    assert versions[0] == versions[1]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [identity.id]


def test_a_failed_conversion_leaves_nothing(hollow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the conversion fails, no folder stays behind, and the next attempt starts afresh."""

    def fail(request: Request, **_: Any) -> dict[str, Any]:
        (Path(request.folder) / "model.xml").write_bytes(b"half")
        raise WeightsError("not usable")

    monkeypatch.setattr(store, "convert", fail)
    with pytest.raises(WeightsError, match="not usable"):
        store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_too_little_space_is_told_before(
    hollow: Path, tmp_path: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too full is told with both numbers, before anything is converted."""
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="too little space") as refused:
        store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    assert "5 MB" in str(refused.value)
    assert conversion.requests == []


def test_a_disk_that_fills_up_is_a_storage_error(hollow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills while the version is written says so."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "convert", Conversion(before=full))
    with pytest.raises(StorageError, match="could not be written") as refused:
        store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    assert "No space left on device" in str(refused.value)
    assert "free some space" in str(refused.value)


def test_a_data_folder_that_is_a_file(hollow: Path, tmp_path: Path, conversion: Conversion) -> None:
    """A data folder that can't be made is a storage error with its path."""
    (tmp_path / "file").write_bytes(b"")
    identity = identify(hollow, tmp_path / "file")
    with pytest.raises(StorageError) as refused:
        store.ensure(identity, data_dir=tmp_path / "file")
    assert str(tmp_path / "file") in str(refused.value)


def test_abandoned_folders_are_swept(tmp_path: Path) -> None:
    """What a killed process left yesterday is removed; what another process is making stays."""
    import os

    old, new = tmp_path / ".tmp-old", tmp_path / ".tmp-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    with scratch(tmp_path) as own:
        assert {path.name for path in tmp_path.iterdir()} == {".tmp-new", own.name}
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-new"]


def test_a_name_taken_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another process puts in place between our look and our rename is left alone."""
    own, target = tmp_path / "own", tmp_path / "target"
    for folder in (own, target):
        folder.mkdir()
        (folder / "file").write_text(folder.name, "utf-8")
    answers = iter([False, True])
    monkeypatch.setattr(Path, "exists", lambda _: next(answers))
    assert put_in_place(own, target) is False
    assert (target / "file").read_text("utf-8") == "target"


@pytest.mark.slow
def test_an_exported_graph_is_served_as_it_is(tutorial: Prepared, tmp_path: Path, conversion: Conversion) -> None:
    """The graph of a version, on its own or with its card, is served elsewhere without a conversion."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.xml", "model.bin"):
        shutil.copyfile(tutorial.version.folder / name, alone / name)
    copied = store.ensure(identify(alone / "model.xml", tmp_path), data_dir=tmp_path)
    assert copied.id.startswith("model-")
    assert copied.card.classes == tutorial.version.classes
    assert copied.source is None
    assert store.ensure(identify(alone / "model.xml", tmp_path), data_dir=tmp_path) == copied

    same = store.ensure(identify(tutorial.version.folder, tmp_path), data_dir=tmp_path)
    assert same.id == tutorial.version.id
    assert same.folder == tutorial.version.folder
    assert store.ensure(identify(same.folder / "model.xml", tmp_path), data_dir=tmp_path) == same
    assert conversion.requests == []


def test_the_demos_model_is_served(tmp_path: Path, conversion: Conversion) -> None:
    """The shipped model version is one that the store takes, in its place, and it finds wheat in a rendered field."""
    from spica.demo import model_folder
    from spica.demo.field import render_field
    from spica.models.load import load_detector

    if not (model_folder() / "model.json").is_file():
        pytest.skip("the demo's model has not been trained")
    version = store.ensure(identify(model_folder(), tmp_path), data_dir=tmp_path)
    assert version.classes == ("spike",)
    (found,) = load_detector(version).detect([render_field(1).pixels])
    assert (found.scores > 0.6).sum() > 3
    assert conversion.requests == []


class Share:
    """A shared folder that does not answer some times: what is read fails with an error of the file system's."""

    def __init__(self, failures: int, number: int, patch: pytest.MonkeyPatch) -> None:
        self.left = failures
        self._number = number
        self._check_files = check_files
        patch.setattr(store, "check_files", self._check)
        patch.setattr(store, "_PAUSES_S", (0.0, 0.0))

    def _check(self, *given: Any) -> None:
        if self.left:
            self.left -= 1
            raise OSError(self._number, "the share is away")
        self._check_files(*given)


def test_a_folder_that_is_away_for_a_moment_costs_nothing(
    hollow: Path, tmp_path: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that can't be read at first is read again, and not made again."""
    first = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    share = Share(2, errno.EIO, monkeypatch)
    assert store.ensure(identify(hollow, tmp_path), data_dir=tmp_path) == first
    assert (share.left, len(conversion.requests)) == (0, 1)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE], ids=["input", "rights", "stale"])
def test_a_version_that_can_not_be_read_is_kept(
    hollow: Path, tmp_path: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """While a folder can't be read, nothing in it is thrown away, and that is said."""
    first = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    Share(99, number, monkeypatch)
    with pytest.raises(StorageError, match="can't be read"):
        store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    assert sorted(path.name for path in first.folder.iterdir()) == ["model.bin", "model.json", "model.xml"]
    assert len(conversion.requests) == 1


def test_a_card_that_can_not_be_read_is_no_damage(
    hollow: Path, tmp_path: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's own reader wraps what the file system says; it is still not taken for damage."""
    first = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    monkeypatch.setattr(store, "_PAUSES_S", ())
    real = Path.read_text

    def away(path: Path, *given: Any, **named: Any) -> str:
        if path.name == "model.json":
            raise PermissionError(errno.EACCES, "not now")
        return real(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", away)
        with pytest.raises(StorageError, match="can't be read"):
            store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    assert store.ensure(identify(hollow, tmp_path), data_dir=tmp_path) == first


@pytest.mark.parametrize("elsewhere", [True, False], ids=["by another process", "by this one"])
def test_a_damaged_version_that_is_served(
    hollow: Path, tmp_path: Path, conversion: Conversion, elsewhere: bool
) -> None:
    """Nobody throws away what another process serves, damaged or not; who holds it alone makes it again."""
    first = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    (first.folder / "model.bin").write_bytes(b"NUMBERS")
    with hold(tmp_path, first.id):
        if elsewhere:
            (lease,) = (tmp_path / "leases" / first.id).iterdir()
            lease.rename(lease.with_name("1-of-another-process.lock"))
            with pytest.raises(StorageError, match="another process serves it"):
                store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
            assert (first.folder / "model.bin").read_bytes() == b"NUMBERS"
        else:
            store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
            assert (first.folder / "model.bin").read_bytes() == b"numbers"


def test_what_another_process_has_made_again_is_kept(
    hollow: Path, tmp_path: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that was damaged when it was looked at, and is whole when its turn has come, is not thrown away."""
    first = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    (first.folder / "model.bin").write_bytes(b"NUMBERS")

    @contextlib.contextmanager
    def after_the_other(_: Path) -> Iterator[None]:
        (first.folder / "model.bin").write_bytes(b"numbers")
        yield

    monkeypatch.setattr(store, "writing", after_the_other)
    store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    assert first.folder.is_dir()
    assert len(conversion.requests) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells open files by /proc")
def test_files_are_on_the_disk_before_they_have_a_name(
    hollow: Path, tmp_path: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves no version whose files are empty: each is synced while its folder has no name yet."""
    synced: list[Path] = []
    real = os.fsync

    def remember(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", remember)
    version = store.ensure(identify(hollow, tmp_path), data_dir=tmp_path)
    aside = [path.name for path in synced if path.parent.name.startswith(".tmp-")]
    assert sorted(aside) == ["model.bin", "model.json", "model.xml"]
    assert synced[-1] == version.folder.parent

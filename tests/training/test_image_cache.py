"""Images by digest: read once, whole on disk, found again after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from annotated_images import photograph
from spica.errors import ImageError, StorageError
from spica.images import digest_of
from spica.training.submissions import ImageCache


def folder(path: Path, scope: str = "http://one") -> ImageCache:
    """The folder as a new process finds it."""
    return ImageCache(path, scope=scope, max_pixels=10**6)


def never() -> bytes:
    """The reading of an image that must not be read again."""
    raise AssertionError("read a second time")


def test_read_once(tmp_path: Path) -> None:
    """An address is read once, also by another process; the file is the bytes, called by their digest."""
    data = photograph(1, (64, 48), orientation=6)
    photo = folder(tmp_path).get("/data/upload/1/a.jpg", lambda: data)
    assert (photo.width, photo.height, photo.orientation) == (48, 64, 6)
    assert photo.path.read_bytes() == data
    assert photo.path.name == f"{digest_of(data)}.jpg"
    assert folder(tmp_path).get("/data/upload/1/a.jpg", never) == photo
    assert "upload" not in (tmp_path / "index.jsonl").read_text("utf-8"), "addresses may hold signatures"


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    """Two addresses with the same bytes share a file; two Label Studios share no address."""
    photos = folder(tmp_path)
    one, two = photos.get("a", lambda: photograph(1)), photos.get("b", lambda: photograph(1))
    assert one == two
    assert folder(tmp_path, "http://two").get("a", lambda: photograph(2)) != one
    assert len(list(tmp_path.glob("*.jpg"))) == 2


@pytest.mark.parametrize("harm", ["file gone", "file cut", "line torn", "line foreign"])
def test_what_a_kill_leaves(tmp_path: Path, harm: str) -> None:
    """A missing or cut file and a damaged index cost one more reading, and nothing else."""
    data = photograph(1)
    photo = folder(tmp_path).get("a", lambda: data)
    index = tmp_path / "index.jsonl"
    if harm == "file gone":
        photo.path.unlink()
    elif harm == "file cut":
        photo.path.write_bytes(data[:100])
    elif harm == "line torn":
        index.write_text(index.read_text("utf-8")[:-20], "utf-8")
    else:
        entry = json.loads(index.read_text("utf-8"))
        index.write_text(json.dumps({**entry, "file": "../outside.jpg"}) + "\n", "utf-8")
    again = folder(tmp_path).get("a", lambda: data)
    assert again == photo
    assert again.path.read_bytes() == data


def test_no_image_is_not_kept(tmp_path: Path) -> None:
    """Bytes that are no image are an error, and nothing of them stays."""
    with pytest.raises(ImageError):
        folder(tmp_path / "photos").get("a", lambda: b"no image")
    assert not (tmp_path / "photos").exists()


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    """A folder that can't be written is an error that names it."""
    (tmp_path / "file").write_text("a file", "utf-8")
    with pytest.raises(StorageError):
        folder(tmp_path / "file").get("a", lambda: photograph(1))

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from project_keys import known
from spica.errors import StorageError, UsageError, WeightsError
from spica.models import active, store
from spica.models.card import WEIGHTS
from spica.models.listing import list_versions, pin
from spica.models.store import content_digest
from spica.models.version import base_of, find_version, open_version
from tiny_versions import FakeConversion, add_tiny, cache, fake_conversion, safetensors, tiny_version


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> FakeConversion:
    return fake_conversion(monkeypatch)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    path.write_bytes(safetensors({"a": [1.0, 2.0], "b": [3.0]}, {"spica.classes": '["spike"]'}))
    return path


def test_a_trained_version_is_a_folder_with_all_that_is_known_of_it(
    tmp_path: Path, weights: Path, conversion: FakeConversion
) -> None:
    """Card, weights, graph and curves are in the folder, and opening it again gives the same."""
    curve = tmp_path / "loss.png"
    curve.write_bytes(b"png")
    version = add_tiny(
        tmp_path,
        weights,
        parent="gwhd-00000000",
        metrics={"holdout": {"ap50": 0.8}},
        gate={"accepted": True, "sentence": "better"},
        extra_files=[curve],
    )
    opened = open_version(tmp_path, version)
    assert opened.id == version
    assert version.startswith("wheat-")
    assert set(opened.card.files) == {"model.xml", "model.bin", "model.safetensors", "loss.png"}
    assert opened.source is not None
    assert opened.source.read_bytes() == weights.read_bytes()
    assert (opened.card.parent, opened.card.base) == ("gwhd-00000000", "gwhd-00000000")
    assert opened.card.training == {"images": 3, "boxes": 9}
    assert opened.card.metrics == {"holdout": {"ap50": 0.8}, "verification": {"boxes": 7}}
    assert opened.card.gate == {"accepted": True, "sentence": "better"}
    assert opened.cache_dir.parent == tmp_path / "cache"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [version]


def test_the_same_weights_are_the_same_version_however_they_were_saved(
    tmp_path: Path, weights: Path, conversion: FakeConversion
) -> None:
    """Another order of tensors and of metadata, another name: the id is the same, and it is made once."""
    first = add_tiny(tmp_path, weights)
    again = tmp_path / "again.safetensors"
    again.write_bytes(safetensors({"b": [3.0], "a": [1.0, 2.0]}, {"spica.classes": '["spike"]'}))
    assert again.read_bytes() != weights.read_bytes()
    assert add_tiny(tmp_path, again, name="other") == first
    assert len(conversion.requests) == 1


@pytest.mark.parametrize(
    "other",
    [
        safetensors({"a": [1.0, 2.5], "b": [3.0]}, {"spica.classes": '["spike"]'}),
        safetensors({"a": [1.0, 2.0], "c": [3.0]}, {"spica.classes": '["spike"]'}),
        safetensors({"a": [1.0], "b": [2.0, 3.0]}, {"spica.classes": '["spike"]'}),
        safetensors({"a": [1.0, 2.0], "b": [3.0]}, {"spica.classes": '["ear"]'}),
    ],
    ids=["a number", "a name", "a shape", "metadata"],
)
def test_other_weights_are_another_version(
    tmp_path: Path, weights: Path, conversion: FakeConversion, other: bytes
) -> None:
    """One number, name, shape or word of metadata makes another id."""
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(other)
    assert content_digest(changed) != content_digest(weights)
    assert add_tiny(tmp_path, changed) != add_tiny(tmp_path, weights)


def test_the_writers_of_safetensors_agree(tmp_path: Path) -> None:
    """What the library writes, in whatever order, has one digest."""
    library = pytest.importorskip("safetensors.numpy", reason="needs the extra spica[train]")
    import numpy as np

    digests = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        numbers = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
        library.save_file(numbers, path, {str(key): "x" for key in range(6)})
        digests.add(content_digest(path))
    assert len(digests) == 1


def test_a_damaged_version_is_made_again_when_it_is_added_again(
    tmp_path: Path, weights: Path, conversion: FakeConversion
) -> None:
    """Adding mends what is damaged."""
    version = add_tiny(tmp_path, weights)
    (tmp_path / "models" / version / "model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError):
        open_version(tmp_path, version)
    assert add_tiny(tmp_path, weights) == version
    assert open_version(tmp_path, version).id == version


def test_the_gates_verdict_is_recorded_later(tmp_path: Path, weights: Path, conversion: FakeConversion) -> None:
    """The verdict and more metrics get into the card; the rest of it, and the id, stay."""
    version = add_tiny(tmp_path, weights, metrics={"seconds": 7})
    judged = store.record(tmp_path, version, gate={"accepted": False}, metrics={"holdout": {"ap50": 0.1}})
    assert judged.id == version
    assert judged.card.gate == {"accepted": False}
    assert judged.card.metrics == {"seconds": 7, "verification": {"boxes": 7}, "holdout": {"ap50": 0.1}}
    assert judged.card.training == {"images": 3, "boxes": 9}
    assert list_versions(tmp_path)[0].refused


def test_a_verdict_that_comes_with_the_second_adding_is_kept(
    tmp_path: Path, weights: Path, conversion: FakeConversion
) -> None:
    """A worker that was killed between making and judging adds again, and its verdict is not lost."""
    version = add_tiny(tmp_path, weights)
    assert add_tiny(tmp_path, weights, gate={"accepted": True}) == version
    assert list_versions(tmp_path)[0].verdict == "passed"


@pytest.mark.parametrize("name", ["model.json", "model.bin", "a b.png", ".hidden", "model.safetensors"])
def test_extra_files_can_not_take_a_place_that_is_taken(
    tmp_path: Path, weights: Path, conversion: FakeConversion, name: str
) -> None:
    """A curve named like the graph, or not plainly, is refused before anything is made."""
    path = tmp_path / "curves" / name
    path.parent.mkdir()
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="name"):
        add_tiny(tmp_path, weights, extra_files=[path])
    assert not (tmp_path / "models").exists()


def test_a_disk_that_fills_up_leaves_the_store_as_it_was(
    tmp_path: Path, weights: Path, conversion: FakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding and recording on a full disk are storage errors, and nothing half-written stays."""
    version = add_tiny(tmp_path, weights)
    card = (tmp_path / "models" / version / "model.json").read_bytes()
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors({"a": [9.0]}))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError):
            add_tiny(tmp_path, other)
        with pytest.raises(StorageError):
            store.record(tmp_path, version, gate={"accepted": True})
    assert [path.name for path in (tmp_path / "models").iterdir()] == [version]
    assert (tmp_path / "models" / version / "model.json").read_bytes() == card


def test_the_line_of_versions_leads_to_its_base(tmp_path: Path, weights: Path, conversion: FakeConversion) -> None:
    """The base is handed on, also when a version between was deleted; a version without a parent has none."""
    root = tiny_version(tmp_path, "root")
    child = add_tiny(tmp_path, weights, parent=root)
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors({"a": [9.0]}))
    grandchild = add_tiny(tmp_path, other, parent=child)
    shutil.rmtree(tmp_path / "models" / child)
    assert base_of(tmp_path, root) is None
    assert base_of(tmp_path, grandchild) == root
    loop = tiny_version(tmp_path, "loop", parent=f"loop-{'0' * 8}")
    assert base_of(tmp_path, loop) == "loop-00000000"


def test_the_list_tells_everything_and_survives_damage(
    tmp_path: Path, weights: Path, conversion: FakeConversion
) -> None:
    """Newest first, with what it learned from, verdict, use, pin and size; a damaged folder is a line, not an error."""
    old = tiny_version(tmp_path, "old", created="2026-01-01T00:00:00+00:00", gate={"accepted": False})
    new = add_tiny(tmp_path, weights, parent=old, metrics={"holdout": {"ap50": 0.8}}, gate={"accepted": True})
    broken = tiny_version(tmp_path, "broken")
    (tmp_path / "models" / broken / "model.json").write_bytes(b"{")
    (tmp_path / "models" / "a file").write_bytes(b"")
    (tmp_path / "models" / ".tmp-half").mkdir()
    cache(tmp_path, new, nbytes=1000)
    active.activate(tmp_path, known(4), new, base=old, why="passed the gate", by="training")
    pin(tmp_path, old)
    listed = {each.id: each for each in list_versions(tmp_path)}
    assert set(listed) == {old, new, broken}
    assert [each.id for each in list_versions(tmp_path)][-1] == old
    assert (listed[new].images, listed[new].boxes, listed[new].parent) == (3, 9, old)
    assert (listed[new].metrics, listed[new].verdict) == ({"ap50": 0.8}, "passed")
    assert [(use.project, use.why) for use in listed[new].active] == [(known(4), "passed the gate")]
    assert listed[new].bytes > 1000
    assert (listed[old].pinned, listed[old].refused, listed[old].damaged) == (True, True, None)
    assert "card" in (listed[broken].damaged or "")
    json.dumps([each.as_json() for each in listed.values()])


def test_an_empty_store_is_an_empty_list(tmp_path: Path) -> None:
    """A folder without a store is no error, and is not made."""
    assert list_versions(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_ids_are_found_by_their_beginning_or_their_digits(tmp_path: Path) -> None:
    """What a person types is enough if it means one version."""
    one, two = tiny_version(tmp_path, "wheat"), tiny_version(tmp_path, "wheat two")
    assert find_version(tmp_path, one) == one
    assert find_version(tmp_path, "wheat-t") == two
    assert find_version(tmp_path, one[-8:]) == one
    with pytest.raises(UsageError, match="several"):
        find_version(tmp_path, "wheat")
    with pytest.raises(UsageError, match="no such"):
        find_version(tmp_path, "maize")
    with pytest.raises(UsageError):
        find_version(tmp_path, "")


def test_caches_of_a_version_whose_id_begins_alike_are_not_its_own(tmp_path: Path) -> None:
    """A version named after another keeps its caches when the other's are counted."""
    from spica.models.listing import caches_of

    one = tiny_version(tmp_path, "wheat")
    two = tiny_version(tmp_path, one)
    own, others = cache(tmp_path, one), cache(tmp_path, two)
    assert two.startswith(one)
    assert caches_of(tmp_path, one) == [own]
    assert caches_of(tmp_path, two) == [others]


def test_a_card_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, weights: Path, conversion: FakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of a hundred thousand submissions fit; what is longer than a card may be is refused beforehand."""
    learned = {str(number): "2026-11-23T08:52:28.123456Z" for number in range(100_000)}
    version = add_tiny(tmp_path, weights, training={"learned": learned})
    assert len(open_version(tmp_path, version).card.training["learned"]) == 100_000
    monkeypatch.setattr(store, "MAX_CARD_BYTES", 2**20)
    with pytest.raises(UsageError, match="too long"):
        add_tiny(tmp_path, weights, training={"learned": learned})


def test_only_safetensors_are_trained_weights(tmp_path: Path, conversion: FakeConversion) -> None:
    """A .pth is refused with what is expected."""
    with pytest.raises(UsageError, match="safetensors"):
        add_tiny(tmp_path, tmp_path / "weights.pth")
    assert WEIGHTS == "model.safetensors"

"""`spica models` as a person types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fake_spica import FakeSpica
from project_keys import ONE, known
from spica import cli
from spica.cli import console
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.models import active
from spica.models.listing import list_versions, pin
from spica.models.version import answers_with, open_version
from spica.project import ProjectKey
from spica.training.takeover import take_over
from tiny_versions import cache, tiny_version

BASE = "gwhd-00000000"


@dataclass(frozen=True)
class Done:
    """Exit status, and what was printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What a program reads."""
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`spica models …` with the data folder of the test, in this process."""
    monkeypatch.setattr(console.out, "_width", 200)

    def run(*arguments: str | Path, data_dir: Path | None = tmp_path) -> Done:
        where = ["--data-dir", str(data_dir)] if data_dir is not None else []
        monkeypatch.setattr(sys, "argv", ["spica", "models", *map(str, arguments), *where])
        status: object = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        told = capsys.readouterr()
        return Done(int(str(status)), told.out, told.err)

    return run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A version and its child, which the gate has refused."""
    parent = tiny_version(
        tmp_path,
        "wheat",
        base=BASE,
        training={"images": 10, "boxes": 300},
        metrics={"holdout": {"ap50": 0.71, "ap": 0.4}},
        gate={"accepted": True, "sentence": "better by 0.1 AP50"},
    )
    child = tiny_version(
        tmp_path,
        "wheat second",
        parent=parent,
        base=BASE,
        created="2026-11-02T00:00:00+00:00",
        classes=("spike", "ear"),
        training={"images": 20, "boxes": 640, "learned": {str(task): "2026-11-01" for task in range(100)}},
        metrics={"holdout": {"ap50": 0.64}},
        gate={"accepted": False, "sentence": "worse by 0.07 AP50"},
    )
    return parent, child


def test_the_list_shows_what_is_there_and_why_it_is_active(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """Newest first, with parent, data, hold-out and verdict; below it what each project is served with, and why."""
    active.activate(tmp_path, known(4), pair[0], base=BASE, why="better by 0.1 AP50", by="training")
    pin(tmp_path, pair[1])
    done = run("list")
    assert done.status == 0
    lines = [line for line in done.out.splitlines() if any(each in line for each in pair)]
    assert lines[0].count("wheat") == 2, "the child comes first, with its parent"
    assert all(text in lines[0] for text in ("20 images, 640 boxes", "AP50 0.640", "refused", "pinned"))
    assert all(text in lines[1] for text in ("AP50 0.710, AP 0.400", "passed", "project 4"))
    assert f"Project 4: {pair[0]}" in done.out
    assert "by training: better by 0.1 AP50" in done.out
    told = run("list", "--json").json
    assert [each["id"] for each in told["versions"]] == [pair[1], pair[0]]
    assert told["active"][0]["version"] == pair[0]
    assert [each["id"] for each in run("list", "--project", "4", "--json").json["versions"]] == [pair[0]]


def test_an_empty_store_says_where_it_looked(run: Run, tmp_path: Path) -> None:
    """The folder is named, because it is often the wrong one."""
    done = run("list", data_dir=tmp_path / "elsewhere")
    assert done.status == 0
    assert str(tmp_path / "elsewhere") in done.out
    assert "--data-dir" in done.out


def test_damage_is_listed_and_is_no_failure(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """A damaged version and a damaged pointer are lines with a reason."""
    active.activate(tmp_path, known(4), pair[0], base=BASE, why="", by="")
    (tmp_path / "models" / pair[1] / "model.bin").unlink()
    for path in (tmp_path / "active").glob("4.*.json*"):
        path.write_bytes(b"{")
    done = run("list")
    assert done.status == 0
    assert f"Damaged: {pair[1]}" in done.out
    assert "Project 4: the record of the active model version is damaged" in done.out
    assert "damaged" in run("list", "--json").json["active"][0]["error"]


def test_show_tells_everything_after_checking_every_byte(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """The digits at the end are enough to name it; a changed byte makes it a failure with a reason."""
    done = run("show", pair[1][-8:])
    assert done.status == 0
    assert all(text in done.out for text in (pair[0], "spike, ear", "worse by 0.07 AP50", "learned: boxes"))
    assert "100 entries" in done.out
    assert len(done.out.splitlines()) < 40
    assert run("show", pair[1], "--json").json["card"]["training"]["boxes"] == 640
    (tmp_path / "models" / pair[1] / "model.bin").write_bytes(b"x" * 20)
    done = run("show", pair[1])
    assert done.status == 1
    assert "model.bin" in done.err


def test_diff_sets_two_side_by_side(run: Run, pair: tuple[str, str]) -> None:
    """Classes, data, hold-out and the gate's words, with the difference of numbers."""
    done = run("diff", *pair)
    assert done.status == 0
    row = next(line for line in done.out.splitlines() if "hold-out: ap50" in line)
    assert "0.71" in row
    assert "0.64" in row
    assert "-0.07" in row
    assert "spike, ear" in done.out
    assert "worse by 0.07" in done.out
    told = run("diff", *pair, "--json").json
    assert told["differ"]["learned: boxes"] == {"a": 300, "b": 640}
    assert (told["a"], told["b"]) == pair


def test_activate_and_rollback_without_label_studio(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """The choice is kept, what is missing is said, the way back is printed, and a refused version can be activated."""
    done = run("activate", pair[0], "--project", "1")
    assert done.status == 0, done.err
    assert f"served with {pair[0]} from now on" in done.out
    assert BASE in done.out
    assert "could not be asked which project 1 that is" in done.out
    assert "Label Studio was not told" in done.out
    assert "spica predictions refresh --project 1" in done.out
    run("activate", pair[1], "--project", "1", "--why", "I like it")
    take_over(tmp_path, ONE)  # as the model server does when it sees the project
    pointer = active.read(tmp_path, ONE)
    assert pointer is not None
    assert (pointer.version, pointer.base, pointer.now.why) == (pair[1], BASE, "I like it")
    assert "already" in run("activate", pair[1], "--project", "1").out
    done = run("rollback", "--project", "1")
    assert f"served with {pair[0]} again" in done.out
    assert f"spica models activate {pair[1]} --project 1" in done.out
    done = run("rollback", "--project", "1")
    assert "the weights that the server was started with again" in done.out
    assert active.resolve(tmp_path, ONE, BASE).version is None
    done = run("rollback", "--project", "1")
    assert done.status == 2
    assert "nothing to go back to" in done.err


def test_any_weights_leaves_the_base_open(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """With the option, and for a version that descends from nothing, the server's weights make no difference."""
    run("activate", pair[0], "--project", "1", "--any-weights")
    take_over(tmp_path, ONE)
    assert active.resolve(tmp_path, ONE, "other-11111111").version == pair[0]
    alone = tiny_version(tmp_path, "alone")
    run("activate", alone, "--project", "1")
    assert active.resolve(tmp_path, ONE, "other-11111111").version == alone


def test_label_studio_that_does_not_answer_is_no_failure(run: Run, pair: tuple[str, str]) -> None:
    """The pointer is set, the address is named, the token is not."""
    done = run("activate", pair[0], "--project", "1", "--url", "http://127.0.0.1:9", "--token", "s3cr3t" * 6)
    assert done.status == 0, done.err
    assert "127.0.0.1:9" in done.out
    assert "spica connect --project 1" in done.out
    assert "s3cr3t" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["show", "maize"], 2, "no such model version"),
        (["show", "wheat"], 2, "several model versions"),
        (["activate", "maize", "--project", "1"], 2, "no such model version"),
        (["activate", "../../etc", "--project", "1"], 2, "no such model version"),
        (["diff", "wheat-second", "maize"], 2, "maize"),
        (["delete", "maize"], 2, "no such model version"),
        (["pin", "maize"], 2, "no such model version"),
        (["export", "maize", "--out", "x.pth"], 2, "no such model version"),
        (["import", "nothing.zip"], 1, "nothing.zip"),
        (["import", "nothing.pth"], 1, "nothing.pth"),
        (["rollback", "--project", "7"], 2, "nothing to go back to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words_are_a_sentence(
    run: Run, pair: tuple[str, str], arguments: list[str], status: int, told: str
) -> None:
    """One sentence on standard error, what to do, the exit status, no traceback."""
    done = run(*arguments)
    assert done.status == status, done.err
    assert done.err.startswith("Error: ")
    assert told in done.err
    assert "Traceback" not in done.err


def test_delete_and_pins(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """What is active, a parent or pinned is refused with the reason and the remedy; the rest goes, with its caches."""
    cache(tmp_path, pair[1])
    active.activate(tmp_path, ONE, pair[1], base=BASE, why="", by="")
    done = run("delete", pair[1])
    assert done.status == 2
    assert "active in project 1" in done.err
    assert "spica models rollback --project 1" in done.err
    assert "the parent of" in run("delete", pair[0]).err
    active.rollback(tmp_path, ONE, by="")
    assert "is pinned" in run("pin", pair[1]).out
    assert "spica models unpin" in run("delete", pair[1]).err
    assert "not pinned any more" in run("unpin", pair[1]).out
    assert "was not pinned" in run("unpin", pair[1]).out
    assert "--yes" in run("delete", pair[1]).err
    assert "would be deleted" in run("delete", pair[1], "--dry-run").out
    done = run("delete", pair[1], "--yes")
    assert done.status == 0, done.err
    assert f"Deleted {pair[1]}" in done.out
    assert [each.id for each in list_versions(tmp_path)] == [pair[0]]
    assert list((tmp_path / "cache").iterdir()) == []


def test_export_and_import_on_another_machine(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """A zip taken out of one store goes into another, once."""
    done = run("export", pair[0], "--out", tmp_path / "wheat.zip")
    assert done.status == 0, done.err
    done = run("import", tmp_path / "wheat.zip", data_dir=tmp_path / "there")
    assert f"Imported {pair[0]}." in done.out
    assert f"spica models activate {pair[0]}" in done.out
    assert "already" in run("import", tmp_path / "wheat.zip", data_dir=tmp_path / "there").out
    assert open_version(tmp_path / "there", pair[0]).id == pair[0]


@pytest.mark.parametrize(
    ("told", "same"),
    [
        ("wheat-01234567", True),
        ("wheat-01234567.ab12", True),
        ("wheat-01234567-bf16.ab12", True),
        ("wheat-01234567-int8-12ab-t1024o20.ab12", True),
        ("wheat-01234567-tao20", True),
        ("wheat-01234567-89abcdef", False),
        ("wheat-012345678", False),
        ("wheat-0123456", False),
    ],
)
def test_a_version_is_recognised_in_whatever_arithmetic(told: str, same: bool) -> None:
    """Suffixes of arithmetic, tiles and recipe belong to the version; another id that begins alike does not."""
    assert answers_with(told, "wheat-01234567") is same


@pytest.mark.label_studio
def test_label_studio_moves_with_the_pointer(
    run: Run,
    tmp_path: Path,
    pair: tuple[str, str],
    label_studio: LabelStudioProcess,
    client: LabelStudioClient,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As soon as the model server answers with the version, title, model version and project version are its name,
    together; and back again.
    """
    where = ["--project", str(project.id), "--url", label_studio.url, "--token", label_studio.credentials.token]
    with FakeSpica() as server:
        server.version = f"{BASE}.abcd"
        client.connect_backend(project.id, url=server.url, is_interactive=False)
        real = active.activate

        def taken_up(*arguments: Any, **more: Any) -> active.Pointer:
            server.version = f"{arguments[2]}.abcd"  # what the model server does within a second
            return real(*arguments, **more)

        monkeypatch.setattr(active, "activate", taken_up)
        done = run("activate", pair[0], *where)
        assert done.status == 0, done.err
        assert f"Label Studio shows project {project.id} with {pair[0]}.abcd" in done.out
        assert shown(client, project.id) == (f"{pair[0]}.abcd", f"{pair[0]}.abcd", False)
        server.version = f"{BASE}.abcd"
        done = run("rollback", *where)
        assert done.status == 0, done.err
        assert shown(client, project.id) == (f"{BASE}.abcd", f"{BASE}.abcd", False)


def shown(client: LabelStudioClient, project: int) -> tuple[str, str, bool]:
    """Title of the one connected model, version of the project, whether drawing asks the model."""
    (backend,) = client.backends(project)
    return backend.title, client.project(project).model_version, backend.is_interactive


def test_several_projects_of_one_number(run: Run, tmp_path: Path, pair: tuple[str, str]) -> None:
    """Without Label Studio the only project of a number is meant; several are told apart by when they were created."""
    other = ProjectKey(1, ONE.created + 86400)
    active.activate(tmp_path, ONE, pair[0], base=BASE, why="", by="")
    assert run("activate", pair[1], "--project", "1").status == 0
    assert active.resolve(tmp_path, ONE, BASE).version == pair[1]
    active.activate(tmp_path, other, pair[0], base=BASE, why="", by="")
    for command in (["activate", pair[0], "--project", "1"], ["rollback", "--project", "1"]):
        done = run(*command)
        assert done.status == 2
        assert ONE.date in done.err
        assert other.date in done.err
        assert "--token" in done.err
    listed = run("list", "--project", "1").out
    assert f"Project 1 (created {ONE.date}): {pair[1]}" in listed
    assert f"Project 1 (created {other.date}): {pair[0]}" in listed
    told = run("list", "--project", "1", "--json").json
    assert [(each["project"], each["created"]) for each in told["active"]] == [(1, ONE.created), (1, other.created)]

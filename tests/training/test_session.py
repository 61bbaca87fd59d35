"""One training of a project, in the process that trains and step by step; Label Studio answers from memory."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from learning_lane import RECIPE, render
from scripted_label_studio import KEY, ScriptedLabelStudio
from spica.demo import model_folder
from spica.detectors.child import Child
from spica.errors import DataSetError, SpicaError, TrainingError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.config import RectangleControl, parse_label_config
from spica.labelstudio.records import Backend
from spica.models.card import read_card
from spica.server.trainer import Trainer, train_in_child
from spica.settings import Settings
from spica.training import holdout, session
from spica.training.dataset import DataSet
from spica.training.footprint import lacks_memory, peak_memory_bytes, threads_of, watch_memory
from spica.training.runs import TrainingJob
from training_data import wheat

WAIT_S = 60


def job(folder: Path, **settings: Any) -> TrainingJob:
    """For a project that no version answers yet, and a Label Studio that is not there."""
    values: dict[str, Any] = {
        "data_dir": folder,
        "label_studio_data_dir": folder,
        "label_studio_url": "http://127.0.0.1:9",
        "label_studio_api_key": SecretStr("a-secret-token"),
        "holdout_min": 2,
        **settings,
    }
    return TrainingJob(KEY, "r", folder / "run", None, None, Settings(**values))


@pytest.mark.torch
def test_from_submissions_to_a_verdict(tmp_path: Path) -> None:
    """A process of its own fetches, holds out, trains from the active version, stores, and judges; what is in doubt is
    left out, and the notes say so.
    """
    with ScriptedLabelStudio() as studio:
        for number in range(11):
            path = tmp_path / f"{number}.png"
            studio.regions.append(render(path, number))
            studio.images.append(path.read_bytes())
        for number in (9, 10):
            studio.regions[number][0]["value"]["rectanglelabels"] = ["gone"]
        settings = Settings(
            label_studio_url=studio.url,
            label_studio_api_key=SecretStr("token"),
            data_dir=tmp_path / "spica",
            label_studio_data_dir=tmp_path,
            holdout_min=3,
            train_threads=1,
            precision="f32",
        )
        trainer = Trainer(
            settings,
            threading.Event(),
            parent_of=lambda _: (read_card(model_folder()).id, model_folder()),
            on_end=lambda run: run,
            train=lambda job, report, stop: train_in_child(replace(job, recipe={**RECIPE, "epochs": 2}), report, stop),
        )
        begun = trainer.begin(KEY, title="field", cause="a test", new=11)
        assert trainer.run() is not None
    (run,) = trainer.runs.of(KEY)
    assert (run.id, run.is_judged, run.reason) == (begun.id, True, None)
    assert (run.images, run.holdout, run.epochs) == (6, 3, 2)
    assert run.notes[0].startswith('2 images left out: a box of class "gone", which is not known (task 10:')
    card = read_card(tmp_path / "spica" / "models" / (run.version or ""))
    assert (card.gate or {})["sentence"] == run.why
    assert (card.gate or {})["images"] == 3
    assert (card.training or {})["learned"] == run.learned
    assert len(run.learned) == 11  # what was left out is not new any more, either
    assert [path.name for path in trainer.runs.folder(run).iterdir()] == ["run.json"]


@pytest.mark.torch
def test_the_process_says_what_is_wrong(tmp_path: Path) -> None:
    """Its errors come back as sentences without the token."""
    with pytest.raises(SpicaError, match="Label Studio") as raised:
        train_in_child(job(tmp_path), lambda _: None, threading.Event())
    assert "127.0.0.1:9" in raised.value.summary
    assert "a-secret-token" not in raised.value.summary


def test_too_much_memory_ends_the_process(tmp_path: Path) -> None:
    """At once, with what to do."""
    code = (
        "import sys; from spica.training import session;"
        "session.watch_memory = lambda limit, exceeded: exceeded(2 * limit); sys.exit(session.main())"
    )
    with (
        Child("-c", code, what="training", where="project 1", hint="", failure=TrainingError) as child,
        pytest.raises(TrainingError, match="more memory") as raised,
    ):
        child.ask(job(tmp_path).as_json())
    assert "SPICA_TRAIN_MEMORY_BYTES" in (raised.value.hint or "")


def test_a_job_is_told_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment of the process says, it works by the server's settings; its token is shown nowhere, and
    the page's password stays in the server.
    """
    told = job(tmp_path, tile="512", overlap=0.35, precision="bf16", threshold=0.4, basic_auth=SecretStr("me:hidden"))
    written = json.dumps(told.as_json())
    monkeypatch.setenv("SPICA_THRESHOLD", "0.9")
    read = TrainingJob.from_json(json.loads(written))
    assert read == replace(told, settings=told.settings.model_copy(update={"basic_auth": None}))
    assert "hidden" not in written
    assert "a-secret-token" not in repr(read)


def controls(*thresholds: float | None) -> tuple[RectangleControl, ...]:
    """Control tags, each with a threshold of its own."""
    own = ["" if threshold is None else f' score_threshold="{threshold}"' for threshold in thresholds]
    tags = [
        f'<RectangleLabels name="c{number}" toName="i"{attribute}><Label value="spike"/></RectangleLabels>'
        for number, attribute in enumerate(own)
    ]
    return parse_label_config(f'<View><Image name="i" value="$image"/>{"".join(tags)}</View>').controls


@pytest.mark.parametrize(
    ("models", "tags", "expected"),
    [
        pytest.param([], [None], 0.5, id="the server's"),
        pytest.param([None], [None], 0.5, id="no extra params"),
        pytest.param(['{"score_threshold": 0.3}', '{"score_threshold": 0.1}'], [None], 0.3, id="the first model's"),
        pytest.param(['{"score_threshold": 0.3}'], [0.7], 0.7, id="the tag's before the model's"),
        pytest.param([None], [0.7, 0.6], 0.6, id="the lowest of two tags"),
    ],
)
def test_the_gate_judges_by_what_the_project_shows(
    tmp_path: Path, models: list[str | None], tags: list[float | None], expected: float
) -> None:
    """The threshold is the one that the project's predictions are shown by."""
    rows = [Backend(id=1, project=1, url="http://model", extra_params=extra_params) for extra_params in models]
    client = cast("LabelStudioClient", SimpleNamespace(backends=lambda _project: rows))
    assert session._threshold(job(tmp_path, threshold=0.5), client, controls(*tags)) == expected


def test_the_hold_out_is_written_before_anything_is_trained(tmp_path: Path) -> None:
    """What is held out is on the disk when the division is made, and a second training holds out the same."""
    data = wheat(tmp_path / "images", range(1000, 1006), width=96, height=64)
    train, held = session._held_out(job(tmp_path), data)
    again = session._held_out(job(tmp_path), data)
    digests = [[example.digest for example in part.examples] for part in (train, held)]
    assert digests == [[example.digest for example in part.examples] for part in again]
    assert not set(digests[0]) & set(digests[1])
    frozen = holdout.read(holdout.path_of(tmp_path, KEY))
    assert {digest for digest, placed in frozen.items() if placed.side == "holdout"} == set(digests[1])


def test_one_image_can_not_be_judged_by(tmp_path: Path) -> None:
    """With one annotated image nothing is trained and nothing is written, in a sentence that says how many it takes."""
    data = wheat(tmp_path / "images", range(1000, 1001), width=96, height=64)
    with pytest.raises(DataSetError, match="too few annotated images") as raised:
        session._held_out(job(tmp_path), DataSet(data.classes, data.examples, ("one was damaged",)))
    assert "one was damaged" in (raised.value.got or "")
    assert not holdout.path_of(tmp_path, KEY).exists()


def test_each_run_is_another_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images to learn from are learned from, with a seed of the run: started again after a refusal it differs."""
    loop = pytest.importorskip("spica.training.loop", reason="needs the extra spica[train]", exc_type=ImportError)
    data = wheat(tmp_path / "images", range(1000, 1002), width=96, height=64)
    many = DataSet(data.classes, data.examples * 35)
    taken: list[tuple[DataSet, Any, int]] = []

    def trained(data: DataSet, valid: Any, folder: Path, recipe: Any, **_: Any) -> Any:
        taken.append((data, valid, recipe.seed))
        return SimpleNamespace(notes=())

    monkeypatch.setattr(loop, "train", trained)
    for run in ("first", "first", "second"):
        session._train(replace(job(tmp_path), run=run), many, None, lambda **_: None)
    assert [(part, valid) for part, valid, _ in taken] == [(many, None)] * 3
    first, again, second = (seed for _, _, seed in taken)
    assert first == again != second


def test_threads() -> None:
    """By default half of the processors, at least one."""
    assert threads_of(5) == 5
    assert threads_of(0) == max(1, (os.cpu_count() or 2) // 2)


def test_memory_is_watched() -> None:
    """The peak of this process is known and positive, and going over the limit is reported with it."""
    assert peak_memory_bytes() > 10 * 2**20
    peaks: list[int] = []
    watch_memory(2**20, peaks.append).join(WAIT_S)
    assert peaks[0] > 2**20
    assert watch_memory(2**60, peaks.append).is_alive()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("[enforce fail at alloc_cpu.cpp:118] data. DefaultCPUAllocator: not enough memory: you tried", True),
        ("Tried to use an allocator that was unallocated", False),
    ],
    ids=["Linux", "Windows", "a bug"],
)
def test_lack_of_memory_is_known_by_torchs_own_words(text: str, expected: bool) -> None:
    """Only what torch says when memory can't be had counts as that; a bug is a bug."""
    assert lacks_memory(RuntimeError(text)) == expected

"""Asking a detector about photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from scripted_detector import ScriptedDetector, detections
from spica.evaluation.answering import Photograph, answer
from spica.evaluation.naming import Naming
from spica.evaluation.truth import Truth


def photograph(folder: Path, name: str, *, level: int = 200, size: tuple[int, int] = (64, 48)) -> Photograph:
    """A picture of one colour, with annotations for 64 x 48 pixels."""
    Image.new("RGB", size, (level,) * 3).save(folder / name)
    return Photograph(name, folder / name, Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 64, 48))


def test_failures_are_no_answers(tmp_path: Path) -> None:
    """What is gone, damaged, of another size, or too much for the detector is told, and is not an empty image."""
    asked = [
        photograph(tmp_path, "fine.png"),
        photograph(tmp_path, "gone.png"),
        photograph(tmp_path, "damaged.png"),
        photograph(tmp_path, "turned.png", size=(48, 64)),
        photograph(tmp_path, "black.png", level=0),
        photograph(tmp_path, "fine too.png"),
    ]
    asked[1].path.unlink()
    asked[2].path.write_bytes(b"\x89PNG\r\n\x1a\n")
    done: list[None] = []
    found = answer(
        ScriptedDetector(detections((1, 1, 9, 9, 0.5))),
        asked,
        Naming((0,)),
        max_pixels=10_000,
        progress=lambda: done.append(None),
    )
    assert [each.name for each in found.photographs] == ["fine.png", "fine too.png"]
    assert [len(each) for each in found.answers] == [1, 1]
    reasons = dict(found.failures)
    assert set(reasons) == {"gone.png", "damaged.png", "turned.png", "black.png"}
    assert "expected: 64 x 48; got: 48 x 64" in reasons["turned.png"]
    assert "ZeroDivisionError" in reasons["black.png"]
    assert len(done) == len(asked)
    assert len(found.seconds) == 2


def test_an_answer_outside_the_image(tmp_path: Path) -> None:
    """A detector that breaks its contract fails on that image."""
    found = answer(
        ScriptedDetector(detections((1, 1, 999, 9, 0.5))),
        [photograph(tmp_path, "a.png")],
        Naming((0,)),
        max_pixels=10_000,
    )
    assert not found.answers
    assert "breaks its contract" in found.failures[0][1]

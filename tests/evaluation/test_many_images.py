"""Asking detectors for many images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripted_detector import ScriptedDetector, detections
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.errors import TrainingError
from spica.evaluation.predict import Predictions, image_file, predict, reason

ONE_BOX = detections((1, 1, 9, 9, 0.5))


def write(path: Path, *, level: int = 200, size: tuple[int, int] = (64, 48)) -> Path:
    """A picture of one colour."""
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


class FailsOnBlack(ScriptedDetector):
    """Fails as a whole if one image of a batch is black."""

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        if not all(image.any() for image in images):
            raise ZeroDivisionError("black")
        return super().detect(images)


def asked(detector: ScriptedDetector, paths: Sequence[Path], batch: int = 1) -> Predictions:
    """What is predicted for pictures that should be of 64 x 48 pixels."""
    (result,) = predict([detector], [image_file(path, max_pixels=10_000, size=(64, 48)) for path in paths], batch=batch)
    return result


@pytest.mark.parametrize("batch", [1, 4, 10])
def test_failures_are_not_images_without_objects(tmp_path: Path, batch: int) -> None:
    """What is gone, damaged, of another size, or too much for the detector has its error, alone or in a batch."""
    paths = [
        write(tmp_path / "fine.png"),
        tmp_path / "gone.png",
        tmp_path / "damaged.png",
        write(tmp_path / "turned.png", size=(48, 64)),
        write(tmp_path / "black.png", level=0),
        write(tmp_path / "fine too.png"),
    ]
    paths[2].write_bytes(b"\x89PNG\r\n\x1a\n")
    result = asked(FailsOnBlack(ONE_BOX), paths, batch=batch)
    assert {paths[at].name: len(found) for at, found in result.detections.items()} == {"fine.png": 1, "fine too.png": 1}
    assert result.seconds.keys() == result.detections.keys()
    reasons = {paths[at].name: reason(error) for at, error in result.errors.items()}
    assert set(reasons) == {"gone.png", "damaged.png", "turned.png", "black.png"}
    assert "expected: 64 x 48; got: 48 x 64" in reasons["turned.png"]
    assert "the detector failed: ZeroDivisionError" in reasons["black.png"]
    with pytest.raises(ZeroDivisionError):
        asked(FailsOnBlack(ONE_BOX), paths[4:]).of_all()


def test_a_box_outside_the_image_is_an_error(tmp_path: Path) -> None:
    """A detector that breaks its contract fails on that image."""
    result = asked(ScriptedDetector(detections((1, 1, 999, 9, 0.5))), [write(tmp_path / "a.png")])
    assert not result.detections
    assert "breaks its contract" in reason(result.errors[0])


def test_detectors_take_turns_and_work_can_be_stopped_between_images() -> None:
    """An image is read just before its turn, all detectors see it before the next, and the hook can end the work."""
    log: list[str] = []

    class Logged(ScriptedDetector):
        def __init__(self, name: str) -> None:
            super().__init__(ONE_BOX)
            self.name = name

        def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
            log.append(self.name)
            return [ONE_BOX] * len(images)

    def read() -> RGBImage:
        log.append("read")
        return np.zeros((48, 64, 3), np.uint8)

    dones: list[int] = []
    first, second = predict([Logged("a"), Logged("b")], [read, read], between=dones.append)
    assert log == ["read", "a", "b"] * 2
    assert dones == [0, 1, 2]
    assert len(first.of_all()) == len(second.of_all()) == 2

    def stop(done: int) -> None:
        if done:
            raise TrainingError("stopped")

    log.clear()
    with pytest.raises(TrainingError):
        predict([Logged("a")], [read, read], between=stop)
    assert log == ["read", "a"]

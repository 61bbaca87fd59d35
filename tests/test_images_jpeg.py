"""The faster reader of ordinary JPEGs against Pillow, which alone decides about all others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PILImage

from spica import images
from spica.errors import ImageError
from spica.images import decode

fast = pytest.importorskip("simplejpeg", reason="simplejpeg is not installed; Pillow reads all JPEGs")


def answers(data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8] | str]:
    """What is said of the data with the faster reader and without."""

    def answer() -> NDArray[np.uint8] | str:
        try:
            return decode(data, where="photo", max_pixels=10**6).pixels
        except ImageError as error:
            return str(error)

    with monkeypatch.context() as patched:
        told = [answer()]
        patched.setattr(images, "_simplejpeg", lambda: None)
        return [*told, answer()]


def picture(seed: int, height: int, width: int) -> PILImage.Image:
    """Smooth here and noisy there."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([columns * 5, rows * 7, rows + columns], axis=2) % 256
    rng = np.random.default_rng(seed)
    noisy = rng.integers(0, 256, (height, width, 3))
    return PILImage.fromarray(np.where(rng.random((height, width, 1)) < 0.2, noisy, smooth).astype(np.uint8))


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_the_same_pixels_or_the_same_refusal(data: st.DataObject) -> None:
    """Of every JPEG, whole, cut off, damaged or with a tail, both readers give the same pixels or the same error."""
    image = picture(data.draw(st.integers(0, 999)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)))
    mode = data.draw(st.sampled_from(["RGB", "L", "CMYK", "kept RGB"]))
    file = io.BytesIO()
    image.convert(mode.split()[-1]).save(
        file,
        "JPEG",
        quality=data.draw(st.integers(5, 100)),
        subsampling=0 if mode == "kept RGB" else data.draw(st.integers(0, 2)),
        progressive=data.draw(st.booleans()),
        optimize=data.draw(st.booleans()),
        restart_marker_blocks=data.draw(st.integers(0, 3)),
        **({"keep_rgb": True} if mode == "kept RGB" else {}),
    )
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 3]))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content), len(content) // 2, len(content) - 2]))]
    content += data.draw(st.binary(max_size=20))
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick, slow = answers(bytes(content), monkeypatch)
    assert type(quick) is type(slow)
    assert np.array_equal(quick, slow)


def test_the_faster_reader_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary JPEG is not decoded by Pillow, and comes upright, writable and in one piece."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture(1, 20, 30).save(file, "JPEG", exif=exif)
    quick, slow = answers(file.getvalue(), monkeypatch)
    assert isinstance(quick, np.ndarray)
    assert quick.shape == (30, 20, 3)
    assert np.array_equal(quick, slow)
    assert quick.flags.writeable
    assert quick.flags.c_contiguous
    monkeypatch.setattr(images._Jpeg, "load", None)  # calling it would fail
    assert np.array_equal(decode(file.getvalue(), where="photo", max_pixels=10**6).pixels, quick)

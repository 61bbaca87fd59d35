"""Which photographs show the same thing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageEnhance

from annotated_images import photograph
from spica.images import decode
from spica.training.likeness import NEAR_BITS, fingerprint, near_pairs, stem_of, telling


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("photo_0_512.jpg", "photo"),
        ("photo-tile-3.jpg", "photo"),
        ("Photo_tile_003.png", "photo"),
        ("photo_x0_y512.jpg", "photo"),
        ("photo_r1_c2.tif", "photo"),
        ("DSC_1352_12kv2r1k_7.jpg", "dsc_1352_12kv2r1k"),
        ("field_jpg.rf.0123abcdef.jpg", "field"),
        ("photo_0_512~2.jpg", "photo"),
        ("畑_0_512.jpg", "畑"),
        ("a.jpg", None),
        ("IMG_0012.jpg", None),
        ("frame_000123.png", None),
        ("BloodImage_00012.jpg", None),
        ("IMG_20231105_101112.jpg", None),
        ("100_0123.JPG", None),
        ("image-003.png", None),
        ("tile_3.jpg", None),
        ("", None),
    ],
)
def test_names_of_tiles(name: str, stem: str | None) -> None:
    """Tiles are known by their names; the numbers that cameras and recorders give make no tiles."""
    assert stem_of(name) == stem


def test_a_stem_that_nearly_all_share() -> None:
    """A stem tells photos apart up to four fifths of the images."""
    assert telling(["a"] * 4 + [None]) == ["a"] * 4 + [None]
    assert telling(["a"] * 9 + [None]) == [None] * 10
    assert telling(["a", None]) == ["a", None]
    assert telling([]) == []


def near(one: NDArray[np.uint8], other: PILImage.Image) -> int:
    """Bits in which two images differ."""
    first, second = fingerprint(one), fingerprint(np.array(other.convert("RGB")))
    assert first is not None
    assert second is not None
    return (first ^ second).bit_count()


def test_copies_are_alike_and_others_are_not() -> None:
    """Recompressed, smaller and brighter copies are near-duplicates; other photographs are not."""
    for seed in range(10):
        image = decode(photograph(seed, (160, 120)), where="a", max_pixels=10**6).pixels
        same = PILImage.fromarray(image)
        packed = io.BytesIO()
        same.save(packed, "JPEG", quality=40)
        assert near(image, PILImage.open(packed)) <= NEAR_BITS
        assert near(image, same.resize((80, 60))) <= NEAR_BITS
        assert near(image, ImageEnhance.Brightness(same).enhance(1.1)) <= NEAR_BITS
        other = decode(photograph(seed + 100, (160, 120)), where="b", max_pixels=10**6).pixels
        assert near(image, PILImage.fromarray(other)) > NEAR_BITS


@pytest.mark.parametrize("shade", [0, 90, 255])
def test_plain_images_are_like_nothing(shade: int) -> None:
    """An image of one shade has no fingerprint: there is nothing in it by which to recognise another."""
    assert fingerprint(np.full((48, 64, 3), shade, np.uint8)) is None


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 15), max_size=20))
def test_pairs(values: list[int | None]) -> None:
    """Exactly the pairs at a distance of at most 8 bits are found, each once."""
    wanted = [
        (one, two)
        for one, first in enumerate(values)
        for two, second in enumerate(values)
        if one < two and first is not None and second is not None and (first ^ second).bit_count() <= NEAR_BITS
    ]
    assert sorted(near_pairs(values)) == wanted

"""TIFF in the layouts that cameras, microscopes and maps have: right to the pixel, or refused."""

from __future__ import annotations

import struct
import zlib
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from spica.errors import ImageError
from spica.images import decode, orientation_of

HEIGHT, WIDTH = 20, 37
GREY, WHITE_IS_ZERO, RGB = 1, 0, 2  # PhotometricInterpretation


def tiff(
    samples: NDArray[Any],
    photometric: int,
    *,
    order: Literal["<", ">"] = "<",
    planes: bool = False,
    tile: int | None = None,
    rows: int | None = None,
    deflate: bool = False,
    orientation: Any = None,
    bits: int | None = None,
    more: dict[int, tuple[int, list[int]]] | None = None,
    next_page: int = 0,
) -> bytes:
    """A TIFF 6.0 file of samples (height, width, channels), written by the book and by nobody's library.

    Args:
        samples: as they are stored; packed bits are (height, bytes, 1).
        photometric: what they mean.
        order: ``<`` or ``>``.
        planes: one channel after the other.
        tile: side of the tiles; None for strips.
        rows: of a strip; None for all of them.
        deflate: compressed.
        orientation: EXIF's.
        bits: of a sample, where that is not the type's.
        more: further tags: type and values.
        next_page: offset of a further page's directory.
    """
    height, width, channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order))
    chunks: list[bytes] = []
    for plane in np.split(data, channels, axis=2) if planes else [data]:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            corners = product(range(0, height, tile), range(0, width, tile))
            chunks += [padded[y : y + tile, x : x + tile].tobytes() for y, x in corners]
        else:
            chunks += [plane[y : y + (rows or height)].tobytes() for y in range(0, height, rows or height)]
    chunks = [zlib.compress(chunk) if deflate else chunk for chunk in chunks]
    offsets = [8 + sum(map(len, chunks[:number])) for number in range(len(chunks))]
    short, long = 3, 4
    tags: dict[int, tuple[int, list[int]]] = {
        256: (long, [width * 8 // bits if bits else width]),
        257: (long, [height]),
        258: (short, [bits or samples.dtype.itemsize * 8] * channels),
        259: (short, [8 if deflate else 1]),
        262: (short, [photometric]),
        277: (short, [channels]),
        284: (short, [2 if planes else 1]),
        339: (short, [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * channels),
        **(more or {}),
    }
    if orientation is not None:
        tags[274] = (short, [orientation])
    counts = [len(chunk) for chunk in chunks]
    if tile:
        tags |= {322: (long, [tile]), 323: (long, [tile]), 324: (long, offsets), 325: (long, counts)}
    else:
        tags |= {273: (long, offsets), 278: (long, [rows or height]), 279: (long, counts)}
    body = b"".join(chunks)
    start = 8 + len(body)
    table, beyond = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(order + {1: "B", short: "H", long: "I"}[kind] * len(values), *values)
        if len(packed) > 4:
            packed, beyond = struct.pack(order + "I", start + 6 + 12 * len(tags) + len(beyond)), beyond + packed
        table += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", start)
    return head + body + struct.pack(order + "H", len(tags)) + table + struct.pack(order + "I", next_page) + beyond


def read(data: bytes) -> NDArray[np.uint8]:
    return decode(data, where="photo", max_pixels=10_000).pixels


def noise(kind: str, channels: int) -> NDArray[Any]:
    """Random samples over the whole range of their type, its ends among them."""
    random = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, channels)
    if kind == "f4":
        samples = random.random(shape, np.float32)
        samples[0, 0], samples[0, 1] = 0, 1
        return samples
    limits = np.iinfo(kind)
    samples = random.integers(max(0, limits.min), limits.max, shape, kind, endpoint=True)
    samples[0, 0], samples[0, 1] = 0, limits.max
    return samples


def seen(samples: NDArray[Any], photometric: int) -> NDArray[np.float64]:
    """What a person sees, float (H, W, 3) in [0, 255]."""
    top = {"f": 1.0, "i": 65535.0}.get(samples.dtype.kind) or float(np.iinfo(samples.dtype).max)
    if samples.dtype == np.int32:
        top = float(np.iinfo(np.int32).max)  # no range of its own: the values'
    light = samples / top * 255
    if photometric == WHITE_IS_ZERO:
        light = 255 - light
    return np.asarray(light[:, :, :3] if samples.shape[2] >= 3 else light[:, :, :1].repeat(3, axis=2))


LAYOUTS: dict[str, dict[str, Any]] = {
    "-".join(["planes" if planes else "pixels", tiles, order, "deflate" if deflate else "plain"]): {
        "planes": planes,
        **({"tile": 16} if tiles == "tiles" else {"rows": 7 if tiles == "strips" else None}),
        "order": {"little": "<", "big": ">"}[order],
        "deflate": deflate,
    }
    for planes, tiles, order, deflate in product(
        (False, True), ("strip", "strips", "tiles"), ("little", "big"), (False, True)
    )
}
KINDS = {
    "grey8": ("u1", 1, GREY),
    "grey16": ("u2", 1, GREY),
    "grey16-signed": ("i2", 1, GREY),
    "grey32-signed": ("i4", 1, GREY),
    "float": ("f4", 1, GREY),
    "white-is-zero8": ("u1", 1, WHITE_IS_ZERO),
    "white-is-zero-float": ("f4", 1, WHITE_IS_ZERO),
    "RGB8": ("u1", 3, RGB),
    "RGB16": ("u2", 3, RGB),
    "RGBA8": ("u1", 4, RGB),
    "RGBA16": ("u2", 4, RGB),
}
ALPHA = {338: (3, [2])}  # ExtraSamples: not premultiplied


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_shows_what_is_stored(kind: str) -> None:
    """Strips or tiles, pixels or planes, either byte order, compressed or not: the picture is the one that is there."""
    name, channels, photometric = KINDS[kind]
    samples = noise(name, channels)
    expected = seen(samples, photometric)
    for layout, how in LAYOUTS.items():
        data = tiff(samples, photometric, more=ALPHA if channels == 4 else None, **how)
        np.testing.assert_allclose(read(data), expected, atol=1.01, err_msg=layout)


@pytest.mark.parametrize(("kind", "photometric"), [("u2", WHITE_IS_ZERO), ("u4", GREY)])
def test_what_pillow_knows_in_little_endian_only(kind: str, photometric: int) -> None:
    """16 bits with white as zero are no negative, and 32 bits without a sign do not wrap."""
    samples = noise(kind, 1)
    for layout, how in LAYOUTS.items():
        if how["order"] == "<":
            data = tiff(samples, photometric, **how)
            np.testing.assert_allclose(read(data), seen(samples, photometric), atol=1.01, err_msg=layout)


@pytest.mark.parametrize(
    ("kind", "channels", "photometric"),
    [
        ("f4", 3, RGB),
        ("u4", 3, RGB),
        ("i1", 1, GREY),
        ("i2", 3, RGB),
        ("u2", 2, GREY),
        ("i2", 1, WHITE_IS_ZERO),
        ("u4", 1, 0),
    ],
)
def test_what_is_not_read_is_refused(kind: str, channels: int, photometric: int) -> None:
    """Samples of a kind that is not known are refused with what to do, and never guessed at."""
    for how in LAYOUTS.values():
        with pytest.raises(ImageError) as refusal:
            read(tiff(noise(kind, channels), photometric, **how))
        assert "8 or 16 bits" in str(refusal.value.hint)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("photometric", [GREY, WHITE_IS_ZERO])
def test_packed_bits(photometric: int, deflate: bool, bits: int) -> None:
    """Grey of less than a byte a sample, white or black as zero, is as bright as it says."""
    packed = np.random.default_rng(1).integers(0, 256, (HEIGHT, 5, 1), np.uint8)
    each = np.unpackbits(packed[:, :, 0], axis=1).reshape(HEIGHT, -1, bits) @ (2 ** np.arange(bits)[::-1])
    light = each * 255 / (2**bits - 1)
    expected = 255 - light if photometric == WHITE_IS_ZERO else light
    np.testing.assert_allclose(read(tiff(packed, photometric, bits=bits, deflate=deflate))[:, :, 0], expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "layout", ["pixels-strips-little-plain", "planes-tiles-big-plain", "planes-strips-little-deflate"]
)
@pytest.mark.parametrize("kind", ["grey16", "float", "RGB8", "RGB16"])
def test_every_layout_is_turned_upright(kind: str, layout: str, orientation: int) -> None:
    """A TIFF of any layout stands as its EXIF says, and its orientation is told to whoever asks."""
    name, channels, photometric = KINDS[kind]
    samples = noise(name, channels)
    data = tiff(samples, photometric, orientation=orientation, **LAYOUTS[layout])
    expected = seen(samples, photometric)
    if orientation >= 5:
        expected = expected.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        expected = expected[::-1]
    if orientation in (2, 3, 6, 7):
        expected = expected[:, ::-1]
    np.testing.assert_allclose(read(data), expected, atol=1.01)
    assert orientation_of(data, where="photo") == orientation


@pytest.mark.parametrize("orientation", [0, 9, 700])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    """A TIFF with nonsense for its orientation is read as it is stored."""
    samples = noise("u1", 3)
    data = tiff(samples, RGB, orientation=orientation)
    np.testing.assert_array_equal(read(data), samples)
    assert orientation_of(data, where="photo") == 1


def test_xmp_turns_no_tiff() -> None:
    """What XMP says about the orientation is not believed, as in every other format."""
    samples = noise("u1", 3)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = tiff(samples, RGB, more={700: (1, list(xmp))})
    np.testing.assert_array_equal(read(data), samples)
    assert orientation_of(data, where="photo") == 1


@pytest.mark.parametrize("layout", ["pixels-strip-little-plain", "planes-tiles-little-deflate"])
def test_of_several_pages_the_first_is_read(layout: str) -> None:
    """A second page changes nothing about the first, whatever its layout."""
    samples = noise("u2", 3)
    first = tiff(samples, RGB, **LAYOUTS[layout])
    second = tiff(noise("u1", 1), GREY)
    plain = tiff(samples, RGB, next_page=len(first), **LAYOUTS[layout])
    offset = len(plain)
    directory = struct.unpack_from("<I", second, 4)[0]
    moved = bytearray(second[directory:])
    for entry in range(2, 2 + 12 * struct.unpack_from("<H", moved)[0], 12):
        if struct.unpack_from("<H", moved, entry)[0] == 273:  # the strip's place
            struct.pack_into("<I", moved, entry + 8, offset + len(moved))
    data = plain + bytes(moved) + second[8:directory]
    np.testing.assert_allclose(read(data), seen(samples, RGB), atol=1.01)

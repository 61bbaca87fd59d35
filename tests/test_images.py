"""Every kind of image that Label Studio takes, made here in memory."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ImageOps

from spica.errors import ImageError
from spica.images import Image, decode, digest_of

LIMIT = 10_000_000

# One colour a corner, so that every flip and turn is another picture; 2 rows, 3 columns.
CORNERS = np.array([[[255, 0, 0], [0, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255], [255, 255, 0]]], np.uint8)
GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50


def encoded(image: PIL.Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def read(data: bytes, max_pixels: int = LIMIT) -> Image:
    return decode(data, where="photo", max_pixels=max_pixels)


def large(array: NDArray[np.uint8], factor: int = 16) -> NDArray[np.uint8]:
    """Each pixel as a block that a lossy format keeps."""
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def oriented_exif(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_lossless_formats_come_back_exactly(file_format: str) -> None:
    """A lossless file's pixels come back as they were, uint8 RGB, C-contiguous and writable."""
    options = {"lossless": True} if file_format == "WEBP" else {}
    picture = large(CORNERS)
    image = read(encoded(PIL.Image.fromarray(picture), file_format, **options))
    np.testing.assert_array_equal(image.pixels, picture)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert image.pixels.flags.writeable
    assert (image.width, image.height) == (48, 32)


@pytest.mark.parametrize("file_format", ["JPEG", "AVIF"])
def test_lossy_formats_come_back_as_pillow_reads_them(file_format: str) -> None:
    """A lossy file's pixels are those that ``Image.open(…).convert("RGB")`` gives."""
    if file_format not in PIL.Image.registered_extensions().values():
        pytest.skip(f"this Pillow reads no {file_format}")
    data = encoded(PIL.Image.fromarray(large(CORNERS)), file_format)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(read(data).pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_applied(file_format: str, orientation: int) -> None:
    """A photograph stands as its EXIF says, in each of the eight ways, and so do its width and height."""
    every: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = every.get(file_format, {})
    stored = PIL.Image.fromarray(large(CORNERS))
    data = encoded(stored, file_format, exif=oriented_exif(orientation).tobytes(), **options)
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    image = read(data)
    assert (image.height, image.width) == expected.shape[:2]
    np.testing.assert_allclose(image.pixels.astype(int), expected, atol=12 if file_format == "JPEG" else 0)
    assert image.pixels.flags.c_contiguous


def test_orientation_in_big_endian_exif() -> None:
    """EXIF in big-endian order, as many cameras write it, is understood too."""
    block = b"Exif\x00\x00MM\x00*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    image = read(encoded(PIL.Image.fromarray(large(CORNERS)), "JPEG", exif=block))
    assert (image.width, image.height) == (32, 48)


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01",
        b"Exif\x00\x00II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 0, 0, 0),
        b"Exif\x00\x00II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 9, 0, 0),
        b"Exif\x00\x00II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 2, 1, 6, 0, 0),
        b"Exif\x00\x00II*\x00" + struct.pack("<IHHHIII", 8, 1, 0x011A, 5, 1, 0xFFFFFF, 0),
        b"not EXIF at all",
    ],
    ids=["empty", "short", "far", "entries-missing", "zero", "nine", "text", "value-missing", "other"],
)
def test_broken_exif_counts_as_upright(block: bytes) -> None:
    """Damaged EXIF neither fails nor warns: the image is read as it is stored."""
    plain = encoded(PIL.Image.fromarray(large(CORNERS)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    image = read(plain[:2] + segment + plain[2:])
    np.testing.assert_array_equal(image.pixels, read(plain).pixels)


def palette(transparency: bytes | int | None = None) -> bytes:
    image = PIL.Image.fromarray(CORNERS).quantize(8)
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def alpha(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([colour, np.array([[[0], [255], [128]], [[7], [0], [255]]], np.uint8)], axis=2)


COLOURS = {
    "RGBA": (encoded(PIL.Image.fromarray(alpha(CORNERS), "RGBA"), "PNG"), CORNERS),
    "RGBA-TIFF": (encoded(PIL.Image.fromarray(alpha(CORNERS), "RGBA"), "TIFF"), CORNERS),
    "LA": (encoded(PIL.Image.fromarray(alpha(GREY[:, :, None]), "LA"), "PNG"), np.stack([GREY] * 3, axis=2)),
    "L": (encoded(PIL.Image.fromarray(GREY), "PNG"), np.stack([GREY] * 3, axis=2)),
    "1": (
        encoded(PIL.Image.fromarray(GREY > 100), "PNG"),
        np.stack([np.where(GREY > 100, 255, 0).astype(np.uint8)] * 3, axis=2),
    ),
    "palette": (palette(), CORNERS),
    "palette-one-transparent": (palette(0), CORNERS),
    "palette-alpha": (palette(bytes(range(0, 256, 40))), CORNERS),
    "GIF": (encoded(PIL.Image.fromarray(CORNERS).quantize(8), "GIF"), CORNERS),
    "GIF-transparent": (encoded(PIL.Image.fromarray(CORNERS).quantize(8), "GIF", transparency=1), CORNERS),
    "CMYK-TIFF": (encoded(PIL.Image.fromarray(CORNERS).convert("CMYK"), "TIFF"), CORNERS),
}


@pytest.mark.parametrize(("data", "expected"), COLOURS.values(), ids=COLOURS.keys())
def test_colour_modes_become_rgb(data: bytes, expected: NDArray[np.uint8]) -> None:
    """Grey is tripled, a palette looked up, CMYK turned to light, transparency dropped; nothing warns."""
    np.testing.assert_array_equal(read(data).pixels, expected)


def test_inverted_cmyk_jpeg() -> None:
    """A CMYK JPEG as Adobe writes it, with inverted inks, shows its colours and not their negative."""
    data = encoded(PIL.Image.fromarray(large(CORNERS)).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data[:64]
    np.testing.assert_allclose(read(data).pixels.astype(int), large(CORNERS), atol=30)


def png(width: int, height: int, depth: int, colour_type: int, samples: bytes) -> bytes:
    """A PNG from its raw rows, for what Pillow can't write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    row = len(samples) // height if height else 0
    rows = b"".join(b"\x00" + samples[i : i + row] for i in range(0, len(samples), row)) if row else b""
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SIXTEEN = np.array([[0, 128, 129], [32768, 65406, 65535]], np.uint16)
SIXTEEN_AS_EIGHT = np.array([[0, 0, 1], [128, 254, 255]], np.uint8)  # 65535 / 255 = 257 a step, rounded


@pytest.mark.parametrize(
    "data",
    [
        png(3, 2, 16, 0, SIXTEEN.astype(">u2").tobytes()),
        encoded(PIL.Image.fromarray(SIXTEEN), "PNG"),
        encoded(PIL.Image.fromarray(SIXTEEN), "TIFF"),
        encoded(PIL.Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
        encoded(PIL.Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
    ],
    ids=["PNG", "PNG-pillow", "TIFF", "TIFF-lzw", "TIFF-big-endian"],
)
def test_sixteen_bit_grey_is_scaled_not_clipped(data: bytes) -> None:
    """The whole 16-bit range maps to 0 to 255, rounded to the nearest."""
    np.testing.assert_array_equal(read(data).pixels, np.stack([SIXTEEN_AS_EIGHT] * 3, axis=2))


def test_twelve_bit_grey_uses_its_own_range() -> None:
    """A TIFF of 12 bits a sample is as bright as the same picture in 8 bits."""
    values = np.array([[0, 4095, 2048, 16]], np.uint16)
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, ((first & 15) << 4) | (second >> 8), second & 255])
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\x00" + struct.pack("<I", 8 + len(packed)) + bytes(packed) + directory + b"\x00" * 4
    assert read(data).pixels[0, :, 0].tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize("colour_type", [2, 6], ids=["RGB", "RGBA"])
def test_sixteen_bit_colour_png(colour_type: int) -> None:
    """A 16-bit colour PNG keeps its brightness."""
    channels = {2: 3, 6: 4}[colour_type]
    wide = np.zeros((2, 3, channels), ">u2")
    wide[:, :, :3] = CORNERS.astype(np.uint16) * 257
    np.testing.assert_array_equal(read(png(3, 2, 16, colour_type, wide.tobytes())).pixels, CORNERS)


def test_sixteen_bit_colour_tiff() -> None:
    """A 16-bit colour TIFF keeps its brightness."""
    samples = (CORNERS.astype("<u2") * 257).tobytes()
    start = 8 + len(samples)
    entries = [(256, 4, 1, 3), (257, 4, 1, 2), (258, 3, 3, start), (259, 4, 1, 1), (262, 4, 1, 2), (273, 4, 1, 8)]
    entries += [(277, 4, 1, 3), (278, 4, 1, 2), (279, 4, 1, len(samples))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data = b"II*\x00" + struct.pack("<I", start + 8) + samples + struct.pack("<HHHH", 16, 16, 16, 0)
    np.testing.assert_array_equal(read(data + directory + b"\x00" * 4).pixels, CORNERS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 2.0, 255.0]], np.float32), [0, 2, 255]),
        (np.array([[0.0, 257.0, 65535.0]], np.float32), [0, 1, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[-5.0, -5.0, -5.0]], np.float32), [0, 0, 0]),
        (np.array([[0, 1, 255]], np.int32), [0, 1, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
        (np.array([[0, 0, 0]], np.int32), [0, 0, 0]),
    ],
    ids=["unit", "byte", "short", "signed", "nan", "constant", "int-byte", "int-short", "int-wide", "int-zero"],
)
def test_rangeless_formats_follow_the_documented_rule(values: NDArray[Any], expected: list[int]) -> None:
    """Integer and floating-point TIFF take the first usual range that holds all values, else their own."""
    image = read(encoded(PIL.Image.fromarray(values), "TIFF"))
    assert image.pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_first_page_or_frame(file_format: str) -> None:
    """Of several pages or frames the first is read."""
    first, second = PIL.Image.fromarray(large(CORNERS)), PIL.Image.new("RGB", (48, 32), (9, 9, 9))
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(first, file_format, save_all=True, append_images=[second], **options)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    np.testing.assert_array_equal(read(data).pixels, large(CORNERS))


def test_one_pixel() -> None:
    """The smallest image is an image."""
    image = read(encoded(PIL.Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))
    assert image.pixels.tolist() == [[[1, 2, 3]]]


def test_digest_is_of_the_file() -> None:
    """The digest is the SHA-256 of the file, so that equal pixels in different files differ."""
    data = encoded(PIL.Image.fromarray(CORNERS), "PNG")
    assert read(data).digest == digest_of(data) == hashlib.sha256(data).hexdigest()
    assert read(data).digest != read(encoded(PIL.Image.fromarray(CORNERS), "BMP")).digest


def test_the_limit_itself_is_allowed() -> None:
    """An image of exactly the limit is read, one pixel more is refused with both numbers and the setting."""
    data = encoded(PIL.Image.new("RGB", (5, 4)), "PNG")
    assert read(data, max_pixels=20).width == 5
    with pytest.raises(ImageError) as refusal:
        read(data, max_pixels=19)
    assert "5 x 4 = 20 pixels" in str(refusal.value)
    assert "at most 19" in str(refusal.value)
    assert "SPICA_MAX_PIXELS" in str(refusal.value)


def tiff_header(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 10)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<I", 8) + directory + b"\x00" * 4


@pytest.mark.parametrize(
    "data",
    [
        png(50_000, 50_000, 8, 2, b""),
        tiff_header(50_000, 50_000),
        b"GIF89a" + struct.pack("<HHBBBcHHHHBB", 65535, 65535, 0, 0, 0, b",", 0, 0, 65535, 65535, 0, 8),
        b"P6\n50000 50000\n255\n",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["PNG", "TIFF", "GIF", "PPM", "BMP"],
)
def test_gigapixels_are_refused_by_their_header(data: bytes) -> None:
    """A header that promises gigapixels is refused for its size, before the missing pixels are noticed."""
    with pytest.raises(ImageError, match="too large"):
        read(data, max_pixels=150_000_000)


def test_gigapixel_webp_is_refused() -> None:
    """Also where Pillow's reader applies its own limit before ours, the error is ours."""
    size = 16383
    alpha_and_size = b"\x10\x00\x00\x00" + (size - 1).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + alpha_and_size
    with pytest.raises(ImageError):
        read(b"RIFF" + struct.pack("<I", len(body)) + body, max_pixels=1_000_000)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG"])
def test_pillows_own_limit_neither_warns_nor_refuses(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our limit counts: an image over twice Pillow's is read in silence, and Pillow's stays as it was."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    picture = large(CORNERS)
    exif = oriented_exif(6).tobytes()
    image = read(encoded(PIL.Image.fromarray(picture), file_format, exif=exif))
    assert (image.width, image.height) == (32, 48)
    assert image.pixels.max() == 255
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


BAD = {
    "empty": (b"", "0 bytes"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "HTML"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "json": (b'{"detail": "Not found."}', "JSON"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 64, "HEIC"),
    "pdf": (b"%PDF-1.7", "PDF"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "25 21 50 53"),
    "noise": (bytes(range(200, 256)), "56 bytes"),
    "one-byte": (b"\xff", "1 bytes"),
    "jpeg-magic-only": (b"\xff\xd8\xff", "3 bytes"),
    "png-magic-only": (b"\x89PNG\r\n\x1a\n", "8 bytes"),
    "tiff-magic-only": (b"II*\x00", "4 bytes"),
    "webp-magic-only": (b"RIFF\x00\x00\x00\x00WEBP", "12 bytes"),
    "zero-size": (png(0, 0, 8, 2, b""), "bytes"),
}


@pytest.mark.parametrize(("data", "told"), BAD.values(), ids=BAD.keys())
def test_what_is_no_image_is_named(data: bytes, told: str) -> None:
    """Something else than an image is refused with what it is, where it is, and what to do."""
    with pytest.raises(ImageError) as refusal:
        read(data)
    assert told in str(refusal.value)
    assert refusal.value.where == "photo"
    assert refusal.value.expected
    assert refusal.value.hint


NOISE = np.random.default_rng(7).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_a_truncated_file_is_damaged_not_grey(file_format: str) -> None:
    """Half a file is an error, never an image with a grey lower half."""
    data = encoded(PIL.Image.fromarray(NOISE), file_format)
    with pytest.raises(ImageError) as refusal:
        read(data[: len(data) // 2])
    assert refusal.value.where == "photo"


def test_flipped_bytes_give_an_image_or_an_image_error() -> None:
    """A damaged file never fails in any other way than with an ImageError."""
    rng = np.random.default_rng(3)
    for file_format in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        data = encoded(PIL.Image.fromarray(NOISE), file_format)
        for _ in range(40):
            broken = bytearray(data)
            for position in rng.integers(0, min(len(data), 400), 6):
                broken[position] ^= int(rng.integers(1, 256))
            try:
                image = read(bytes(broken))
            except ImageError:
                continue
            assert image.pixels.ndim == 3


def test_many_threads_decode_at_once() -> None:
    """Decoding in several threads gives each its own image."""
    files = [encoded(PIL.Image.new("RGB", (64, 64), (level, 0, 0)), "PNG") for level in range(0, 250, 10)]
    seen: dict[int, int] = {}

    def work(index: int) -> None:
        seen[index] = int(read(files[index]).pixels[0, 0, 0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {index: 10 * index for index in range(len(files))}


def test_real_photographs_come_back_as_pillow_reads_them() -> None:
    """Photographs from cameras give the pixels that Pillow gives, upright."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    photographs = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:6]
    if not photographs:
        pytest.skip(f"no photographs in {folder}")
    for path in photographs:
        data = path.read_bytes()
        with PIL.Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        np.testing.assert_array_equal(read(data).pixels, expected)

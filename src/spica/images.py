"""Decode photographs: one place for formats, orientation and limits.

Rules, in the order in which they apply:

* The size in the file's header is checked before a pixel is decoded. Pillow's own limit is a global of that module
  and is left alone: the formats' readers are called directly, so it never warns or raises here.
* Of a multi-page TIFF the first page, of an animation (GIF, WebP, APNG) the first frame is read.
* Transparency is dropped, not blended, as ``Image.convert("RGB")``, torchvision's and OpenCV's readers do: the detector
  sees what it saw when it was trained.
* 16-bit grey is scaled by its whole range (65535 becomes 255), as browsers show it; 16-bit colour likewise. Formats
  without a range of their own (32-bit integer and floating-point TIFF) take the first of [0, 1] (floating point only),
  [0, 255] and [0, 65535] that holds all values, else their own minimum and maximum. Where zero is white (TIFF's
  ``WhiteIsZero``), it is turned round.
* Colour profiles are not applied.
* The EXIF orientation is applied, as browsers do. An orientation that can't be read counts as none.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
)
from PIL import Image as PILImage

from spica.errors import ImageError

READABLE: Final = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF"

_ORIENTATION_TAG: Final = 0x0112  # EXIF 2.32, table 4
_SHORT: Final = 3  # EXIF type of a 16-bit unsigned number
# TIFF 6.0: BitsPerSample, Compression, PhotometricInterpretation, SamplesPerPixel, PlanarConfiguration, SampleFormat
_BITS_TAG, _COMPRESSION_TAG, _PHOTOMETRIC_TAG, _SAMPLES_TAG, _PLANES_TAG, _FORMAT_TAG = 258, 259, 262, 277, 284, 339


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A decoded photograph.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, oriented, C-contiguous, writable (torch warns about arrays that are not).
        digest: SHA-256 of the file's bytes, 64 hexadecimal digits.
    """

    pixels: NDArray[np.uint8]
    digest: str

    @property
    def width(self) -> int:
        """Of the oriented image, in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Of the oriented image, in pixels."""
        return int(self.pixels.shape[0])


def digest_of(data: bytes) -> str:
    """SHA-256 of ``data``, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, where: str, max_pixels: int) -> Image:
    """The photograph in ``data``, upright and in RGB. Thread-safe.

    Args:
        data: the whole file.
        where: the file or address, for messages.
        max_pixels: width x height at most, by the file's header.

    Raises:
        ImageError: no image, of no known format, damaged, or too large.
    """
    opened = _open_within(max_pixels, data, where)
    orientation = _orientation_in(opened)
    try:
        _skip_pillows_limit(opened)
        opened.load()
        pixels = _upright(_rgb(opened), orientation)
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        raise ImageError(
            "an image is damaged",
            where=where,
            expected=f"a complete {opened.format}",
            got=_first_line(error),
            hint="Copy or export the file again.",
        ) from error
    return Image(pixels=pixels, digest=digest_of(data))


def decoded_bytes(data: bytes, *, where: str, max_pixels: int) -> int:
    """The bytes of memory that the pixels of the photograph in ``data`` will take, by its header alone.

    Raises:
        ImageError: no image, of no known format, or too large.
    """
    width, height = _open_within(max_pixels, data, where).size
    return 3 * width * height


def orientation_of(data: bytes, *, where: str) -> int:
    """The EXIF orientation, 1 to 8, by which :func:`decode` turns the photograph in ``data``; 1 for none.

    Raises:
        ImageError: no image, of no known format.
    """
    return _orientation_in(_open(data, where))


# --- formats


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nothing: the resolution is of no interest, and looking for it warns about damaged EXIF."""


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's reader without its faults: what libtiff unpacks comes in this machine's byte order, and sixteen bits a
    sample in planes are libtiff's to unpack, compressed or not. The picture stays as it is stored.
    """

    def _setup(self) -> None:
        tags = self.tag_v2
        if tags.get(_FORMAT_TAG, (1,))[0] == 2 and max(tags.get(_BITS_TAG, (1,))) == 8:
            raise SyntaxError("8 bits with a sign")  # Pillow would wrap those below zero
        if tags.get(_SAMPLES_TAG, 1) == 1:
            tags[_PLANES_TAG] = 1  # a single plane is no planes
        elif tags.get(_PLANES_TAG) == 2 and tags.get(_COMPRESSION_TAG, 1) == 1 and max(tags.get(_BITS_TAG, (1,))) == 16:
            tags[_COMPRESSION_TAG] = 8  # makes it libtiff's, which asks the file itself
        super()._setup()
        first = self.tile[0]
        if self.use_load_libtiff and isinstance(first.args, tuple):
            unpacked, *more = first.args
            self.tile = [first._replace(args=(_NATIVE.get(str(unpacked), unpacked), *more))]
        self._size = getattr(self, "_tile_size", self._size)  # before it is turned

    def load_end(self) -> None:
        """Nothing: Pillow would turn the picture, by XMP too."""


_NATIVE: Final = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS"}
"""Pillow's names of big-endian samples, and of the same in the machine's order."""

Reader = Callable[[io.BytesIO], ImageFile.ImageFile]


@functools.cache
def _readers() -> tuple[tuple[Callable[[bytes], bool], Reader], ...]:
    """Pairs of a test of the first 16 bytes and the reader. EPS, WMF and the like, which run programs, are left out."""

    def begins(*prefixes: bytes) -> Callable[[bytes], bool]:
        return lambda head: head.startswith(prefixes)

    def plugin(module: str, name: str) -> Reader:
        # Imported at the first use: rarer formats; and a Pillow without AVIF must not fail for JPEG.
        return lambda file: getattr(importlib.import_module(f"PIL.{module}"), name)(file)

    jpeg_2000 = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n")
    tiff = (b"MM\x00*", b"II*\x00", b"MM\x00+", b"II+\x00", b"MM*\x00", b"II\x00*")
    return (
        (begins(b"\xff\xd8\xff"), _Jpeg),
        (begins(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
        (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", plugin("WebPImagePlugin", "WebPImageFile")),
        (begins(*tiff), _Tiff),
        (begins(b"BM"), BmpImagePlugin.BmpImageFile),
        (begins(b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
        (lambda head: head[:1] == b"P" and head[1:2] in b"123456fy", PpmImagePlugin.PpmImageFile),
        (begins(*jpeg_2000), plugin("Jpeg2KImagePlugin", "Jpeg2KImageFile")),
        (
            lambda head: head[4:12] in (b"ftypavif", b"ftypavis") or head[4:12] == b"ftypmif1",
            plugin("AvifImagePlugin", "AvifImageFile"),
        ),
    )


def _open(data: bytes, where: str) -> ImageFile.ImageFile:
    """The image with its header read and its pixels not yet."""
    head = data[:16]
    reader = next((read for fits, read in _readers() if fits(head)), None)
    kind, hint = _no_image(data)
    if reader is None or kind == "an HEIC photograph":
        raise ImageError("not an image that can be read", where=where, expected=READABLE, got=kind, hint=hint)
    try:
        return reader(io.BytesIO(data))
    except PILImage.DecompressionBombError as error:  # WebP checks Pillow's limit by itself
        raise ImageError(
            "an image is too large", where=where, got=_first_line(error), hint="Cut the image into tiles."
        ) from error
    except Exception as error:  # as in decode
        raise ImageError(
            "an image's header can't be read",
            where=where,
            expected=READABLE,
            got=f"{len(data)} bytes; {_first_line(error)}",
            hint="Save it as PNG, or as a TIFF of 8 or 16 bits a sample, grey or RGB."
            if reader is _Tiff
            else "Copy or export the file again.",
        ) from error


def _open_within(max_pixels: int, data: bytes, where: str) -> ImageFile.ImageFile:
    opened = _open(data, where)
    width, height = opened.size
    if width * height > max_pixels:
        raise ImageError(
            "an image is too large",
            where=where,
            expected=f"at most {max_pixels} pixels",
            got=f"{width} x {height} = {width * height} pixels",
            hint="Cut the image into tiles, or raise SPICA_MAX_PIXELS if the memory allows it.",
        )
    return opened


_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})


def _no_image(data: bytes) -> tuple[str, str]:
    """What ``data`` looks like when it is no image of ours, and what to do about it."""
    if not data:
        return "an empty file (0 bytes)", "Copy or export the file again."
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and b"avif" not in data[8:64]:
        return "an HEIC photograph", "Convert it to JPEG; browsers do not show HEIC either."
    text = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)", "The address answers with a page, often a login page: open it in a browser."
    if text.startswith((b"<svg", b"<!doctype svg")) or (text.startswith((b"<?xml", b"<!--")) and b"<svg" in text):
        return "a vector drawing (SVG)", "Export it as PNG: a detector needs pixels."
    if text.startswith(b"<?xml"):
        return "an XML document", "Object stores answer errors so: check the address and its permissions."
    if text.startswith((b"{", b"[")):
        return "a JSON document", "The address answers with data, often an error: open it in a browser."
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "Run `git lfs pull` in the folder of the images."
    if text.startswith(b"%pdf"):
        return "a PDF document", "Export its pages as PNG."
    return f"{len(data)} bytes that begin with {data[:8].hex(' ')}", "Convert it to JPEG or PNG."


def _skip_pillows_limit(opened: ImageFile.ImageFile) -> None:
    """Give a large TIFF its memory before Pillow does: it would check its own limit, and warn, while doing so."""
    limit = PILImage.MAX_IMAGE_PIXELS
    if opened.format == "TIFF" and limit is not None and opened.width * opened.height > limit:
        opened.im = PILImage.new(opened.mode, opened.size).im


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- pixels


def _rgb(loaded: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """The stored pixels, uint8 (H, W, 3), RGB, not yet oriented."""
    mode = loaded.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        grey = _eight_bits(np.asarray(loaded), getattr(loaded, "tag_v2", {}))
        return np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)
    image: PILImage.Image = loaded
    if mode in ("P", "PA") and "transparency" in loaded.info:
        image = image.convert("RGBA")  # Pillow warns when asked for RGB at once
    elif mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[mode])
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image, np.uint8)  # (H, W, 3)


def _eight_bits(values: NDArray[Any], tags: Mapping[int, Any]) -> NDArray[np.uint8]:
    """Grey (H, W) of 16 or 32 bits to [0, 255], white the highest; ``tags`` are a TIFF's, empty for other formats."""
    bits, kind = tags.get(_BITS_TAG), tags.get(_FORMAT_TAG, (1,))
    if values.dtype.itemsize == 2:
        eight = _scaled(values.astype(np.uint16), 4095 if bits == (12,) else 65535)
    else:
        eight = _ranged(values.view(np.uint32) if bits == (32,) and kind == (1,) else values)
    return 255 - eight if tags.get(_PHOTOMETRIC_TAG) == 0 else eight


def _scaled(values: NDArray[np.uint16], maximum: int) -> NDArray[np.uint8]:
    """Values in [0, ``maximum``] to [0, 255], rounded to the nearest; larger ones are cut."""
    levels = np.minimum(np.arange(65536, dtype=np.uint64), maximum)
    table = ((levels * 510 + maximum) // (2 * maximum)).astype(np.uint8)  # (65536,)
    return np.asarray(table[values], np.uint8)


def _ranged(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values without a range of their own to [0, 255], by the rule at the top; NaN and infinities are 0."""
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    tops = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0.0, top
    return np.rint((finite - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8)


def _upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """``stored`` (H, W, 3) turned by its EXIF orientation, 1 to 8 (EXIF 2.32, 4.6.4.A), C-contiguous."""
    turned = stored.transpose(1, 0, 2) if orientation >= 5 else stored
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(turned[rows, columns])


def _orientation_in(opened: ImageFile.ImageFile) -> int:
    """The orientation, 1 to 8, by which an image is to be turned; 1 where none can be read.

    Read here and not by Pillow, which warns about damaged EXIF and also believes XMP, which browsers do not.
    """
    if isinstance(opened, _Tiff):  # a TIFF is itself a block of EXIF
        value = opened.tag_v2.get(_ORIENTATION_TAG)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    exif = opened.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    block = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for position in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _count, value = struct.unpack_from(order + "HHIH", block, position)
            if tag == _ORIENTATION_TAG and kind == _SHORT:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # a block that ends too early
        return 1
    return 1

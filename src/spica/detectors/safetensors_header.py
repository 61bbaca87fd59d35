"""The header of a ``.safetensors`` file, read with its bounds checked and without any library.

Format: 8 bytes little-endian length of the header, the header as JSON, then the numbers
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from spica.detectors.refusals import damaged

Shape = tuple[int, ...]

_MAX_HEADER_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 8
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_shapes(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes by key, and the file's own metadata.

    Raises:
        WeightsError: the header is damaged, or says more than the file has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise damaged(path, f"a header of {length} bytes in a file of {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no JSON object")
    told = header.pop("__metadata__", {})
    data_bytes = size - 8 - length
    shapes = {key: _shape(path, key, entry, data_bytes) for key, entry in header.items()}
    metadata = told if isinstance(told, dict) else {}
    return shapes, {key: value for key, value in metadata.items() if isinstance(value, str)}


def _shape(path: Path, key: str, entry: Any, data_bytes: int) -> Shape:
    wrong = damaged(path, f"the header's entry for {key}")
    if not isinstance(entry, dict):
        raise wrong
    shape, offsets = _naturals(entry.get("shape")), _naturals(entry.get("data_offsets"))
    item_bytes = _ITEM_BYTES.get(str(entry.get("dtype")))
    if shape is None or offsets is None or len(offsets) != 2 or item_bytes is None:
        raise wrong
    begin, end = offsets
    if not begin <= end <= data_bytes or max(shape, default=0) > data_bytes:
        raise damaged(path, f"{key} lies at bytes {begin} to {end}, the file has {data_bytes}")
    if math.prod(shape) * item_bytes != end - begin:
        raise wrong
    return shape


def _naturals(value: object) -> Shape | None:
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(item) is int and item >= 0 for item in value) else None

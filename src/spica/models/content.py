"""What a safetensors file says, whatever the order in which it says it.

The library that writes these files orders their header at random: the same network saved twice gives different bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from spica.detectors.refusals import damaged
from spica.detectors.safetensors_header import read_shapes

_CHUNK = 2**20


def content_digest(path: Path) -> str:
    """SHA-256 in hex over the tensors by name, their kinds, shapes and numbers, and over the metadata.

    Raises:
        WeightsError: the file is damaged.
    """
    _, metadata = read_shapes(path)  # checks every bound
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode("utf-8"))
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items()):
            begin, end = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode("utf-8"))
            file.seek(8 + length + begin)
            left = end - begin
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise damaged(path, f"{name} ends early")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()

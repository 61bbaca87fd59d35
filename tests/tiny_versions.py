"""Model versions of a few bytes that the store takes for sound ones: card, digests and all."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spica.detectors.checkpoint import read_safetensors
from spica.detectors.convert import Request
from spica.detectors.weights import WeightsInfo
from spica.files import sha256_file
from spica.models import store
from spica.models.card import CARD, Card, describe_files, fingerprint, version_id

SETTINGS: Mapping[str, Any] = {"score_floor": 0.05, "max_detections": 1000, "norm_eps": 0.0}


def tiny_version(data_dir: Path, name: str, *, nbytes: int = 20, **card: Any) -> str:
    """Put a version into the store, whole, and give its id; the same name gives the same one."""
    content = fingerprint([name])
    version = version_id(name, content)
    folder = data_dir / "models" / version
    folder.mkdir(parents=True)
    (folder / "model.xml").write_text(f"<net name='{name}'/>", "utf-8")
    (folder / "model.bin").write_bytes(bytes(nbytes))
    (folder / "model.safetensors").write_bytes(safetensors({"w": [1.0]}))
    files = describe_files(folder, ("model.xml", "model.bin", "model.safetensors"))
    made = Card(version, name, "fasterrcnn_resnet50_fpn", ("spike",), files, fingerprint=content)
    (folder / CARD).write_text(replace(made, **{"created": "2026-11-01T00:00:00+00:00", **card}).as_json(), "utf-8")
    return version


def age(data_dir: Path, version: str, seconds: float = 3600) -> None:
    """Have a version's folder look older than it is."""
    folder = data_dir / "models" / version
    when = folder.stat().st_mtime - seconds
    os.utime(folder, (when, when))


def cache(data_dir: Path, version: str, nbytes: int = 10) -> Path:
    """A cache of a compiled graph, as the detectors write it."""
    folder = data_dir / "cache" / f"{version}-{random.Random(version).randbytes(4).hex()}"  # noqa: S311 - no secret
    folder.mkdir(parents=True)
    (folder / "compiled.blob").write_bytes(bytes(nbytes))
    return folder


def safetensors(tensors: Mapping[str, list[float]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with these numbers, in the order in which they are given."""
    import struct

    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    data = b""
    for name, numbers in tensors.items():
        raw = struct.pack(f"<{len(numbers)}f", *numbers)
        header[name] = {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


class FakeConversion:
    """Stands for the real conversion: two small files, made of the weights' digest; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request, **_: Any) -> dict[str, Any]:
        self.requests.append(request)
        (Path(request.folder) / "model.xml").write_text("<net/>", "utf-8")
        (Path(request.folder) / "model.bin").write_text(request.sha256, "utf-8")
        return {"boxes": 7}


def inspect_tiny(path: Path, _architecture: str | None = None) -> WeightsInfo:
    """Take any safetensors file for the weights of the tutorial's network."""
    read_safetensors(path)
    return WeightsInfo(
        path, sha256_file(path), "safetensors", "fasterrcnn_resnet50_fpn", ("spike",), "frozen", path.stat().st_size
    )


def fake_conversion(patch: pytest.MonkeyPatch) -> FakeConversion:
    """Have the store take tiny weights, and convert them in no time."""
    conversion = FakeConversion()
    patch.setattr(store, "convert", conversion)
    patch.setattr(store, "inspect", inspect_tiny)
    return conversion


def add_tiny(data_dir: Path, weights: Path, name: str = "wheat", **more: Any) -> str:
    """``store.add`` with what most tests want; the id."""
    given: dict[str, Any] = {"parent": None, "training": {"images": 3, "boxes": 9}, "metrics": {}, **more}
    return store.add(data_dir, weights, name=name, **given, **SETTINGS).id

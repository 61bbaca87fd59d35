"""A small field of rendered wheat, and the detector trained on it."""

from __future__ import annotations

from pathlib import Path


def model_folder() -> Path:
    """The shipped detector: a folder with ``model.onnx`` and its card, ``model.json``."""
    return Path(__file__).resolve().parent / "model"

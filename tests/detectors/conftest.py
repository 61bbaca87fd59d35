"""Weights and converted models, made once a run."""

from __future__ import annotations

import pytest

from weights_builder import Prepared, prepared


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The tutorial's weights, one class, frozen batch norm, converted with the default settings."""
    return prepared(tmp_path_factory.getbasetemp(), 2, "frozen", 0.05)


@pytest.fixture(scope="session")
def reluctant(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A light network with three classes and BatchNorm2d, converted with a floor that no box is above."""
    return prepared(tmp_path_factory.getbasetemp(), 4, "batch", 0.9999, "fasterrcnn_mobilenet_v3_large_fpn")

"""Write src/spica/detectors/architectures.json from the networks themselves; a test keeps it true."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent.parent / "src" / "spica" / "detectors" / "architectures.json"

_FEW, _MANY = 3, 7
"""Numbers of outputs from which the shapes are told; both differ from all numbers of anchors."""


def table() -> dict[str, Any]:
    """By architecture: shapes by key, channels of the batch norm layers by name, and their eps."""
    from spica.detectors.networks import builders

    return {name: _entry(builder) for name, builder in builders().items()}


def text() -> str:
    """The whole file."""
    parts = []
    for name, entry in table().items():
        tensors = ",\n".join(f"   {json.dumps(key)}: {json.dumps(shape)}" for key, shape in entry["tensors"].items())
        norms = f'  "norms": {json.dumps(entry["norms"])}'
        parts.append(
            f'{json.dumps(name)}: {{\n  "eps": {json.dumps(entry["eps"])},\n{norms},\n  "tensors": {{\n{tensors}}}}}'
        )
    return "{" + ",\n".join(parts) + "}\n"


def _entry(builder: Any) -> dict[str, Any]:
    import torch

    with torch.device("meta"):
        few, many = builder(_FEW), builder(_MANY)
    layers = {name: layer for name, layer in few.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)}
    eps = {layer.eps for layer in layers.values()}
    norms = {name: layer.num_features for name, layer in layers.items()}
    grown = many.state_dict()
    tensors = {
        key: [_side(small, large) for small, large in zip(value.shape, grown[key].shape, strict=True)]
        for key, value in few.state_dict().items()
        if key.rpartition(".")[0] not in norms
    }
    return {"eps": eps.pop() if len(eps) == 1 else None, "norms": norms, "tensors": tensors}


def _side(few: int, many: int) -> int | list[int]:
    if few == many:
        return few
    factor = (many - few) // (_MANY - _FEW)
    return [factor, few - factor * _FEW]


if __name__ == "__main__":
    PATH.write_text(text(), "utf-8")
    sys.stdout.write(f"{PATH}\n")

"""Predictions checked by Label Studio's own SDK, and for what the SDK lets pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from label_studio_sdk.label_interface import LabelInterface


def check_result(label_config: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a prediction's result items, in the words of the SDK's ``LabelInterface``; empty if nothing.

    Besides, what it lets pass: negative percent, boxes that leave the image, and ids that are shared by items that are
    not one region.
    """
    problems: list[str] = LabelInterface(label_config).validate_prediction(
        {"result": list(results)}, return_errors=True
    )
    counted = Counter((item.get("id"), item.get("type")) for item in results)
    problems += [f"the id {name!r} is used {count} times" for (name, _), count in counted.items() if count > 1]
    for index, item in enumerate(results):
        value = item["value"]
        x, y, width, height = (float(value[name] or 0) for name in ("x", "y", "width", "height"))
        if not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 100 and y + height <= 100):
            problems.append(f"Region {index}: outside the image")
    return problems

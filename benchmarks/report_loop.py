"""The numbers of :mod:`benchmarks.loop` as a report and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.bench import machine

from .markdown import table

Found = dict[str, Any]

_TITLES = {"bccd": "Blood cells (bccd)", "pear": "Pears (pear)"}
_ARMS = {"learning": "learning", "fixed": "first version kept", "nothing": "from nothing"}
_EDITS = ("kept", "moved", "relabelled", "deleted", "drawn")


def text(found: Found, command: str, figure: Path | None) -> str:
    """The whole report, in Markdown."""
    packages = ("torch", "torchvision", "openvino", "faster-coco-eval")
    conditions = [
        ("processor", f"{machine.processor()}, {machine.cores()} logical cores"),
        ("instruction sets", machine.instruction_sets()),
        ("memory", machine.memory()),
        ("packages", machine.versions(packages)),
    ]
    parts = [
        "# The loop, measured",
        f"Written by `{command.strip()}` on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC. A simulated annotator who knows "
        "the truth is shown the boxes of the active version (score 0.6 or more) on 20 new photographs a round, and "
        "corrects them; then a candidate is trained on all corrected photographs but the hold-out, and the gate "
        "decides. The cost of edits in seconds is that of `spica.assistance.edits` (kept 0.5, moved 4, relabelled "
        "2.5, deleted 1.5, drawn 7), assumed and not measured on people. AP50 is that of the version that is active "
        "after the round, on the validation part, which nothing is trained or judged on. *First version kept*: the "
        "version of the first round that passed the gate, never trained again. Seconds of training hold for this "
        "machine in that hour only.",
        table(("condition", "value"), conditions),
    ]
    if figure is not None:
        parts.append(f"![cost of correction and AP50 by round]({figure.name})")
    for name, title in _TITLES.items():
        if name in found:
            parts += [f"## {title}", *_rounds(found[name])]
    if "speed" in found:
        parts += ["## Labelling while a training runs", _speed(found["speed"])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def draw(found: Found, path: Path) -> None:
    """Two panels a data set: seconds of correction a photograph, and AP50, by round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in _TITLES if name in found]
    if not names:
        return
    figure, axes = plt.subplots(2, len(names), figsize=(5.2 * len(names), 6.2), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        rounds = found[name]["figures"]
        numbers = [each["number"] for each in rounds]
        for arm, title in _ARMS.items():
            axes[0][column].plot(numbers, [_per_photograph(each, arm) for each in rounds], marker="o", label=title)
        axes[1][column].plot(numbers, [each["ap50"] or 0 for each in rounds], marker="o", label="active version")
        rejected = [each for each in rounds if not each["passed"]]
        axes[1][column].scatter(
            [each["number"] for each in rejected],
            [each["candidate_ap50"] or 0 for each in rejected],
            marker="x",
            color="tab:red",
            label="refused candidate",
        )
        axes[0][column].set(title=_TITLES[name], ylabel="correction, s a photograph", ylim=(0, None))
        axes[1][column].set(xlabel="round of 20 photographs", ylabel="AP50, validation", ylim=(0, 1), xticks=numbers)
    axes[0][0].legend()
    axes[1][0].legend()
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _rounds(part: Mapping[str, Any]) -> list[str]:
    rounds: Sequence[Mapping[str, Any]] = part["figures"]
    head = (
        "round",
        "photographs so far",
        "edits, learning (kept, moved, relabelled, deleted, drawn)",
        "changes by hand: learning / first version kept / from nothing",
        "s a photograph, learning",
        "first version kept",
        "from nothing",
        "training, s",
        "conversion and gate, s",
        "trained on / held out",
        "candidate's AP50",
        "gate",
        "AP50 after",
    )
    lines = [
        (
            str(each["number"]),
            str(each["annotated"]),
            ", ".join(str(each["learning"][edit]) for edit in _EDITS),
            " / ".join(str(_changes(each, arm)) for arm in _ARMS),
            *(f"{_per_photograph(each, arm):.1f}" for arm in _ARMS),
            f"{each['train_s']:.0f}",
            f"{each['converted_s']:.0f}",
            f"{each['trained_on']} / {each['held_out']}",
            _ap(each["candidate_ap50"]),
            "passed" if each["passed"] else "refused",
            _ap(each["ap50"]),
        )
        for each in rounds
    ]
    totals = {arm: sum(each[arm]["cost_s"] for each in rounds) for arm in _ARMS}
    changes = {arm: sum(_changes(each, arm) for each in rounds) for arm in _ARMS}
    later = {arm: sum(each[arm]["cost_s"] for each in rounds[1:]) for arm in _ARMS}
    summary = (
        f"All {len(rounds)} rounds: {totals['learning'] / 60:.1f} minutes of correction with learning, "
        f"{totals['fixed'] / 60:.1f} with the first version kept, {totals['nothing'] / 60:.1f} from nothing; without "
        "the first round, in which there are no boxes yet: "
        f"{later['learning'] / 60:.1f}, {later['fixed'] / 60:.1f}, {later['nothing'] / 60:.1f}. Boxes moved, "
        f"relabelled, deleted or drawn: {changes['learning']}, {changes['fixed']}, {changes['nothing']}. "
        f"Begun {part['when'][:16].replace('T', ' at ')} UTC, busy processes at the end {part['load']}."
    )
    reasons = "\n".join(f"- Round {each['number']}: {each['reason']}" for each in rounds)
    return [table(head, lines), summary, "What the gate said:", reasons]


def _speed(part: Mapping[str, Any]) -> str:
    lines = [
        (
            name,
            f"{row['idle']['median']:.3f}",
            f"{row['beside']['median']:.3f}",
            f"{row['median']:.2f}",
            f"{row['p95']:.2f}",
            f"{row['idle']['looks']} + {row['beside']['looks']}",
        )
        for name, row in part["figures"].items()
    ]
    head = ("served network", "idle, s", "beside a training, s", "times, median", "times, 95th percentile", "looks")
    return (
        "`spica serve` answers one opened photograph at a time (f32, nothing remembered), in turn without and with a "
        "training of the default architecture as the server runs it (lowest priority, half of the processors). Begun "
        f"{part['when'][:16].replace('T', ' at ')} UTC, busy processes at the end {part['load']}.\n\n"
        + table(head, lines)
    )


def _per_photograph(each: Mapping[str, Any], arm: str) -> float:
    return float(each[arm]["cost_s"]) / 20


def _changes(each: Mapping[str, Any], arm: str) -> int:
    """Edits that cost a hand's movement: all but the boxes that were right and kept."""
    return sum(int(each[arm][edit]) for edit in _EDITS if edit != "kept")


def _ap(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "–"

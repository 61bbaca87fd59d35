"""The one report writer: what was measured, as Markdown with the machine that it was measured on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.bench import machine
from spica.errors import SpicaError
from spica.files import write_text

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
"""Where photographs with boxes are looked for: ``bccd`` and ``pear``, each with ``train.json`` and ``valid.json``."""

sys.path.insert(0, str(ROOT / "tests"))
from untrained import write_untrained as write_untrained  # noqa: E402 - the tests' own; needs the line above

_PACKAGES = ("label-studio", "openvino", "torch", "torchvision", "nncf", "numpy", "pillow", "faster-coco-eval")

Parts = dict[str, Any]
"""By name of a part: ``figures`` or ``failed``, ``when``, ``load`` and ``conditions``."""


def say(line: str) -> None:
    """Tell on standard error what is being done."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """The options that every benchmark has."""
    add = parser.add_argument
    add("--only", nargs="+", choices=parts, default=list(parts), help="parts to run; all by default")
    add("--results", type=Path, help="write the report here; without it, on the screen")
    add("--figures", type=Path, help="keep the figures here, as JSON, and take parts that are not run from there")


def conditions() -> dict[str, str]:
    """What a figure depends on."""
    return {
        "processor": f"{machine.processor()}, {machine.cores()} logical cores",
        "instruction sets": machine.instruction_sets(),
        "memory": machine.memory(),
        "packages": machine.versions(_PACKAGES),
    }


def measure(options: argparse.Namespace, parts: Mapping[str, Callable[[], Any]]) -> Parts:
    """Run the parts that were asked for; a failure is a line of the report, and the others are run.

    Figures are written after each part, so that a long run that breaks off leaves what it had.
    """
    path: Path | None = options.figures
    measured: Parts = json.loads(path.read_text("utf-8")) if path is not None and path.is_file() else {}
    for name, run in parts.items():
        say(f"== {name}")
        part: dict[str, Any] = {"when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "conditions": conditions()}
        try:
            part["figures"] = run()
        except Exception as error:  # noqa: BLE001 - an hour of other figures must not be lost
            part["failed"] = error.summary if isinstance(error, SpicaError) else f"{type(error).__name__}: {error}"
            say(f"{name} failed: {part['failed']}")
        measured[name] = {**part, "load": machine.load()}
        if path is not None:
            write_text(path, json.dumps(measured, indent=1))
    return measured


def text(
    title: str, introduction: str, measured: Parts, sections: Mapping[str, tuple[str, Callable[[Any], str]]]
) -> str:
    """The report; ``sections`` has, by part and in order, a heading and what writes the part's figures in Markdown."""
    command = " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    known: dict[str, str] = next((part["conditions"] for part in measured.values()), conditions())
    blocks = [f"# {title}", f"Written by `{command}`. {introduction} Seconds hold for this machine in that hour only."]
    blocks.append(table(("condition", "value"), list(known.items())))
    for name, (heading, write) in sections.items():
        if name not in measured:
            continue
        part = measured[name]
        changed = [f"{key} {value}" for key, value in part["conditions"].items() if known.get(key) != value]
        blocks.append(f"## {heading}")
        blocks.append(
            f"Begun {part['when']}, busy processes at the end {part['load']}."
            + (f" Other conditions than above: {'; '.join(changed)}." if changed else "")
            + (f" **Not measured:** {part['failed'].rstrip('.')}." if "failed" in part else "")
        )
        if "figures" in part:
            blocks.append(write(part["figures"]))
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def publish(report: str, path: Path | None) -> None:
    """Write the report to the file, or to the screen."""
    if path is None:
        print(report)
        return
    write_text(path, report)
    say(f"written: {path}")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown.

    Raises:
        ValueError: a row has more or fewer cells than the head.
    """
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"a row does not fit the head {head}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash for None."""
    return "–" if value is None else format(value, form)


def percent(share: float | None) -> str:
    """A share in per cent, or a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"

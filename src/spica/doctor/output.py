"""What a check has found, and findings on a console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

Status = Literal["ok", "problem", "skipped"]

_MARKS: dict[Status, str] = {"ok": "✓", "problem": "✗", "skipped": "–"}
_PLAIN_MARKS: dict[Status, str] = {"ok": "ok", "problem": "XX", "skipped": "--"}
_STYLES: dict[Status, str] = {"ok": "green", "problem": "bold red", "skipped": "yellow"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: stable name of the check, for programs.
        group: heading: ``Label Studio``, ``Model server`` or ``Project 1 (title)``.
        status: ``ok``; ``problem``; or ``skipped`` for a check that could not be made, or makes no sense here.
        what: one sentence.
        where: the address, file or setting concerned.
        got: what came instead, in the other side's words.
        hint: what helps, with the lines to paste; beside ``ok``, what could be better still.
        project: number of the project, None outside of one.
    """

    check: str
    group: str
    status: Status
    what: str
    where: str | None = None
    got: str | None = None
    hint: str | None = None
    project: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong here. A skipped check is not: the failing one that it waits for counts already."""
        return self.status != "problem"

    def as_json(self) -> dict[str, Any]:
        """All but the heading; ``status`` tells a passed check from a skipped one."""
        names = ("check", "status", "project", "what", "where", "got", "hint")
        return {name: getattr(self, name) for name in names}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Show findings by heading, what helps below them, and the sum.

    Lines are left to the console to wrap, so that what is to be pasted stays one line. A console whose encoding lacks
    the marks (Windows' code pages) gets plain ones.
    """
    marks = _MARKS if _can_show("".join(_MARKS.values()), console.encoding) else _PLAIN_MARKS
    for group, members in groupby(findings, key=lambda finding: finding.group):
        _line(console, Text(group, "bold"))
        for finding in members:
            _show(console, finding, marks[finding.status])
        _line(console, Text(""))
    problems = sum(not finding.ok for finding in findings)
    skipped = sum(finding.status == "skipped" for finding in findings)
    rest = f" {_count(skipped, 'check')} could not be made." if skipped else ""
    _line(console, Text(f"{_count(problems, 'problem')}.{rest}", "bold red")
          if problems else Text(f"All is well.{rest}", "bold green"))  # fmt: skip


def _show(console: Console, finding: Finding, mark: str) -> None:
    indent = " " * (len(mark) + 3)
    _line(console, Text.assemble("  ", (mark, _STYLES[finding.status]), " ", finding.what))
    details = [("where", finding.where), ("got", finding.got)] if finding.status != "ok" else []
    for name, detail in details:
        if detail is not None:
            _line(console, Text(f"{indent}{name}: {' '.join(detail.split())}", "dim"))
    if finding.hint is not None:
        first, *others = finding.hint.splitlines()
        _line(console, Text.assemble(indent, ("note: " if finding.ok else "to do: ", "cyan"), first))
        for line in others:
            _line(console, Text(f"{indent}  {line}"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line(console: Console, text: Text) -> None:
    if not _can_show(text.plain, console.encoding):
        shown = text.plain.encode(console.encoding, "replace").decode(console.encoding)
        text = Text(shown, text.style)
    console.print(text, soft_wrap=True, highlight=False)


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True

"""Findings on a console."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from spica.doctor.finding import Finding, Status

_MARKS: dict[Status, str] = {"ok": "✓", "problem": "✗", "skipped": "–"}
_PLAIN_MARKS: dict[Status, str] = {"ok": "ok", "problem": "XX", "skipped": "--"}
_STYLES: dict[Status, str] = {"ok": "green", "problem": "bold red", "skipped": "yellow"}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Show findings by what was looked at, remedies below them, and the sum.

    Lines are left to the console to wrap, so that what is to be pasted stays one line. A console whose encoding lacks
    the marks (Windows' code pages) gets plain ones.
    """
    marks = _MARKS if _can_show("".join(_MARKS.values()), console.encoding) else _PLAIN_MARKS
    for group, members in groupby(findings, key=lambda finding: finding.group):
        _line(console, Text(group, "bold"))
        for finding in members:
            _show(console, finding, marks[finding.status])
        _line(console, Text(""))
    _line(console, _sum(findings))


def _show(console: Console, finding: Finding, mark: str) -> None:
    indent = " " * (len(mark) + 3)
    _line(console, Text.assemble("  ", (mark, _STYLES[finding.status]), " ", finding.what))
    details = [("where", finding.where), ("got", finding.got)] if finding.status != "ok" else []
    for name, detail in details:
        if detail is not None:
            _line(console, Text(f"{indent}{name}: {_flat(detail)}", "dim"))
    if finding.hint is not None:
        name = "to do" if finding.status == "problem" else "note"
        first, *others = finding.hint.splitlines()
        _line(console, Text.assemble(indent, (f"{name}: ", "cyan"), first))
        for line in others:
            _line(console, Text(f"{indent}  {line}"))


def _sum(findings: Sequence[Finding]) -> Text:
    problems = sum(finding.status == "problem" for finding in findings)
    skipped = sum(finding.status == "skipped" for finding in findings)
    rest = f" {_count(skipped, 'check')} could not be made." if skipped else ""
    if problems:
        return Text(f"{_count(problems, 'problem')}.{rest}", "bold red")
    return Text(f"All is well.{rest}", "bold green")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _flat(text: str) -> str:
    return " ".join(text.split())


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

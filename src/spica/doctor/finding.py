"""What a check found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from spica.errors import SpicaError

logger = logging.getLogger(__name__)

Status = Literal["ok", "problem", "skipped"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: stable name of the check, for programs.
        group: what was looked at, for people: ``Label Studio``, ``Model server`` or ``Project 1 (title)``.
        status: ``ok``; ``problem``; or ``skipped`` for a check that could not be made, or makes no sense here.
        what: one sentence.
        where: the address, file or setting concerned.
        got: what came instead, in the other side's words.
        hint: how to mend it, the lines to paste included; beside ``ok``, what could be better still.
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
        """Whether nothing is wrong here.

        A skipped check is no problem of its own: the failing check that it waits for counts already.
        """
        return self.status != "problem"

    def as_json(self) -> dict[str, Any]:
        """All attributes, for programs; ``status`` tells a passed check from a skipped one."""
        return {
            "check": self.check,
            "status": self.status,
            "project": self.project,
            "what": self.what,
            "where": self.where,
            "got": self.got,
            "hint": self.hint,
        }


class Section:
    """Collects the findings about one thing, in order.

    Args:
        group: what is looked at, for people.
        project: its number, if it is a project.
    """

    def __init__(self, group: str, *, project: int | None = None) -> None:
        self._group = group
        self._project = project
        self.findings: list[Finding] = []

    def ok(self, check: str, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        """Note a passed check."""
        self._add(check, "ok", what, where=where, hint=hint)

    def problem(
        self, check: str, what: str, *, where: str | None = None, got: str | None = None, hint: str | None = None
    ) -> None:
        """Note what is wrong."""
        self._add(check, "problem", what, where=where, got=got, hint=hint)

    def skipped(self, check: str, why: str, *, hint: str | None = None) -> None:
        """Note a check that was not made, and why."""
        self._add(check, "skipped", why, hint=hint)

    def failure(self, check: str, error: SpicaError) -> None:
        """Note an error as what is wrong."""
        got = error.got
        if error.expected is not None:
            got = f"{got or 'something else'} (expected: {error.expected})"
        self._add(check, "problem", error.what, where=error.where, got=got, hint=error.hint)

    def attempt(self, check: str, look: Callable[[], _T]) -> _T | None:
        """What ``look()`` gives, or None after its failure was noted: one check that fails ends no other."""
        try:
            return look()
        except SpicaError as error:
            self.failure(check, error)
        except Exception as error:  # an answer that nobody foresaw is just what a doctor should report
            logger.debug("the check %s failed", check, exc_info=error)
            self.problem(
                check,
                "this check failed itself; please report it",
                got=f"{type(error).__name__}: {error}"[:300],
            )
        return None

    def _add(
        self,
        check: str,
        status: Status,
        what: str,
        *,
        where: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.findings.append(Finding(check, self._group, status, what, where, got, hint, self._project))

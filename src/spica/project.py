"""Which project of Label Studio's is meant: its number and when it was created.

A re-created Label Studio, or a second one, has a project 1 too: the number alone would hand it the first one's model
versions and held-out images. The address is no part of it: it changes (another port, another name, https), while two
projects of one number that were created in the same second are copies of one database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

_TEXT = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,10}))?")


@dataclass(frozen=True, slots=True, order=True)
class ProjectKey:
    """What a project's state is kept under. Printed it is the number, as people know it.

    Attributes:
        number: in Label Studio.
        created: whole seconds since 1970; 0 where that is not known, as in what earlier versions of Spica wrote.
    """

    number: int
    created: int = 0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """From ``"<number>.<seconds>"``, as Label Studio writes it, or the number alone; None for anything else."""
        found = _TEXT.fullmatch(text)
        return cls(int(found[1]), int(found[2] or 0)) if found is not None else None

    @classmethod
    def read(cls, row: Mapping[str, Any] | None) -> Self | None:
        """From the columns of a project, as the API and the webhooks give them; None where they tell no number."""
        number = (row or {}).get("id")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            return None
        try:
            when = datetime.fromisoformat(str((row or {}).get("created_at")))
        except ValueError:
            return cls(number)
        seconds = int((when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp())
        return cls(number, seconds if 0 < seconds < 10**10 else 0)

    def __str__(self) -> str:
        return str(self.number)

    @property
    def stem(self) -> str:
        """Name of its files and folders: ``<number>.<seconds>``, or the number alone."""
        return f"{self.number}.{self.created}" if self.created else str(self.number)

    @property
    def date(self) -> str:
        """When it was created, ISO 8601, UTC; "" where that is not known."""
        return datetime.fromtimestamp(self.created, UTC).isoformat(timespec="seconds") if self.created else ""

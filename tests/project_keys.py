"""Projects as Label Studio names them in tests that have none."""

from __future__ import annotations

from spica.project import ProjectKey

CREATED = 1_700_000_000
"""14 November 2023."""


def known(number: int, created: int = CREATED) -> ProjectKey:
    """The project of a number."""
    return ProjectKey(number, created)


ONE = known(1)

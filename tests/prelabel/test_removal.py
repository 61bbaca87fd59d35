"""Since when a prediction can't be what somebody sees who opens its task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from spica.labelstudio.records import Prediction
from spica.prelabel.removal import last_shown

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


def hour(number: float) -> datetime:
    """So many hours after noon."""
    return NOON + timedelta(hours=number)


def predictions(versions: str) -> list[Prediction]:
    """One after the other, stored an hour apart, the first at noon; a letter a version."""
    return [
        Prediction(
            id=number,
            task=1,
            project=1,
            model_version=version,
            created_at=hour(number).isoformat().replace("+00:00", "Z"),
        )
        for number, version in enumerate(versions)
    ]


@pytest.mark.parametrize(
    ("versions", "shown", "left", "since"),
    [
        pytest.param("a", "a", None, [None], id="the only one"),
        pytest.param("a", "", None, [None], id="the only one, nothing selected"),
        pytest.param("ab", "b", None, [1, None], id="until the selected one was stored"),
        pytest.param("ab", "c", None, [None, None], id="the selected one is missing"),
        pytest.param("ab", "a", None, [None, None], id="gone back: the later one was shown until just now"),
        pytest.param("abc", "c", None, [2, 2, None], id="without history until the selected one"),
        pytest.param("abc", "c", {}, [1, 2, None], id="with history until the next one"),
        pytest.param("abc", "c", {"a": 9}, [9, 2, None], id="gone back to meanwhile"),
        pytest.param("abc", "d", {}, [1, 2, None], id="before the selected one is stored the last is shown"),
        pytest.param("aab", "b", {}, [2, 2, None], id="a copy goes with its version"),
        pytest.param("abb", "b", None, [1, None, None], id="a copy of what is shown stays"),
    ],
)
def test_when_a_prediction_was_last_shown(
    versions: str, shown: str, left: Mapping[str, float] | None, since: list[float | None]
) -> None:
    """Until another version's was stored that Label Studio prefers, and as long as its version was gone back to."""
    stored = predictions(versions)

    def when(version: str) -> datetime:
        return hour(left[version]) if left and version in left else LONG_AGO

    found = [last_shown(each, stored, shown, None if left is None else when) for each in stored]
    assert found == [None if each is None else hour(each) for each in since]

"""Settings: the environment's names, who wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from spica.errors import UsageError
from spica.settings import Settings


def test_nothing_is_read_before_settings_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts at the moment of creation."""
    assert Settings().threshold == 0.6
    monkeypatch.setenv("SPICA_THRESHOLD", "0.4")
    assert Settings().threshold == 0.4


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option on the command line is stronger than a variable."""
    monkeypatch.setenv("SPICA_THRESHOLD", "0.4")
    assert Settings(threshold=0.7).threshold == 0.7


@pytest.mark.parametrize("name", ["LABEL_STUDIO_URL", "LABEL_STUDIO_HOST"])
def test_the_ecosystems_names_work(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Label Studio's own variables are understood."""
    monkeypatch.setenv(name, "http://labels.example:8080/sub")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", "/写真")
    settings = Settings()
    assert settings.label_studio_url == "http://labels.example:8080/sub"
    assert settings.label_studio_api_key is not None
    assert settings.label_studio_api_key.get_secret_value() == "secret"
    assert settings.local_files_document_root == Path("/写真")


def test_secrets_do_not_show() -> None:
    """Neither token nor password is in the text of the settings."""
    settings = Settings(label_studio_api_key="a-secret", basic_auth="user:another")
    assert "a-secret" not in repr(settings)
    assert "another" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPICA_THRESHOLD", "1.1"),
        ("SPICA_THRESHOLD", "high"),
        ("SPICA_LABEL_STUDIO_PORT", "70000"),
        ("SPICA_MAX_DETECTIONS", "0"),
    ],
)
def test_values_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong value is an error, not silently another."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError):
        Settings()


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and CI set variables to nothing."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "")
    assert Settings().label_studio_api_key is None

"""Addresses and passwords, as Spica's HTTP clients read them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from spica.http import is_loopback, same_url, user_and_password


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("http://localhost:8010", "http://127.0.0.1:8010/", True),
        ("http://[::1]:8010", "http://localhost:8010", True),
        ("http://Example.com", "http://example.com:80/", True),
        ("http://localhost:8010/a/", "http://localhost:8010/a", True),
        ("http://localhost:8010", "http://localhost:8011", False),
        ("http://localhost:8010", "https://localhost:8010", False),
        ("http://localhost:8010/a", "http://localhost:8010/b", False),
        ("http://192.168.0.1:1", "http://127.0.0.1:1", False),
    ],
)
def test_same_url(a: str, b: str, *, same: bool) -> None:
    """Two spellings of one address are one model, different addresses are two."""
    assert same_url(a, b) is same
    assert same_url(b, a) is same


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost", True),
        ("http://127.0.0.9:80", True),
        ("http://[::1]", True),
        ("http://127.0.0.1.example.com", False),
        ("http://10.0.0.1", False),
        ("http://exa mple", False),
    ],
)
def test_is_loopback(url: str, *, loopback: bool) -> None:
    """Only this machine's own addresses count as its own."""
    assert is_loopback(url) is loopback


@pytest.mark.parametrize("secret", ["me:pass:word", SecretStr("me:pass:word")], ids=["text", "setting"])
def test_a_password_may_hold_colons(secret: str | SecretStr) -> None:
    """Only the first colon divides."""
    assert user_and_password(secret) == ("me", "pass:word")
    assert user_and_password(None) is None

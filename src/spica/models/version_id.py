"""Names of model versions: readable before the dash, told by the content behind it."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata

_SLUG_CHARS = 40
_DIGITS = 8


def fingerprint(matters: object) -> str:
    """SHA-256 in hex over all that the answers depend on, given as JSON values."""
    return hashlib.sha256(json.dumps(matters).encode("utf-8")).hexdigest()


def version_id(name: str, content: str) -> str:
    """``<slug of the name>-<first 8 digits of the fingerprint>``; letters, digits and dashes of ASCII alone."""
    return f"{slug(name)}-{content[:_DIGITS]}"


def slug(name: str) -> str:
    """The name in small ASCII letters, digits and dashes; ``model`` if nothing of it is left."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower())[:_SLUG_CHARS].strip("-") or "model"

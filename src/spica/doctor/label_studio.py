"""Checks of Label Studio itself: is it there, which release, does it take the token."""

from __future__ import annotations

import re

from spica.doctor.finding import Section
from spica.doctor.reach import Answer, ask
from spica.doctor.remedies import environment
from spica.errors import AuthenticationError, SpicaError
from spica.http import CERTIFICATE_HINT
from spica.labelstudio.auth import token_kind
from spica.labelstudio.client import LabelStudioClient
from spica.settings import Settings

TESTED_RELEASE = (1, 23)
"""Major and minor release that Spica is tested with."""

_START = "start Label Studio (`spica up` or `label-studio start`), or give its address with --url or LABEL_STUDIO_URL"


def examine_label_studio(settings: Settings, section: Section) -> LabelStudioClient | None:
    """A connection that works, for further checks; or None, when the findings say why there is none.

    The caller closes it.
    """
    release = _reached(settings.label_studio_url, section)
    if release is None:
        section.skipped("label-studio-version", "the release can't be seen")
        section.skipped("token", "the token can't be tried")
        return None
    _check_release(release, section)
    return _with_token(settings, section)


def _reached(url: str, section: Section) -> str | None:
    """The release that answers, "" if it does not say; None if Label Studio is not there."""
    check = "label-studio-reachable"
    address = url.strip().rstrip("/")
    answer = ask(f"{address}/api/version")
    if answer.kind == "http" and answer.status == 200 and "label-studio-os-package" in answer.fields:
        section.ok(check, f"Label Studio answers at {url}")
        return str(answer.fields.get("release") or "")
    what, hint = _unreached(answer)
    section.problem(check, what, where=address, got=answer.told, hint=hint)
    return None


def _unreached(answer: Answer) -> tuple[str, str]:
    moved = "a Label Studio whose port is taken moves to the next one: its first lines tell which. Give it with --url"
    if answer.kind == "closed":
        return "Label Studio can't be reached", _START
    if answer.kind == "untrusted":
        return "the certificate of Label Studio is not trusted", CERTIFICATE_HINT
    if answer.kind == "invalid":
        return "this is no web address", "give Label Studio's with --url, such as http://127.0.0.1:8080"
    if answer.kind == "foreign":
        return "another program has this port, or a Label Studio that hangs: it takes connections, no HTTP comes", moved
    if answer.status in range(300, 400):
        return "Label Studio's address leads elsewhere", "give the address that the browser shows, up to /projects"
    return "what answers there is not Label Studio", f"{moved}; its sub-path, if it has one, belongs to the address"


def _check_release(release: str, section: Section) -> None:
    check = "label-studio-version"
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None:
        section.ok(check, "Label Studio does not say its release", hint="Spica is tested with 1.23")
        return
    found = (int(numbers[1]), int(numbers[2]))
    if found == TESTED_RELEASE:
        section.ok(check, f"release {release}, with which Spica is tested")
        return
    age = "older" if found < TESTED_RELEASE else "newer"
    tested = ".".join(map(str, TESTED_RELEASE))
    section.ok(
        check,
        f"release {release}, {age} than {tested}",
        hint=f'Spica is tested with {tested}; if something fails oddly, try: pip install "spica[label-studio]"',
    )


def _with_token(settings: Settings, section: Section) -> LabelStudioClient | None:
    check = "token"
    if settings.label_studio_api_key is None:
        section.problem(
            check,
            "the access token is missing",
            where="LABEL_STUDIO_API_KEY",
            hint=f"copy it from {settings.label_studio_url.rstrip('/')}/user/account (Personal Access Token), then\n"
            f"{environment(LABEL_STUDIO_API_KEY='<token>')}\n"
            "or give it with --token; for a Label Studio of `spica up`, give --data-dir instead",
        )
        return None
    token = settings.label_studio_api_key.get_secret_value()
    client: LabelStudioClient | None = None
    try:
        client = LabelStudioClient(settings.label_studio_url, token)
        user = client.whoami()
    except SpicaError as error:
        if client is not None:
            client.close()
        section.failure(check, error if isinstance(error, AuthenticationError) else _no_answer(error))
        return None
    kind = token_kind(token)
    short_lived = "an access token ends after five minutes; a personal access token renews itself"
    section.ok(check, f"the {kind} token of {user.email} works", hint=short_lived if kind == "access" else None)
    return client


def _no_answer(error: SpicaError) -> SpicaError:
    """An error on the way to the answer: it says nothing about the token."""
    return SpicaError(
        f"the token could not be tried: {error.what}",
        where=error.where,
        expected=error.expected,
        got=error.got,
        hint=error.hint,
    )

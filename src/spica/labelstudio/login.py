"""Logging in to Label Studio as a person does, where no token works yet."""

from __future__ import annotations

import httpx

from spica.errors import LaunchError
from spica.labelstudio.credentials import Credentials


def personal_token(url: str, credentials: Credentials) -> str:
    """A new personal access token, by logging in as a person would.

    Raises:
        LaunchError: the login is refused, or the account has such a token already.
    """
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=30.0) as http:
            http.get("/user/login/").raise_for_status()
            form = {
                "email": credentials.email,
                "password": credentials.password,
                "csrfmiddlewaretoken": http.cookies.get("csrftoken", ""),
            }
            answer = http.post("/user/login/", data=form, headers={"Referer": f"{url}/user/login/"})
            if not answer.is_redirect:  # a wrong password shows the form again
                raise LaunchError(
                    "Label Studio refuses the login of its account",
                    where=url,
                    got=f"{answer.status_code} for {credentials.email}",
                    hint="delete credentials.json in the data folder: a new account is added, nothing else changes",
                )
            token = http.post("/api/token/")
            token.raise_for_status()
            return str(token.json()["token"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise LaunchError(
            "Label Studio gives no token to its account",
            where=url,
            got=type(error).__name__ if not isinstance(error, httpx.HTTPStatusError) else str(error),
            hint="delete credentials.json in the data folder: a new account is added, nothing else changes",
        ) from error

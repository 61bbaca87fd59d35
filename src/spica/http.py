"""Speaking HTTP with servers of this machine and others: addresses, proxies, certificates, passwords."""

from __future__ import annotations

import ipaddress
import ssl
from typing import Any

import httpx
from pydantic import SecretStr

from spica.errors import UsageError

CERTIFICATE_HINT = (
    "if you trust it, set SSL_CERT_FILE to a PEM file with that certificate or its authority's, and use the name that "
    "it is made out to in the address"
)
_PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int | None]
"""Scheme, host, port."""


def http_client(url: str, **options: Any) -> httpx.Client:
    """A connection by HTTP to an address: no proxy for this machine's own, and certificates as SSL_CERT_FILE says.

    Args:
        url: that is going to be asked.
        options: of ``httpx.Client``.

    Raises:
        UsageError: the address, a proxy's, or what SSL_CERT_FILE names can't be read.
    """
    if not host_of(url):
        raise UsageError(
            "this is no address", where=url[:200], expected="http://HOST:PORT", hint="look for a typing error"
        )
    # By a mount and not by trust_env, which would pass over SSL_CERT_FILE too.
    mounts = {f"all://{httpx.URL(url).netloc.decode()}": None} if is_loopback(url) else None
    try:
        return httpx.Client(mounts=mounts, **options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise UsageError(
            "the proxy that the environment names can't be used",
            where="ALL_PROXY, HTTP_PROXY, HTTPS_PROXY",
            expected="http://HOST:PORT",
            got=str(error).splitlines()[0],
            hint="correct or remove the variable; SOCKS needs: pip install httpx[socks]",
        ) from None
    except OSError as error:
        raise UsageError(
            "the trusted certificates can't be read",
            where="SSL_CERT_FILE",
            expected="a PEM file",
            got=str(error),
            hint="correct the environment variable, or remove it",
        ) from None


def user_and_password(basic_auth: SecretStr | str | None) -> tuple[str, str] | None:
    """The two parts of ``user:password``; the password may hold colons too. None stays None."""
    if basic_auth is None:
        return None
    text = basic_auth if isinstance(basic_auth, str) else basic_auth.get_secret_value()
    user, _, password = text.partition(":")
    return user, password


def certificate_trouble(error: BaseException) -> str | None:
    """What is wrong with the other side's certificate, if that ended a connection."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else cause.verify_message


def host_of(url: str) -> str:
    """The name or address of the host; "" where there is none that could be looked up."""
    try:
        host = httpx.URL(url.strip()).host
        host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        return ""
    return host


def is_loopback(url: str) -> bool:
    """Whether an address names this machine itself."""
    host = host_of(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether listening on ``host`` is open to this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """How this machine itself reaches a server that listens on ``host``."""
    if host == "0.0.0.0":
        return "127.0.0.1"
    if host in {"::", "[::]"}:
        return "[::1]"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def origin_of(url: httpx.URL | str) -> Origin:
    """Scheme, host and port of an address, default ports filled in."""
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port or _PORTS.get(parsed.scheme)


def same_url(a: str, b: str) -> bool:
    """Whether two addresses lead to the same place.

    Slashes at the end, letter case of the host, default ports and the names of this machine make no difference.
    """
    return _normalised(a) == _normalised(b)


def _normalised(url: str) -> tuple[Any, ...]:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return (url,)
    scheme, host, port = origin_of(parsed)
    return scheme, "localhost" if is_loopback(url) else host.lower(), port, parsed.path.rstrip("/")

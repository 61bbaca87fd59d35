"""Images over HTTP: the token to Label Studio alone, limits on size, time and redirects.

Addresses come from task data, so from whoever may create tasks. Plain web addresses are fetched all the same, because
that is what tasks are made of, also in a laboratory's own network: what comes back is only ever decoded as an image and
never shown. Link-local addresses, where clouds keep their machines' credentials, are refused; so are, where others can
ask for images, the loopback addresses of this machine. From an address that is not Label Studio's nobody learns whether
a port is closed or silent: only the log says so. No cookies are kept.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import time
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx

from spica.errors import AuthenticationError, LabelStudioError, MediaError
from spica.http import origin_of
from spica.labelstudio.auth import checked_url
from spica.labelstudio.paths import printable, too_many_bytes

logger = logging.getLogger(__name__)

_MAX_REDIRECTS: Final = 5
_METADATA_V6: Final = ipaddress.ip_address("fd00:ec2::254")  # Amazon's, outside fe80::/10
_LOCAL: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class DownloadError(MediaError):
    """One address that gave no image.

    Attributes:
        http_status: of the answer, or None if there was none.
    """

    def __init__(self, got: str, *, where: str, hint: str | None = None, http_status: int | None = None) -> None:
        super().__init__("an image can't be fetched", where=where, got=got, hint=hint)
        self.http_status = http_status


class Downloader:
    """Fetches images, with the token where it belongs. Thread-safe; to be closed.

    Args:
        label_studio_url: the only scheme, host and port that ever get ``auth``.
        auth: Label Studio's token, or None.
        max_bytes: of an image, after decompression.
        timeout_s: seconds for one image, redirects included.
        loopback: whether other addresses of this machine than Label Studio's may be read.
        transport: for tests; the network if None.
    """

    def __init__(
        self,
        *,
        label_studio_url: str,
        auth: httpx.Auth | None,
        max_bytes: int,
        timeout_s: float,
        loopback: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._loopback = loopback
        self._origin = origin_of(checked_url(label_studio_url))
        self._auth = auth
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            transport=transport,
            mounts=dict.fromkeys(_LOCAL),  # a proxy from the environment can't reach this machine
            timeout=timeout_s,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "spica"},
        )

    def close(self) -> None:
        """Give the connections back; more than once is fine."""
        self._client.close()

    def get(self, address: str) -> bytes:
        """The bytes behind an http(s) address.

        Redirects are followed a few times. Once one has left Label Studio, the token is not sent again.

        Raises:
            DownloadError: no answer, another status than 200, a forbidden address.
            MediaError: too many bytes.
        """
        deadline = time.monotonic() + self._timeout_s
        url, trusted = _parsed(address), True
        for _hop in range(_MAX_REDIRECTS + 1):
            trusted = trusted and self._is_ours(url)
            self._check_address(url)
            answer = self._get_once(url, self._auth if trusted else None, deadline)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise DownloadError(f"more than {_MAX_REDIRECTS} redirects", where=shown_url(address))

    def _get_once(self, url: httpx.URL, auth: httpx.Auth | None, deadline: float) -> bytes | httpx.URL:
        """The bytes, or where they are instead."""
        where = shown_url(url)
        response: httpx.Response | None = None
        try:
            request = self._client.build_request("GET", url, timeout=max(deadline - time.monotonic(), 0.001))
            response = self._client.send(request, auth=auth, stream=True)
            with contextlib.closing(response):
                self._check_peer(response, url)
                if response.has_redirect_location:
                    return _parsed(str(url.join(response.headers["location"])))
                if response.status_code != httpx.codes.OK:
                    raise _bad_status(response.status_code, where)
                return self._body(response, where, deadline)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError) as error:
            raise self._failure(error, url, answered=response is not None) from error
        except (AuthenticationError, LabelStudioError) as error:
            got = f"{error.what}: {error.got}" if error.got is not None else error.what
            status = 401 if isinstance(error, AuthenticationError) else None
            raise DownloadError(got, where=where, hint=error.hint, http_status=status) from error

    def _failure(self, error: Exception, url: httpx.URL, *, answered: bool) -> DownloadError:
        where, text = shown_url(url), str(error)
        if isinstance(error, httpx.TimeoutException):
            failure = self._late(where)
        elif not isinstance(error, httpx.ConnectError):
            failure = DownloadError(f"the transfer failed ({type(error).__name__})", where=where)
        elif "CERTIFICATE" in text.upper():
            hint = "The server's certificate is not trusted; SSL_CERT_FILE names a file with your own authority."
            return DownloadError("no trusted connection (TLS)", where=where, hint=hint)
        else:
            got = f"no connection ({printable(text, 100)})"
            failure = DownloadError(got, where=where, hint="Check that the server runs.")
        if answered or self._is_ours(url):
            return failure
        logger.info("%s: %s", where, failure.got)
        return self._silence(where)

    def _silence(self, where: str) -> DownloadError:
        """The same answer for a closed port, a silent one, and one that speaks no HTTP."""
        hint = f"Check that a web server runs there and answers within {self._timeout_s:g} s (SPICA_MEDIA_TIMEOUT); "
        return DownloadError("no answer", where=where, hint=hint + "the log says more.")

    def _late(self, where: str) -> DownloadError:
        got, hint = f"not complete after {self._timeout_s:g} s", "Raise SPICA_MEDIA_TIMEOUT for slow servers."
        return DownloadError(got, where=where, hint=hint)

    def _body(self, response: httpx.Response, where: str, deadline: float) -> bytes:
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity", "gzip", "deflate"):  # several in a row multiply like a zip bomb
            raise DownloadError(f"an unexpected content encoding, {printable(coding, 40)}", where=where)
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise too_many_bytes(where, f"{announced} bytes", self._max_bytes)
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > self._max_bytes:
                raise too_many_bytes(where, f"more than {self._max_bytes} bytes", self._max_bytes)
            if time.monotonic() > deadline:
                raise self._late(where)
        return bytes(data)

    def _check_peer(self, response: httpx.Response, url: httpx.URL) -> None:
        """Refuse a name that led to an address that is not read, before anything of the answer is used."""
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream is not None else None
        address = _address(str(peer[0])) if isinstance(peer, tuple) and not self._is_ours(url) else None
        if address is not None and _is_link_local(address):
            raise _forbidden(url)
        if address is not None and not self._loopback and (address.is_loopback or address.is_unspecified):
            raise self._silence(shown_url(url))

    def _check_address(self, url: httpx.URL) -> None:
        if url.scheme not in ("http", "https") or not url.host:
            raise DownloadError(f"leads to {printable(url.scheme, 40)}:, not to http(s)", where=shown_url(url))
        if self._is_ours(url):
            return
        address = _address("127.0.0.1" if url.host.lower().rstrip(".") == "localhost" else url.host)
        if address is not None and _is_link_local(address):
            raise _forbidden(url)
        if address is not None and not self._loopback and (address.is_loopback or address.is_unspecified):
            raise DownloadError(
                "an address of the model server's own machine, which is not read where others can reach the server",
                where=shown_url(url),
                hint="Serve the image under an address that the browsers of all annotators can reach.",
            )

    def _is_ours(self, url: httpx.URL) -> bool:
        return origin_of(url) == self._origin


def shown_url(address: httpx.URL | str) -> str:
    """An address for messages: without user, password and query, where signatures and keys are.

    The query of Label Studio's own local files is their path, and is kept.
    """
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, UnicodeError):
        return printable(str(address).partition("?")[0], 100)
    local_file = url.path.rstrip("/").endswith("/data/local-files") and b"&" not in url.query
    query = url.query if local_file else None
    bare = str(url.copy_with(userinfo=b"", query=query, fragment=None))
    return printable(bare + ("?…" if url.query and query is None else ""))


def _parsed(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        _ = url.host, url.port  # decoded only here
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise DownloadError("not a web address", where=shown_url(address)) from error
    return url


def _address(host: str) -> _Address | None:
    """The address that a host is, also written as one number or inside an IPv6 address; None for a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))  # 2852039166, 0xa9fea9fe
        except (OSError, UnicodeError, ValueError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _is_link_local(address: _Address) -> bool:
    return address.is_link_local or address == _METADATA_V6


def _forbidden(url: httpx.URL) -> DownloadError:
    hint = "Clouds keep credentials there. Serve the image under another address."
    return DownloadError("a link-local address, which is never read", where=shown_url(url), hint=hint)


def _bad_status(status: int, where: str) -> DownloadError:
    name = ""
    with contextlib.suppress(ValueError):
        name = httpx.codes(status).name.replace("_", " ").lower()
    return DownloadError(f"{status} {name}".rstrip(), where=where, http_status=status)

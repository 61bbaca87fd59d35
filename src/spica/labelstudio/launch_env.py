"""The environment of a Label Studio that Spica starts: what passes through, and the switches it is given."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path

from spica.labelstudio.credentials import Credentials

_PASSED_TEXT = """
    PATH HOME USER LOGNAME SHELL TERM TZ LANG LANGUAGE TMPDIR TEMP TMP XDG_DATA_HOME XDG_CACHE_HOME XDG_CONFIG_HOME
    SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERPROFILE HOMEDRIVE HOMEPATH APPDATA LOCALAPPDATA PROGRAMDATA
    PROGRAMFILES COMMONPROGRAMFILES NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE VIRTUAL_ENV CONDA_PREFIX
    LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH PYTHONPATH PYTHONHOME
    HTTP_PROXY HTTPS_PROXY ALL_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
"""
"""The system's own, and the way out to the network for images and storages elsewhere."""
_PASSED = frozenset(_PASSED_TEXT.split())
_PASSED_PREFIXES = ("LC_", "AWS_", "AZURE_", "GOOGLE_")  # cloud storages find their credentials there
LARGE_PROJECT_TASKS = 2000
"""From so many tasks on, a project counts as large for :func:`large_project_switches`."""

_MEMORY_EFFICIENT_IMPORT = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"
_BANNED_NETWORKS = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
)
"""What Label Studio 1.23.2 bans by default (core/utils/io.py, validate_ip); ranges inside others left out."""


def child_environment(
    base: Mapping[str, str],
    *,
    data_dir: Path,
    document_root: Path,
    credentials: Credentials,
    host: str,
    backend_host: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of the child.

    Label Studio reads some 150 settings under three names each, the last without any prefix: a ``PORT``, ``DEBUG``,
    ``HOST``, ``CI`` or ``DJANGO_DB`` meant for something else breaks it. So only what is known to be harmless is
    passed on, and all that matters is set by its full name, which wins.

    Args:
        base: the environment of this process.
        data_dir: of Label Studio, absolute.
        document_root: below which it serves local files, absolute.
        credentials: of the account that it creates at its first start.
        host: that it listens on.
        backend_host: where the model server is, as Label Studio reaches it.
        extra: set last; an empty text removes a switch.
    """
    passed = {
        name: value
        for name, value in base.items()
        if name.upper() in _PASSED or name.upper().startswith(_PASSED_PREFIXES)
    }
    no_proxy = base.get("NO_PROXY") or base.get("no_proxy") or ""
    local = ["127.0.0.1", "localhost", "::1", backend_host]
    own = {
        "NO_PROXY": ",".join(part for part in (no_proxy, *local) if part),
        "PYTHONUNBUFFERED": "1",  # the log must show what happened before a sudden end
        "PYTHONUTF8": "1",  # names in Japanese, on a Windows of any language
        "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir),
        "LABEL_STUDIO_DJANGO_DB": "sqlite",
        "LABEL_STUDIO_USERNAME": credentials.email,
        "LABEL_STUDIO_PASSWORD": credentials.password,
        "LABEL_STUDIO_USER_TOKEN": credentials.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",  # read once, when the organization is created
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(document_root),
        **unblocking_switches(backend_host),
        # A first prediction may wait for the model to load; see the timeouts of ml/api_connector.py.
        "LABEL_STUDIO_ML_TIMEOUT_HEALTH": "5",
        "LABEL_STUDIO_ML_TIMEOUT_SETUP": "10",
        "LABEL_STUDIO_ML_TIMEOUT_PREDICT": "600",
        # Nothing leaves the machine unasked.
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        # Other people on this machine, and pages in this browser, have no business here.
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_CORS_ALLOW_ALL_ORIGINS": "false",
        "LABEL_STUDIO_LOG_LEVEL": "WARNING",
    }
    if is_local(host):  # by name too, against pages that rebind their own name to 127.0.0.1
        own["LABEL_STUDIO_ALLOWED_HOSTS"] = "127.0.0.1,localhost,[::1]"
    merged = {**passed, **own, **extra}
    kept_empty = {"LABEL_STUDIO_SENTRY_DSN", "LABEL_STUDIO_FRONTEND_SENTRY_DSN"}  # empty means off, unset means on
    return {name: value for name, value in merged.items() if value or name in kept_empty}


def large_project_switches(tasks: int) -> dict[str, str]:
    """What keeps the cost of storing a prediction the same in a project of so many tasks.

    Each bulk import of predictions counts all predicted tasks of the project anew, so that storing N predictions costs
    N times N; with this flag of Label Studio 1.23.2 (``data_import/api.py``, ``ImportPredictionsAPI``) only those of
    the import are counted. It is left off where it does not matter: with it Label Studio no longer checks predictions
    against the labelling configuration (we do), and its counters stay behind after a deletion.
    """
    return {_MEMORY_EFFICIENT_IMPORT: "true"} if tasks >= LARGE_PROJECT_TASKS else {}


def unblocking_switches(backend_host: str) -> dict[str, str]:
    """What lets Label Studio 1.23.1+ call a model on this machine, and its webhooks too, and nothing else.

    ``ML_BLOCK_LOCAL_IP=false`` needs ``SSRF_PROTECTION_ENABLED=false`` beside it (otherwise connecting answers 403
    with the model half connected), and the two open every address for models, webhooks, imports and storages.
    Instead the protection stays on with its list of banned networks given by us: the default one without those that
    the model server is in. So this machine's loopback is open, and private networks and the cloud's metadata
    address (169.254.169.254) stay closed.
    """
    reached = _addresses_of(backend_host)
    banned = [network for network in _BANNED_NETWORKS if not any(ip in ipaddress.ip_network(network) for ip in reached)]
    return {
        "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": ",".join(banned),
    }


def is_local(host: str) -> bool:
    """Whether listening on ``host`` is open to this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _addresses_of(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = {"127.0.0.1", "::1"}  # loopback is always open, so that a server of this machine can be connected by hand
    with contextlib.suppress(OSError):  # an unknown name opens nothing
        found.update(str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(host.strip("[]"), None))
    return [ipaddress.ip_address(address) for address in sorted(found)]

"""The environment, the account and the lock of a Label Studio, without starting one."""

from __future__ import annotations

import ipaddress
import json
import sys
from pathlib import Path

import pytest

from spica.errors import LaunchError
from spica.http import is_local
from spica.labelstudio.data_folder import ACCOUNT_NAME, DATABASE_NAME, Credentials, load_or_create
from spica.labelstudio.launch import LARGE_PROJECT_TASKS, child_environment, large_project_switches, unblocking_switches

ACCOUNT = Credentials(email="a@b.c", password="secret word", token="f" * 40)


def environment(
    base: dict[str, str], *, host: str = "127.0.0.1", extra: dict[str, str] | None = None
) -> dict[str, str]:
    return child_environment(
        base,
        data_dir=Path("/data"),
        document_root=Path("/images"),
        credentials=ACCOUNT,
        host=host,
        backend_host="127.0.0.1",
        extra=extra or {},
    )


@pytest.mark.parametrize(
    "name", ["PORT", "HOST", "DEBUG", "CI", "DJANGO_DB", "LABEL_STUDIO_HOST", "HEARTEX_PORT", "fflag_x"]
)
def test_strays_stay_out(name: str) -> None:
    """A setting that Label Studio would read, but that was not meant for it, is not passed on."""
    assert name not in environment({name: "stray"})


@pytest.mark.parametrize("name", ["PATH", "SystemRoot", "LC_ALL", "AWS_ACCESS_KEY_ID", "https_proxy"])
def test_what_the_system_needs_passes(name: str) -> None:
    """What the system and cloud storages need is passed on."""
    assert environment({name: "kept"})[name] == "kept"


def test_no_proxy_to_this_machine() -> None:
    """A proxy is not asked for this machine's own addresses."""
    assert environment({"NO_PROXY": "intranet"})["NO_PROXY"].split(",")[:3] == ["intranet", "127.0.0.1", "localhost"]


def test_extra_switches_win() -> None:
    """Further switches win over ours, and an empty one removes it."""
    own = environment({})
    changed = environment({}, extra={"LABEL_STUDIO_LOG_LEVEL": "DEBUG", "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": ""})
    assert changed["LABEL_STUDIO_LOG_LEVEL"] == "DEBUG"
    assert "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS" in own
    assert "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS" not in changed
    assert changed["LABEL_STUDIO_SENTRY_DSN"] == ""


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("lab", False),
    ],
)
def test_names_are_checked_where_it_is_local(host: str, *, local: bool) -> None:
    """Only a Label Studio of this machine alone is bound to the machine's own names."""
    assert is_local(host) is local
    assert ("LABEL_STUDIO_ALLOWED_HOSTS" in environment({}, host=host)) is local


@pytest.mark.parametrize(
    ("backend_host", "address", "opened"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "192.168.1.5", False),
        ("127.0.0.1", "169.254.169.254", False),
        ("192.168.1.5", "192.168.1.5", True),
        ("192.168.1.5", "127.0.0.1", True),
        ("192.168.1.5", "10.0.0.1", False),
        ("no such host.invalid", "10.0.0.1", False),
    ],
)
def test_only_the_model_is_unblocked(backend_host: str, address: str, *, opened: bool) -> None:
    """The networks of the model server and of this machine are open, all other banned ones stay banned."""
    banned = unblocking_switches(backend_host)["LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS"].split(",")
    assert any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in banned) is not opened


def test_account_is_made_once(tmp_path: Path) -> None:
    """The account is random, kept, and fits what Label Studio takes."""
    first = load_or_create(tmp_path)
    assert load_or_create(tmp_path) == first
    (tmp_path / "other").mkdir()
    assert load_or_create(tmp_path / "other").password != first.password
    assert len(first.token) == 40  # the column's length
    assert 8 <= len(first.password) <= 128  # the login's limits
    if sys.platform != "win32":
        assert (tmp_path / ACCOUNT_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [ACCOUNT_NAME]


def test_account_beside_a_database(tmp_path: Path) -> None:
    """Where a database exists without an account file, the account gets a name that nobody has."""
    (tmp_path / DATABASE_NAME).write_bytes(b"")
    assert load_or_create(tmp_path).email != "spica@localhost.localdomain"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"email": "a", "password": "b"})])
def test_damaged_account(tmp_path: Path, text: str) -> None:
    """A damaged account file is named with what to do, and kept."""
    path = tmp_path / ACCOUNT_NAME
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LaunchError, match="damaged"):
        load_or_create(tmp_path)
    assert path.read_text(encoding="utf-8") == text


def test_storing_predictions_costs_the_same_in_a_large_project() -> None:
    """Label Studio counts only what is imported there; a small project keeps its stricter import."""
    assert large_project_switches(LARGE_PROJECT_TASKS - 1) == {}
    ((name, value),) = large_project_switches(LARGE_PROJECT_TASKS).items()
    assert environment({}, extra={name: value})[name] == "true"

"""The commands as a person types them: what is printed, and the exit status."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spica.cli.options import with_new_names
from spica.demo import model_folder
from spica.labelstudio.data_folder import load_or_create
from weights_builder import hollow_state_dict


def spica(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spica", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "写真"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    return folder


def assert_refused(done: subprocess.CompletedProcess[str], status: int, *told: str) -> None:
    """One sentence on standard error with all that should be told, the exit status, and no traceback."""
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr + done.stdout
    for text in told:
        assert text in done.stderr


def test_help_shows_every_command_and_is_light(tmp_path: Path) -> None:
    """`spica --help` loads neither torch nor OpenVINO nor Label Studio."""
    code = (
        "import sys; sys.argv = ['spica', '--help']\n"
        "from spica.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'openvino', 'label_studio', 'label_studio_sdk', 'numpy', 'uvicorn'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("up", "demo", "serve", "connect", "predictions", "doctor", "settings", "--install-completion"):
        assert text in done.stdout


def test_up_needs_labels_only_for_weights_that_name_no_classes(tmp_path: Path, photos: Path) -> None:
    """A plain state_dict does not say what its classes are called; labels and a configuration exclude each other."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    torch.save(hollow_state_dict(3), tmp_path / "plain.pth")
    done = spica("up", photos, "--weights", "plain.pth", cwd=tmp_path)
    assert_refused(done, 2, "the labels are missing", "2 classes without names", "--labels spike,leaf")
    config = tmp_path / "config.xml"
    config.write_text("<View/>", "utf-8")
    both = spica("up", photos, "--weights", "x", "--labels", "a", "--label-config", config, cwd=tmp_path)
    assert_refused(both, 2, "labels are given twice")


def test_up_says_that_no_class_meets_a_label_before_anything_is_started(tmp_path: Path, photos: Path) -> None:
    """Both lists of names are in the message, and no data folder is made."""
    done = spica("up", photos, "--weights", model_folder(), "--labels", "panicle,leaf", cwd=tmp_path)
    assert_refused(done, 1, "no class of the model meets a label", "expected: spike", "got:      panicle, leaf")
    assert not (tmp_path / "spica-data").exists()


def test_up_on_a_photograph_names_its_folder(tmp_path: Path, photos: Path) -> None:
    """A file is a slip that the message puts right."""
    done = spica("up", photos / "a.jpg", "--weights", model_folder(), cwd=tmp_path)
    assert_refused(done, 2, "a file", f"the folder that the photographs lie in, here {photos}")


@pytest.mark.parametrize(
    ("content", "told"),
    [("<View/>", "RectangleLabels"), ("<View>", "line 1"), ("", "line 1")],
    ids=["nothing to fill", "malformed", "empty"],
)
def test_up_with_a_useless_configuration_says_why(tmp_path: Path, photos: Path, content: str, told: str) -> None:
    """The configuration is read before anything is started."""
    config = tmp_path / "構成.xml"
    config.write_text(content, "utf-8")
    done = spica("up", photos, "--weights", model_folder(), "--label-config", config, cwd=tmp_path)
    assert_refused(done, 1, told)


def test_up_names_a_missing_folder_and_missing_weights(tmp_path: Path, photos: Path) -> None:
    """The wrong path is in the message."""
    done = spica("up", "nowhere", "--weights", model_folder(), "--labels", "a", cwd=tmp_path)
    assert_refused(done, 2, "no such folder", "nowhere")
    done = spica("up", photos, "--weights", "nothing.pth", "--labels", "a", cwd=tmp_path)
    assert_refused(done, 1, "nothing.pth")


@pytest.mark.parametrize("command", ["up", "serve"])
def test_a_host_that_others_reach_is_refused_without_expose(tmp_path: Path, photos: Path, command: str) -> None:
    """Opening a server to the network is never an accident."""
    arguments: list[str | Path] = [photos, "--labels", "spike"] if command == "up" else []
    done = spica(command, *arguments, "--weights", model_folder(), "--host", "0.0.0.0", cwd=tmp_path)
    assert_refused(done, 2, "--expose")


def test_serve_on_a_taken_port_says_which(tmp_path: Path) -> None:
    """The port and the option to change it are named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = spica("serve", "--weights", model_folder(), "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert f"port {port} can't be used" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_with_a_password_without_a_user_says_how_to_write_it(tmp_path: Path) -> None:
    """user:password, or an error."""
    done = spica("serve", "--weights", model_folder(), "--basic-auth", "secret", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "user:password" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("command", ["predictions list", "predictions delete", "connect"])
def test_commands_without_a_token_say_where_to_get_one(tmp_path: Path, command: str) -> None:
    """Nothing is asked of Label Studio without a token."""
    assert_refused(
        spica(*command.split(), "--project", "1", cwd=tmp_path), 2, "token", "--token", "LABEL_STUDIO_API_KEY"
    )


def test_commands_say_that_label_studio_does_not_answer(tmp_path: Path) -> None:
    """The address is in the message, the token is not."""
    done = spica(
        "predictions", "list", "--project", "1", "--url", "http://127.0.0.1:9", "--token", "s3cr3t" * 6, cwd=tmp_path
    )
    assert_refused(done, 1, "127.0.0.1:9")
    assert "s3cr3t" not in done.stderr + done.stdout


def test_a_setting_of_no_use_is_named(tmp_path: Path, photos: Path) -> None:
    """A wrong variable in the environment is the user's to mend, and is said."""
    done = spica("serve", "--weights", photos, cwd=tmp_path, env={"SPICA_THRESHOLD": "high"})
    assert_refused(done, 2, "SPICA_THRESHOLD")


def test_restore_names_a_missing_file(tmp_path: Path) -> None:
    """A wrong path is a sentence."""
    done = spica("predictions", "restore", "nothing.jsonl", "--token", "x" * 40, cwd=tmp_path)
    assert_refused(done, 2, "nothing.jsonl")


def test_doctor_without_anything_running_names_it_as_json(tmp_path: Path) -> None:
    """Exit status 1, and findings that a program can read."""
    done = spica("doctor", "--json", "--url", "http://127.0.0.1:9", "--model-url", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)
    assert any(finding["status"] == "problem" and finding["hint"] for finding in findings)


def test_a_title_that_label_studio_would_refuse_is_said_first(photos: Path, tmp_path: Path) -> None:
    """Before the weights are looked at, let alone converted."""
    done = spica("up", photos, "--weights", tmp_path / "no.pth", "--labels", "spike", "--project", "ab", cwd=tmp_path)
    assert done.returncode != 0
    assert "3 to 50 characters" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "spica-data").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "status", "told"),
    [
        (["export", "a" * 300, "--out", "b"], {}, 1, "File name too long"),
        (["models", "list", "--data-dir", "a" * 300], {}, 1, "File name too long"),
        (["export", "a.json", "--out", "b"], {"SPICA_MAX_PIXELS": "abc"}, 2, "SPICA_MAX_PIXELS"),
        (["predictions", "list", "--project", "1", "--token", "t"], {"ALL_PROXY": "socks5h://x:1"}, 2, "ALL_PROXY"),
        (["predictions", "list", "--project", "1", "--token", "t"], {"HTTPS_PROXY": "http://a:b:c"}, 2, "HTTPS_PROXY"),
        (
            ["predictions", "list", "--project", "1", "--token", "t", "--url", "http://xn--/"],
            {},
            2,
            "not a web address",
        ),
        (["status", "--model-url", f"http://{'a' * 70}/"], {}, 2, "no address"),
    ],
)
def test_what_the_system_or_its_environment_refuses_is_a_sentence(
    tmp_path: Path, arguments: list[str], env: dict[str, str], status: int, told: str
) -> None:
    """Names that are too long, settings, proxies and addresses that can't be used: no internal failure."""
    body = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(body), "utf-8")
    url = {"LABEL_STUDIO_URL": "http://192.0.2.1:8080"}
    assert_refused(spica(*arguments, cwd=tmp_path, env={**url, **env}), status, told)


@pytest.mark.parametrize(
    ("command", "typed", "meant", "noted"),
    [
        ("prelabel", "--filter 5 --all", "--tab 5 --include-annotated", 2),
        ("prelabel", "--filter=5", "--tab=5", 1),
        ("refresh", "--all", "--include-annotated", 1),
        ("evaluate", "--all", "--all", 0),
        ("up", "p --port 8080 --model-port 8010", "p --label-studio-port 8080 --port 8010", 2),
        ("up", "p --port 8010 --label-studio-port 8080", "p --port 8010 --label-studio-port 8080", 0),
        ("up", "p --port 8080", "p --port 8080", 1),
        ("demo", "--data-dir d", "--folder d", 1),
    ],
)
def test_old_names_of_options_work_with_a_note(
    command: str, typed: str, meant: str, noted: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """For one release; `--port` beside `--model-port` is Label Studio's, as it was."""
    assert with_new_names(command, typed.split()) == meant.split()
    assert capsys.readouterr().err.count("Note: ") == noted


def test_an_old_variable_works_with_a_note_and_quiet_leaves_it_out(tmp_path: Path) -> None:
    """SPICA_PORT is Label Studio's port, under its new name."""
    env = {"SPICA_PORT": "8099"}
    done = spica("settings", cwd=tmp_path, env=env)
    assert "SPICA_LABEL_STUDIO_PORT = 8099  (environment (SPICA_PORT))" in done.stdout
    assert "Note: the environment variable SPICA_PORT" in done.stderr
    assert spica("-q", "settings", cwd=tmp_path, env=env).stderr == ""


def test_settings_shows_each_with_its_source_and_no_secret(tmp_path: Path) -> None:
    """Option, environment, the files of `spica up`, default."""
    folder = tmp_path / "spica-data" / "label-studio"
    folder.mkdir(parents=True)
    token = load_or_create(folder).token
    done = spica(
        *("settings", "--json", "--data-dir", "spica-data"),
        cwd=tmp_path,
        env={"SPICA_THRESHOLD": "0.4", "SPICA_BASIC_AUTH": "me:hidden"},
    )
    rows = {row["setting"]: row for row in json.loads(done.stdout)}
    assert rows["threshold"]["value"] == 0.4
    sources = {name: rows[name]["source"] for name in ("data_dir", "threshold", "label_studio_api_key", "host")}
    assert sources == {
        "data_dir": "option",
        "threshold": "environment (SPICA_THRESHOLD)",
        "label_studio_api_key": "file of `spica up`",
        "host": "default",
    }
    assert token not in done.stdout
    assert "hidden" not in done.stdout.replace("(set, not shown)", "")


@pytest.mark.parametrize(
    "command", ["connect --project 1", "doctor", "predictions list --project 1", "train --project 1 --out a.pth"]
)
def test_a_data_folder_that_is_not_there_is_named(tmp_path: Path, command: str) -> None:
    """Not a missing token, and no new folder."""
    done = spica(*command.split(), "--data-dir", "nowhere", cwd=tmp_path)
    assert_refused(done, 2, "no such data folder", "--data-dir nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_a_server_computes_by_is_not_asked_of_it(tmp_path: Path) -> None:
    """A threshold that would be ignored is refused, with what does it."""
    done = spica("prelabel", "--project", "1", "--threshold", "0.3", cwd=tmp_path)
    assert_refused(done, 2, "--threshold", "--weights FILE")

"""`spica doctor` on real servers, with each thing that goes wrong made to go wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from fake_spica import FakeSpica
from label_studio_helpers import delete_project, delete_task, import_tasks, upload_images
from live_model import Folder, LiveModel, ServeModel, photograph
from scripted_backend import ScriptedBackend
from scripted_detector import ScriptedDetector
from spica.cli import app
from spica.doctor import Finding, examine
from spica.doctor.remedies import unblock_local_addresses
from spica.errors import WeightsError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.settings import Settings

pytestmark = pytest.mark.label_studio

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="Spike"/></RectangleLabels></View>'
)
DEFAULT_SWITCHES = {
    "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "",
    "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": "",
}
"""As a Label Studio that nobody has told anything; an empty text removes a switch."""
SERVES_NO_FILES = {"LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": ""}


class Doctor:
    """Examines one project with settings that a test may change."""

    def __init__(self, label_studio: LabelStudioProcess, model_url: str, project: int | None) -> None:
        self.model_url = model_url
        self.project = project
        self.settings = Settings(
            label_studio_url=label_studio.url,
            label_studio_api_key=SecretStr(label_studio.credentials.token),
            label_studio_data_dir=label_studio.data_dir,
            local_files_document_root=label_studio.document_root,
        )

    def findings(self, **changes: Any) -> list[Finding]:
        """All findings, with other settings if given."""
        settings = self.settings.model_copy(update=changes)
        return examine(settings, project=self.project, model_url=self.model_url)

    def problems(self, **changes: Any) -> dict[str, Finding]:
        """What is wrong, by check."""
        return {finding.check: finding for finding in self.findings(**changes) if not finding.ok}

    def only_problem(self, **changes: Any) -> Finding:
        """The one thing that is wrong."""
        problems = self.problems(**changes)
        assert len(problems) == 1, problems
        return next(iter(problems.values()))


@pytest.fixture
def wheat(client: LabelStudioClient, folder: Folder, model: LiveModel) -> Iterator[Project]:
    """A project with nothing wrong: two photographs in a local storage, and the model connected."""
    project = client.create_project("wheat", CONFIG)
    client.ensure_local_storage(project.id, folder.path)
    folder.tasks(client, project.id, ["小麦 1.png", "sub/2.png"])
    client.connect_backend(project.id, url=model.url)
    yield client.project(project.id)
    delete_project(client, project.id)


@pytest.fixture
def doctor(label_studio: LabelStudioProcess, model: LiveModel, wheat: Project) -> Doctor:
    """Examines that project."""
    return Doctor(label_studio, model.url, wheat.id)


def rename(client: LabelStudioClient, project: Project, model: LiveModel, title: str) -> None:
    """Give the connected model another title, as its form does."""
    backend = client.backends(project.id)[0]
    client.call("PATCH", f"/api/ml/{backend.id}", json={"title": title, "url": model.url, "project": project.id})


def test_all_is_well(doctor: Doctor) -> None:
    """In a project that works, every check passes."""
    findings = doctor.findings()
    assert {finding.check: finding.what for finding in findings if finding.status != "ok"} == {}
    assert {finding.check for finding in findings} >= {"token", "labels-match", "webhook", "local-files-served"}


@pytest.mark.parametrize("as_json", [False, True])
def test_command(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, *, as_json: bool) -> None:
    """The command exits with 0 when all is well, and with 1 when something is not."""
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", str(doctor.settings.local_files_document_root))
    token = doctor.settings.label_studio_api_key
    assert token is not None
    line = ["doctor", "--url", doctor.settings.label_studio_url, "--token", token.get_secret_value()]
    line += ["--project", str(doctor.project), *(["--json"] if as_json else [])]
    well = CliRunner().invoke(app, [*line, "--model-url", doctor.model_url])
    assert well.exit_code == 0, well.output
    ill = CliRunner().invoke(app, [*line, "--model-url", "http://127.0.0.1:9"])
    assert ill.exit_code == 1
    if as_json:
        assert {finding["status"] for finding in json.loads(well.stdout)} == {"ok"}
        assert "problem" in {finding["status"] for finding in json.loads(ill.stdout)}
    else:
        assert well.stdout.rstrip().endswith("All is well.")
        assert "spica serve --weights FILE" in ill.stdout


def test_looking_changes_nothing(doctor: Doctor, client: LabelStudioClient, wheat: Project, model: LiveModel) -> None:
    """An examination leaves models, webhooks, predictions and the project as they were, and runs no network."""
    client.connect_backend(wheat.id, url=model.url, extra_params={"score_threshold": 0.4})

    def state() -> Any:
        return (
            [(each.project, each.extra_params, each.version) for each in model.service.projects],  # before Label Studio
            client.backends(wheat.id),  # is asked here, which tells the model server again
            client.webhooks(wheat.id),
            client.call("GET", "/api/webhooks/"),
            client.prediction_versions(wheat.id),
            client.project(wheat.id),
        )

    before = state()
    assert doctor.problems() == {}
    assert state() == before
    assert model.detector.calls == 0


def test_all_projects(doctor: Doctor, client: LabelStudioClient, wheat: Project, project: Project) -> None:
    """Where all projects are looked at, one without a model is passed over beside one that has it."""
    doctor.project = None
    findings = doctor.findings()
    unconnected = {finding.check: finding for finding in findings if finding.project == project.id}
    assert unconnected["model-connected"].status == "skipped"
    assert f"spica connect --project {project.id}" in str(unconnected["model-connected"].hint)
    assert {finding.check for finding in findings if finding.project == wheat.id} >= {"webhook"}
    assert doctor.problems() == {}


def test_no_model(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """A project without a model is told the command that connects one, at the address that was looked at."""
    client.disconnect_backend(client.backends(wheat.id)[0])
    finding = doctor.only_problem()
    assert finding.check == "model-connected"
    assert finding.hint == f"spica connect --project {wheat.id} --model-url {doctor.model_url}"


def test_no_project(doctor: Doctor) -> None:
    """A number that no project has is the finding."""
    doctor.project = 999_999
    finding = doctor.only_problem()
    assert (finding.check, finding.what) == ("project-exists", "there is no project 999999")


def test_wrong_token(doctor: Doctor) -> None:
    """A token that Label Studio does not know is refused as that, and projects wait for it."""
    finding = doctor.only_problem(label_studio_api_key=SecretStr("0" * 40))
    assert (finding.check, finding.what) == ("token", "Label Studio refused the legacy token")
    assert "Copy the token again" in str(finding.hint)


def test_title_is_not_version(doctor: Doctor, client: LabelStudioClient, wheat: Project, model: LiveModel) -> None:
    """A title of one's own hides the scores; the command named mends it."""
    rename(client, wheat, model, "Faster R-CNN")
    finding = doctor.only_problem()
    assert finding.check == "title-is-version"
    assert "'Faster R-CNN'" in str(finding.got)
    assert str(finding.hint).startswith(f"spica connect --project {wheat.id}")
    client.connect_backend(wheat.id, url=model.url)
    assert doctor.problems() == {}


def test_project_shows_other_predictions(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """A project that shows another version, or no predictions, is told both."""
    task = next(client.iter_tasks(wheat.id)).id
    client.create_prediction({"task": task, "result": [], "score": 0.5, "model_version": "last year"})
    client.update_project(wheat.id, model_version="last year", show_collab_predictions=False)
    finding = doctor.only_problem()
    assert finding.check == "predictions-shown"
    assert "show_collab_predictions is off" in finding.what
    assert "'last year'" in finding.what


def test_listing_asks_the_model(doctor: Doctor, client: LabelStudioClient, wheat: Project, model: LiveModel) -> None:
    """The deprecated switch is named, and the doctor itself does not fall into it."""
    client.update_project(wheat.id, evaluate_predictions_automatically=True)
    finding = doctor.only_problem()
    assert finding.check == "listing-asks-model"
    assert model.detector.calls == 0
    words = re.search(r"-X (PATCH).* -F (\S+)=(\S+) http\S+(/api/\S+)", str(finding.hint))
    assert words is not None
    method, field, value, path = words.groups()
    client.call(method, path, files={field: (None, value)})  # multipart, as curl -F sends it
    assert doctor.problems() == {}


@pytest.mark.parametrize(
    ("config", "check", "words"),
    [
        (CONFIG.replace("Spike", "weed"), "labels-match", '"weed"'),
        ('<View><Text name="t" value="$image"/></View>', "label-config", ""),
    ],
    ids=["labels that the model has not", "no rectangles"],
)
def test_labels(doctor: Doctor, client: LabelStudioClient, wheat: Project, config: str, check: str, words: str) -> None:
    """Labels that can't be met are told with both lists of names; a configuration without rectangles is told too."""
    client.update_project(wheat.id, label_config=config)
    finding = doctor.problems()[check]
    assert words in finding.what
    if check == "labels-match":
        assert '"spike"' in finding.what
        assert f"/projects/{wheat.id}/settings/labeling" in str(finding.hint)


def test_extra_params_that_are_not_used(
    doctor: Doctor, client: LabelStudioClient, wheat: Project, model: LiveModel
) -> None:
    """A slip in the model's extra params is told, as the model server reads them."""
    client.connect_backend(wheat.id, url=model.url, extra_params={"score_treshold": 0.4})
    assert "score_treshold" in doctor.only_problem().what


def test_two_models(doctor: Doctor, client: LabelStudioClient, wheat: Project, backend: ScriptedBackend) -> None:
    """Of two models the surplus one is named, whichever was connected first."""
    client.connect_backend(wheat.id, url=backend.url)
    client.update_project(wheat.id, model_version=client.backends(wheat.id)[0].title)
    finding = doctor.only_problem()
    assert finding.check == "one-model"
    assert str(finding.hint).endswith(f": 'scripted-1' at {backend.url}")


def test_model_of_another_address(
    doctor: Doctor, client: LabelStudioClient, wheat: Project, backend: ScriptedBackend
) -> None:
    """A project whose only model is another server's is told both addresses."""
    client.disconnect_backend(client.backends(wheat.id)[0])
    client.connect_backend(wheat.id, url=backend.url)
    finding = doctor.only_problem()
    assert finding.check == "model-address"
    assert finding.got == f"{backend.url} (expected: {doctor.model_url})"


def test_model_server_down(
    label_studio: LabelStudioProcess, client: LabelStudioClient, project: Project, backend: ScriptedBackend
) -> None:
    """A model server that has stopped is one problem, and Label Studio's being disconnected follows from it."""
    client.connect_backend(project.id, url=backend.url)
    backend.close()
    doctor = Doctor(label_studio, backend.url, project.id)
    assert doctor.only_problem().check == "model-server-reachable"
    state = next(finding for finding in doctor.findings() if finding.check == "model-state")
    assert (state.status, state.what) == ("skipped", "disconnected, since the model server does not answer")


def test_password_that_label_studio_has_not(
    label_studio: LabelStudioProcess, client: LabelStudioClient, project: Project
) -> None:
    """A password that the model server was given after it was connected is missing in Label Studio, later wrong."""
    with FakeSpica() as server:
        client.connect_backend(project.id, url=server.url)
        doctor = Doctor(label_studio, server.url, project.id)
        server.basic_auth = "me:secret"
        finding = doctor.only_problem(basic_auth=SecretStr("me:secret"))
        assert (finding.check, finding.what.rpartition(" ")[2]) == ("model-state", "none")
        assert str(finding.hint).endswith(" --basic-auth <user>:<password>")
        client.connect_backend(project.id, url=server.url, basic_auth=("me", "secret"))
        assert doctor.problems(basic_auth=SecretStr("me:secret")) == {}
        server.basic_auth = "me:changed"
        finding = doctor.only_problem(basic_auth=SecretStr("me:changed"))
        assert (finding.check, finding.what.rpartition(" sends ")[2]) == ("model-state", "a wrong one")


def test_model_that_answers_with_an_error(
    label_studio: LabelStudioProcess, client: LabelStudioClient, project: Project
) -> None:
    """A model that is reached and fails is told with Label Studio's own words."""
    with FakeSpica() as server:
        client.connect_backend(project.id, url=server.url)
        answer = server.answer
        server.answer = lambda path, body: (500, {}) if path == "/setup" else answer(path, body)  # type: ignore[method-assign]
        problems = Doctor(label_studio, server.url, project.id).problems()
    assert problems.keys() == {"labels-match", "model-state"}
    assert "500 Server Error" in str(problems["model-state"].got)


def test_broken_model(
    label_studio: LabelStudioProcess, client: LabelStudioClient, wheat: Project, serve_model: ServeModel
) -> None:
    """A model that failed to load is told with its own reason."""

    def load() -> ScriptedDetector:
        raise WeightsError("the weights file is truncated", where="gwhd.pth", hint="copy it again")

    broken = serve_model(label_studio, load=load)
    with pytest.raises(WeightsError):
        broken.predictor.engine.wait_ready()
    finding = Doctor(label_studio, broken.url, wheat.id).problems()["model-loaded"]
    assert "the weights file is truncated" in finding.what
    assert (finding.where, finding.hint) == ("gwhd.pth", "copy it again")


def test_webhook(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """A webhook without our secret, one that is switched off, and one that is gone, are told apart."""
    hook = client.webhooks(wheat.id)[0]
    client.call("PATCH", f"/api/webhooks/{hook.id}/", json={"url": hook.url, "headers": {}})
    finding = doctor.only_problem()
    assert "no secret" in finding.what
    assert f"spica connect --project {wheat.id}" in str(finding.hint)
    client.call("PATCH", f"/api/webhooks/{hook.id}/", json={"url": hook.url, "is_active": False})
    finding = doctor.only_problem()
    assert finding.check == "webhook"
    assert "switched off" in finding.what
    client.call("DELETE", f"/api/webhooks/{hook.id}/")
    finding = doctor.only_problem()
    assert "there is no webhook" in finding.what
    assert f"spica connect --project {wheat.id}" in str(finding.hint)


def test_storage_row_absent(doctor: Doctor, client: LabelStudioClient, wheat: Project, folder: Folder) -> None:
    """Images that no storage covers are not served to people; the folder to enter is named."""
    for storage in client.local_storages(wheat.id):
        client.call("DELETE", f"/api/storages/localfiles/{storage.id}")
    finding = doctor.only_problem()
    assert finding.check == "local-files-served"
    assert "no local storage covers the folder" in finding.what
    assert str(finding.hint).splitlines()[-1].strip() == str(folder.path)
    client.ensure_local_storage(wheat.id, folder.path)
    assert doctor.problems() == {}


def test_image_missing(doctor: Doctor, folder: Folder) -> None:
    """An image that is gone is told with the path that was tried, on disk and over HTTP."""
    path = folder.path / "小麦 1.png"
    path.unlink()
    problems = doctor.problems()
    assert problems.keys() == {"images-readable", "local-files-served"}
    assert str(path) in str(problems["images-readable"].got)
    assert "1 of 2 images" in problems["images-readable"].what
    assert problems["local-files-served"].where == str(path)


def test_image_damaged(doctor: Doctor, folder: Folder) -> None:
    """An image that Label Studio serves and that can't be decoded is told."""
    (folder.path / "小麦 1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 64)
    assert doctor.only_problem().check == "images-readable"


def test_image_outside(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """An address that leads out of the document root is refused, not tried."""
    for task in list(client.iter_tasks(wheat.id)):
        delete_task(client, task.id)
    import_tasks(client, wheat.id, [{"data": {"image": "/data/local-files/?d=../secret.png"}}])
    problem = doctor.problems()["images-readable"]
    assert "outside the folder that may be read" in problem.what


def test_image_in_the_document_root(
    doctor: Doctor, client: LabelStudioClient, wheat: Project, folder: Folder, label_studio: LabelStudioProcess
) -> None:
    """Label Studio never serves the document root itself; the doctor says so."""
    name = f"{folder.path.name}.png"
    shutil.copyfile(folder.path / "小麦 1.png", label_studio.document_root / name)
    for task in list(client.iter_tasks(wheat.id)):
        delete_task(client, task.id)
    import_tasks(client, wheat.id, [{"data": {"image": f"/data/local-files/?d={name}"}}])
    finding = doctor.only_problem()
    (label_studio.document_root / name).unlink()
    assert finding.check == "local-files-served"
    assert "lies in the document root itself" in finding.what


def test_image_key_missing(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """A task without the key that the configuration names is told with the keys that it has."""
    for task in client.iter_tasks(wheat.id):
        client.call("PATCH", f"/api/tasks/{task.id}/", json={"data": {"photo": task.data["image"]}})
    finding = doctor.only_problem()
    assert finding.check == "images-readable"
    assert '"image"' in finding.what
    assert '"photo"' in str(finding.got)


def test_changed_labels(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """New labels make a new version, which the title does not follow by itself."""
    client.update_project(wheat.id, label_config=CONFIG.replace('name="label"', 'name="boxes"'))
    assert doctor.only_problem().check == "title-is-version"


def test_document_root(doctor: Doctor, tmp_path: Path) -> None:
    """Without a document root images come through Label Studio, which is no problem; a wrong one is."""
    findings = {finding.check: finding for finding in doctor.findings(local_files_document_root=None)}
    assert findings["local-files-root"].status == "ok"
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT" in str(findings["local-files-root"].hint)
    finding = doctor.only_problem(local_files_document_root=tmp_path / "gone")
    assert finding.check == "local-files-root"
    assert "gone" in str(finding.where)


def test_document_root_missing_and_no_storage(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """Where neither the disk nor Label Studio gives the image, the variable to set is named."""
    for storage in client.local_storages(wheat.id):
        client.call("DELETE", f"/api/storages/localfiles/{storage.id}")
    problems = doctor.problems(local_files_document_root=None)
    assert problems.keys() == {"images-readable", "local-files-served", "local-files-root"}
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT" in str(problems["local-files-root"].hint)


def test_uploaded_images(doctor: Doctor, client: LabelStudioClient, wheat: Project) -> None:
    """In a project of uploaded images, local files are of no concern."""
    for task in list(client.iter_tasks(wheat.id)):
        delete_task(client, task.id)
    for storage in client.local_storages(wheat.id):
        client.call("DELETE", f"/api/storages/localfiles/{storage.id}")
    upload_images(client, wheat.id, {"a b+c.png": photograph((200, 180, 90))})
    findings = doctor.findings()
    assert {finding.check for finding in findings if finding.status != "ok"} == set()
    assert not any(finding.check.startswith("local-files") for finding in findings)


@pytest.mark.slow
def test_default_switches(migrated_data_dir: Callable[[Path], Path], tmp_path: Path, serve_model: ServeModel) -> None:
    """After an upgrade to Label Studio's own defaults, the refusal and the line that mends it are named, and nothing is
    stored by finding out; the line mends it. A legacy token switched off is told from a wrong one.
    """
    data_dir, documents = migrated_data_dir(tmp_path / "data"), tmp_path / "documents"
    (documents / "photographs").mkdir(parents=True)

    def start(**switches: str) -> LabelStudioProcess:
        return LabelStudioProcess.start(data_dir, port=0, document_root=documents, timeout_s=500, extra_env=switches)

    with start() as label_studio, label_studio.client() as client:
        model = serve_model(label_studio)
        project = client.create_project("wheat", CONFIG)
        folder = Folder(documents / "photographs", documents)
        client.ensure_local_storage(project.id, folder.path)
        folder.tasks(client, project.id, ["1.png"])
        client.connect_backend(project.id, url=model.url)
        assert Doctor(label_studio, model.url, project.id).problems() == {}
    with start(**DEFAULT_SWITCHES, **SERVES_NO_FILES) as label_studio, label_studio.client() as client:
        hooks = client.call("GET", "/api/webhooks/")
        problems = Doctor(label_studio, model.url, project.id).problems()
        assert problems.keys() == {"model-server-allowed", "model-state", "local-files-served"}
        assert problems["model-server-allowed"].hint == unblock_local_addresses()
        assert "refuses to call this address" in problems["model-state"].what
        assert "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED" in str(problems["local-files-served"].hint)
        assert len(client.call("GET", "/api/ml/", params={"project": project.id})) == 1
        assert client.call("GET", "/api/webhooks/") == hooks
    advised = dict(re.findall(r"(LABEL_STUDIO_\w+)=(\S+)", unblock_local_addresses().partition("PowerShell")[0]))
    assert len(advised) == 2
    with start(**advised) as label_studio, label_studio.client() as client:
        doctor = Doctor(label_studio, model.url, project.id)
        assert doctor.problems() == {}
        client.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": False})
        finding = doctor.only_problem()
        assert (finding.check, finding.what) == ("token", "legacy tokens are switched off in Label Studio")
        assert "API Tokens Settings" in str(finding.hint)


@pytest.mark.slow
def test_webhooks_alone_refused(
    label_studio_factory: Callable[..., LabelStudioProcess], serve_model: ServeModel
) -> None:
    """With models allowed and webhooks not, the model works and the missing webhook follows from the refusal."""
    switches = {**DEFAULT_SWITCHES, "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false"}
    label_studio = label_studio_factory(extra_env=switches)
    model = serve_model(label_studio)
    with label_studio.client() as client:
        project = client.create_project("wheat", CONFIG)
        client.connect_backend(project.id, url=model.url)
    findings = {finding.check: finding for finding in Doctor(label_studio, model.url, project.id).findings()}
    assert [check for check, finding in findings.items() if not finding.ok] == ["webhooks-allowed"]
    assert findings["model-state"].status == "ok"
    assert findings["webhook"].status == "skipped"

"""From a folder of photographs to boxes in Label Studio: start both servers, connect them, predict, keep running."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from spica.errors import LabelConfigError, LabelStudioError, StorageError, UsageError
from spica.http import same_url, user_and_password
from spica.inference import Engine
from spica.labelstudio.api.projects import MAX_TITLE, MIN_TITLE
from spica.labelstudio.api.records import Project
from spica.labelstudio.api.storages import IMAGE_REGEX, SHOWN
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.known import LABEL_STUDIO_FOLDER, remember
from spica.labelstudio.label_config import parse_label_config
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.launch_env import is_local, large_project_switches
from spica.labelstudio.ports import reachable
from spica.labelstudio.served import ServedFolder
from spica.models.first_check import FirstCheck
from spica.models.serving import wants_check
from spica.models.version import ModelIdentity
from spica.predictor import PredictionSpec
from spica.prelabel.progress import Progress
from spica.server.build import build_engine, build_service
from spica.server.jobs import PrelabelRequest
from spica.server.run import ModelServer, ensure_port_free, refuse_exposed
from spica.settings import Settings

DATA_FOLDER = "spica-data"
"""Where everything is kept, beside the folder of photographs, unless --data-dir says otherwise."""

MADE_BY_UP = "made by `spica up`"
"""Label Studio keeps this with a model that ``spica up`` has connected: what carries no such mark is not touched."""

_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
"""Files that Windows puts into folders of photographs."""


@dataclass(frozen=True, slots=True)
class Request:
    """What ``spica up`` was asked for.

    Attributes:
        images: folder of photographs, sub-folders included.
        photographs: how many there are.
        identity: the weights, inspected.
        label_config: Label Studio's XML.
        title: of the project.
        data_dir: the one folder for everything that is kept.
        host: address both servers bind to.
        port: of Label Studio; 0 for a free one.
        model_port: of the model server; 0 for a free one.
        expose: whether ``host`` may be another than this machine's own.
    """

    images: Path
    photographs: int
    identity: ModelIdentity
    label_config: str
    title: str
    data_dir: Path
    host: str
    port: int
    model_port: int
    expose: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """What runs, for the frame and the checks.

    Attributes:
        project: in Label Studio.
        url: of the project's page.
        model_url: of the model server.
        email: login.
        password: login.
        adopted: whether Label Studio was running before.
        local: whether only this machine can reach both servers.
        log: Label Studio's log file.
        alive: tells whether Label Studio still runs.
        progress: of the predictions that this run has made.
        tasks: in the project.
        predicted: tasks with a prediction of the served version.
    """

    project: Project
    url: str
    model_url: str
    email: str
    password: str
    adopted: bool
    local: bool
    log: Path
    alive: Callable[[], bool]
    progress: Progress
    tasks: int
    predicted: int


def label_config_for(labels: list[str]) -> str:
    """A configuration with one rectangle tag for these labels.

    Raises:
        UsageError: no label, or one twice.
    """
    names = [label.strip() for label in labels]
    if not names or not all(names) or len(set(names)) != len(names):
        raise UsageError(
            "the labels can't be used",
            where="--labels",
            expected="one or more different names, separated by commas",
            got=", ".join(labels) or "nothing",
        )
    tags = "\n".join(f'    <Label value="{html.escape(name)}"/>' for name in names)
    return (
        "<View>\n"
        '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        '  <RectangleLabels name="label" toName="image" smart="true">\n'
        f"{tags}\n"
        "  </RectangleLabels>\n"
        "</View>\n"
    )


def project_title(folder: Path) -> str:
    """The folder's name as a title of a project, which Label Studio wants to have 3 to 50 characters."""
    name = folder.name.strip()
    if len(name) < MIN_TITLE:
        return f"{name} photographs".strip()
    if len(name) > MAX_TITLE:  # folders whose names begin alike stay different projects
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        return f"{name[: MAX_TITLE - 8].strip()}… {digest}"
    return name


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in a folder, sub-folders included, sorted.

    Attributes:
        photographs: what Label Studio can show.
        others: the other files, but for hidden ones.
    """

    photographs: list[Path]
    others: list[Path]

    @property
    def passed_over(self) -> str | None:
        """A line about the other files; None without any."""
        if not self.others:
            return None
        kinds = Counter(path.suffix.lower() or "without an ending" for path in self.others)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        names = ", ".join(path.name for path in self.others[:3]) + (", …" if len(self.others) > 3 else "")
        return (
            f"files in the folder that are passed over: {counts} ({names}). Browsers show {_SHOWN} only; save "
            "photographs of other kinds as PNG or JPEG"
        )


_SHOWN = ", ".join(f".{ending}" for ending in SHOWN)


def find_images(folder: Path) -> Found:
    """The photographs below a folder.

    Raises:
        UsageError: no such folder, or no photographs in it.
    """
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder of photographs",
            where=str(folder),
            expected="a folder",
            got="a file" if folder.exists() else "nothing",
            hint="check the spelling; put quotes around a name with spaces",
        )
    is_shown = re.compile(IMAGE_REGEX).match
    found = Found([], [])
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if is_shown(path.name):
            found.photographs.append(path)
        elif path.name.lower() not in _OF_SYSTEMS and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        ):
            found.others.append(path)
    if not found.photographs:
        endings = sorted({path.suffix.lower() for path in found.others})[:8]
        raise UsageError(
            "there are no photographs in this folder that a browser can show",
            where=str(folder),
            expected=f"files ending in {_SHOWN}",
            got=f"files ending in {', '.join(endings)}" if endings else "an empty folder",
            hint="save photographs of other kinds as PNG or JPEG" if endings else None,
        )
    return found


@contextlib.contextmanager
def running(
    request: Request,
    settings: Settings,
    *,
    say: Callable[[str], None],
    note: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Iterator[Ready]:
    """Everything started, connected and predicted; stopped on leaving the block, whatever happened in it.

    Args:
        request: what to start.
        settings: the rest.
        say: told what is being done, a line each.
        note: told what can't be met but stops nothing, a line each.
        on_progress: told how far the predictions are.

    Raises:
        SpicaError: what failed; nothing keeps running.
    """
    refuse_exposed(request.host, expose=request.expose)
    images = request.images.resolve()
    data_dir = prepare_data_dir(request.data_dir, images)
    root = document_root(data_dir, images)
    served = ServedFolder(data_dir, root, images)
    for line in served.take_over(data_dir / LABEL_STUDIO_FOLDER):
        note(line)
    model_host = host_of_model(request.host)
    if request.model_port:
        ensure_port_free(model_host, request.model_port, option="--model-port")
    with contextlib.ExitStack() as stack:
        # The model loads, and is converted and checked the first time, while Label Studio starts.
        loading = stack.enter_context(_loading(request, settings.model_copy(update={"data_dir": data_dir})))
        say(
            "Starting Label Studio"
            + ("" if (data_dir / LABEL_STUDIO_FOLDER).exists() else " (the first time takes longer)")
        )
        label_studio = stack.enter_context(
            LabelStudioProcess.start(
                data_dir / LABEL_STUDIO_FOLDER,
                host=request.host,
                backend_host=reachable(model_host),
                port=request.port,
                document_root=root,
                served_root=served.path,
                on_progress=say,
                extra_env=large_project_switches(request.photographs),
            )
        )
        is_narrow = label_studio.served_root == served.path
        if not is_narrow:
            note(
                f"the Label Studio that runs on this data serves all files below {label_studio.served_root}, Spica's "
                "password and database too: stop it, and run this command again"
            )
        remember(label_studio.url, data_dir / LABEL_STUDIO_FOLDER)
        client = stack.enter_context(LabelStudioClient(label_studio.url, label_studio.credentials.token))
        settings = settings.model_copy(
            update={
                "label_studio_url": label_studio.url,
                "label_studio_api_key": SecretStr(label_studio.credentials.token),
                "label_studio_data_dir": data_dir / LABEL_STUDIO_FOLDER,
                "local_files_document_root": root,
                "data_dir": data_dir,
            }
        )
        say(f"Loading the model {request.identity.id}")
        engine = loading()
        service = build_service(engine, request.identity, settings)
        server = stack.enter_context(ModelServer(service, settings, host=model_host, port=request.model_port))
        engine.wait_ready()
        say("Connecting the project")
        project = _project(client, request, note)
        storage = client.ensure_local_storage(project.id, served.within(images) if is_narrow else images)
        client.sync_storage(storage.id)
        _connect(client, project, server.url, note, user_and_password(settings.basic_auth))
        spec = service.spec(project.key, project.label_config)
        for problem in spec.problems:
            note(problem)
        progress = _prelabel(server, project, note, on_progress)
        yield _ready(client, project, spec, label_studio, server, progress, request.host)


def host_of_model(host: str) -> str:
    """Where the model server listens, given where Label Studio does.

    Label Studio takes no model whose address is IPv6 (``core/utils/io.py`` looks every host up by ``gethostbyname``).

    Raises:
        UsageError: an IPv6 address of a network.
    """
    if ":" not in host or host.strip("[]") == "::":
        return host
    if is_local(host):
        return "127.0.0.1"
    raise UsageError(
        "Label Studio takes no model server at an IPv6 address",
        where="--host",
        expected="an IPv4 address, ::1, or :: for all addresses of this machine",
        got=host,
        hint="with --host :: --expose other machines reach both servers by IPv6 too",
    )


@contextlib.contextmanager
def _loading(request: Request, settings: Settings) -> Iterator[Callable[[], Engine]]:
    """Begin to load the model; calling what is given waits for what decides the arithmetic, and gives the engine."""
    with contextlib.ExitStack() as stack:

        def started() -> Engine:
            return stack.enter_context(build_engine(request.identity, settings))

        if not wants_check(request.identity, settings):
            engine = started()
            yield lambda: engine
            return
        check = stack.enter_context(FirstCheck(request.identity, find_images(request.images).photographs, settings))

        def checked() -> Engine:
            check.wait()
            return started()

        yield checked


def _prelabel(
    server: ModelServer, project: Project, note: Callable[[str], None], on_progress: Callable[[Progress], None]
) -> Progress:
    """Predict what has no prediction, by a job that the server's page shows too."""
    try:
        job, _ = server.jobs.start(PrelabelRequest(project=project.id, all=True))
    except LabelConfigError as error:  # the labels can be mended in Label Studio, which therefore has to go on
        note(error.summary)
        return Progress(total=0)
    return job.follow(on_progress)


def _ready(
    client: LabelStudioClient,
    project: Project,
    spec: PredictionSpec,
    label_studio: LabelStudioProcess,
    server: ModelServer,
    progress: Progress,
    host: str,
) -> Ready:
    tasks, predicted = count_predicted(client, project.id, spec.version)
    return Ready(
        project=project,
        url=f"{label_studio.url}/projects/{project.id}/data",
        model_url=server.url,
        email=label_studio.credentials.email,
        password=label_studio.credentials.password,
        adopted=label_studio.adopted,
        local=is_local(host),
        log=label_studio.log_file,
        alive=lambda: label_studio.is_running,
        progress=progress,
        tasks=tasks,
        predicted=predicted,
    )


def count_predicted(client: LabelStudioClient, project: int, version: str) -> tuple[int, int]:
    """The tasks of a project, and those of them with a prediction of a version, by Label Studio's own counters."""
    tasks = client.task_count(project)
    # The first takes versions whose names contain this one for it, the second counts a prediction stored twice.
    having = tasks - client.count_tasks(project, without_version=version)
    return tasks, min(having, client.prediction_versions(project).get(version, 0))


def _connect(
    client: LabelStudioClient,
    project: Project,
    model_url: str,
    note: Callable[[str], None],
    basic_auth: tuple[str, str] | None = None,
) -> None:
    """Connect our server: a former run's connection follows it to its address, and other people's models stay."""
    before = client.backends(project.id)
    former = [each for each in before if each.description == MADE_BY_UP and not same_url(each.url, model_url)]
    is_there = any(same_url(each.url, model_url) for each in before)
    moved = former.pop(0) if former and not is_there else None
    for surplus in former:
        client.disconnect_backend(surplus)
    connected = client.connect_backend(
        project.id, url=model_url, basic_auth=basic_auth, description=MADE_BY_UP, moved=moved
    )
    for warning in connected.warnings:
        note(warning)
    first = client.backends(project.id)[0]
    if first.id != connected.id:
        note(
            f"Label Studio asks only the first connected model, {first.title!r} at {first.url}, when a task is opened; "
            "if that one is not wanted, delete it under Settings > Model"
        )


def _project(client: LabelStudioClient, request: Request, note: Callable[[str], None]) -> Project:
    project = client.find_project(request.title)
    if project is None:
        return client.create_project(request.title, request.label_config)
    asked, there = _labels(request.label_config), _labels(project.label_config)
    # The person may have refined it in Label Studio since: theirs is the newer word, and colours are no difference.
    same = "".join(project.label_config.split()) == "".join(request.label_config.split())
    if not same and (set(asked) != set(there) or request.label_config != label_config_for(asked)):
        note(
            f"the project {project.title!r} has its labelling configuration already and keeps it, with the labels "
            f"{', '.join(there) or '(none)'}; asked for: {', '.join(asked)}. Change it in Label Studio under "
            "Settings > Labeling Interface, or give another title with --project"
        )
    return project


def _labels(label_config: str) -> list[str]:
    try:
        controls = parse_label_config(label_config).controls
    except LabelConfigError:  # somebody's project, which may be about anything
        return []
    return list(dict.fromkeys(label.value for control in controls for label in control.labels))


def prepare_data_dir(data_dir: Path, images: Path) -> Path:
    """The data folder, resolved, made, and found writable.

    Raises:
        UsageError: it lies inside the folder of photographs.
        StorageError: it can't be written to.
    """
    data_dir = data_dir.resolve()
    if data_dir == images or data_dir.is_relative_to(images):
        raise UsageError(
            "the data folder lies inside the folder of photographs",
            where=str(data_dir),
            expected=f"a folder outside {images}",
            hint="choose another with --data-dir",
        )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise StorageError(
            "the data folder can't be written to",
            where=str(data_dir),
            got=error.strerror,
            hint="choose another with --data-dir, or free some space",
        ) from None
    return data_dir


def document_root(data_dir: Path, images: Path) -> Path:
    """The folder that the addresses of all tasks are relative to: the parent of the first one used with this data.

    Raises:
        UsageError: ``images`` lies elsewhere.
    """
    record = data_dir / "document-root.json"
    if not record.exists():
        write_json(record, {"document_root": str(images.parent)})
    root = Path(json.loads(record.read_text("utf-8"))["document_root"])
    if root == images or not images.is_relative_to(root):
        raise UsageError(
            "this data folder serves photographs from another place",
            where=str(data_dir),
            expected=f"a folder below {root}",
            got=str(images),
            hint="use another --data-dir for these photographs",
        )
    return root


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        StorageError: disk full, or no permission.
    """
    text = json.dumps(value, ensure_ascii=False, indent=2)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError("a file can't be written", where=str(path), got=error.strerror) from None


def check(ready: Ready) -> None:
    """Raise unless every task has a prediction.

    Raises:
        LabelStudioError: some have none; the reasons are in the message.
    """
    if ready.tasks and ready.predicted == ready.tasks:
        return
    reasons = "; ".join(f"task {task}: {error.what}" for task, error in ready.progress.failures[:3])
    raise LabelStudioError(
        "not every task has a prediction",
        where=ready.url,
        expected=f"{ready.tasks} tasks with a prediction",
        got=f"{ready.predicted}" + (f" ({reasons})" if reasons else ""),
    )

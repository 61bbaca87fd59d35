"""From a folder of photographs to boxes in Label Studio: start both servers, connect them, predict, keep running."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from spica.errors import LabelConfigError, LabelStudioError, StorageError, UsageError
from spica.files import write_text
from spica.http import is_local, reachable, same_url, user_and_password
from spica.inference import Engine
from spica.labelstudio.client import IMAGE_REGEX, MAX_TITLE, MIN_TITLE, SHOWN, LabelStudioClient
from spica.labelstudio.config import match_controls, parse_label_config
from spica.labelstudio.data_folder import LABEL_STUDIO_FOLDER, remember
from spica.labelstudio.launch import LabelStudioProcess, large_project_switches
from spica.labelstudio.records import Project
from spica.labelstudio.served import ServedFolder
from spica.models.checks import FirstCheck
from spica.models.serving import wants_check
from spica.models.version import ModelIdentity
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

_SHOWN = ", ".join(f".{ending}" for ending in SHOWN)


@dataclass(frozen=True, slots=True)
class Request:
    """What ``spica up`` was asked for; addresses, ports and the data folder are in the settings.

    Attributes:
        images: folder of photographs, resolved.
        photographs: in it, sub-folders included.
        identity: the weights, inspected.
        label_config: Label Studio's XML, for a new project.
        title: of the project.
        expose: whether ``settings.host`` may be another address than this machine's own.
    """

    images: Path
    photographs: Sequence[Path]
    identity: ModelIdentity
    label_config: str
    title: str
    expose: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """What runs, for the frame and the checks.

    Attributes:
        project: in Label Studio.
        url: of the project's page.
        model_url: of the model server.
        label_studio: the process, or the one that was running before.
        progress: of the predictions that this run has made.
        tasks: in the project.
        predicted: tasks with a prediction of the served version.
    """

    project: Project
    url: str
    model_url: str
    label_studio: LabelStudioProcess
    progress: Progress
    tasks: int
    predicted: int

    def check(self) -> None:
        """Raise unless every task has a prediction.

        Raises:
            LabelStudioError: some have none; the reasons are in the message.
        """
        if self.tasks and self.predicted == self.tasks:
            return
        reasons = "; ".join(f"task {task}: {error.what}" for task, error in self.progress.failures[:3])
        raise LabelStudioError(
            "not every task has a prediction",
            where=self.url,
            expected=f"{self.tasks} tasks with a prediction",
            got=f"{self.predicted}" + (f" ({reasons})" if reasons else ""),
        )


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
        settings: the rest; ``data_dir`` is the one folder for everything that is kept.
        say: called with what is being done, a line each.
        note: called with what stops nothing but should be known, a line each.
        on_progress: called with how far the predictions are.

    Raises:
        SpicaError: what failed; nothing keeps running.
    """
    refuse_exposed(settings.host, expose=request.expose)
    folder = settings.data_dir / LABEL_STUDIO_FOLDER
    root = document_root(settings.data_dir, request.images)
    served = ServedFolder(settings.data_dir, root, request.images)
    for line in served.take_over(folder):
        note(line)
    model_host = host_of_model(settings.host)
    if settings.model_port:
        ensure_port_free(model_host, settings.model_port, option="--port")
    with contextlib.ExitStack() as stack:

        def start_engine() -> Engine:
            return stack.enter_context(build_engine(request.identity, settings))

        # The model loads, and is converted and checked the first time, while Label Studio starts.
        needs_check = wants_check(request.identity, settings)
        first_check = FirstCheck(request.identity, request.photographs, settings) if needs_check else None
        engine = start_engine() if first_check is None else None
        if first_check is not None:
            stack.enter_context(first_check)

        say("Starting Label Studio" + ("" if folder.exists() else " (the first time takes longer)"))
        label_studio = stack.enter_context(
            LabelStudioProcess.start(
                folder,
                host=settings.host,
                backend_host=reachable(model_host),
                port=settings.label_studio_port,
                document_root=root,
                served_root=served.path,
                on_progress=say,
                extra_env=large_project_switches(len(request.photographs)),
            )
        )
        serves_links_only = label_studio.served_root == served.path
        if not serves_links_only:
            note(
                f"the Label Studio that runs on this data serves all files below {label_studio.served_root}, Spica's "
                "password and database too: stop it, and run this command again"
            )
        remember(label_studio.url, folder)
        client = stack.enter_context(LabelStudioClient(label_studio.url, label_studio.credentials.token))
        if client.find_project(request.title) is None:
            check_labels(request.identity.classes, request.label_config)

        say(f"Loading the model {request.identity.id}")
        if first_check is not None:
            first_check.wait()
        engine = engine or start_engine()
        settings = settings.model_copy(
            update={
                "label_studio_url": label_studio.url,
                "label_studio_api_key": SecretStr(label_studio.credentials.token),
                "label_studio_data_dir": folder,
                "local_files_document_root": root,
            }
        )
        service = build_service(engine, request.identity, settings)
        server = stack.enter_context(ModelServer(service, settings, host=model_host, port=settings.model_port))
        engine.wait_ready()

        say("Connecting the project")
        project = _project(client, request, note)
        storage = client.ensure_local_storage(
            project.id, served.within(request.images) if serves_links_only else request.images
        )
        client.sync_storage(storage.id)
        connect_model(client, project, server.url, note, user_and_password(settings.basic_auth))
        spec = service.spec(project.key, project.label_config)
        for problem in spec.problems:
            note(problem)
        progress = _predict(server, project, note, on_progress)
        tasks, predicted = count_predicted(client, project.id, spec.version)
        url = f"{label_studio.url}/projects/{project.id}/data"
        yield Ready(project, url, server.url, label_studio, progress, tasks, predicted)


# --- the steps -------------------------------------------------------------------------------------------------------


def _project(client: LabelStudioClient, request: Request, note: Callable[[str], None]) -> Project:
    """The project of this title, made where there is none."""
    project = client.find_project(request.title)
    if project is None:
        return client.create_project(request.title, request.label_config)
    asked, there = _labels(request.label_config), _labels(project.label_config)
    # It may have been refined in Label Studio since: that is the newer word, and colours are no difference.
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


def connect_model(
    client: LabelStudioClient,
    project: Project,
    model_url: str,
    note: Callable[[str], None],
    basic_auth: tuple[str, str] | None = None,
) -> None:
    """Connect our server: a former run's connection follows it to its address, and other people's models stay."""
    before = client.backends(project.id)
    former = [row for row in before if row.description == MADE_BY_UP and not same_url(row.url, model_url)]
    is_there = any(same_url(row.url, model_url) for row in before)
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


def _predict(
    server: ModelServer, project: Project, note: Callable[[str], None], on_progress: Callable[[Progress], None]
) -> Progress:
    """Predict what has no prediction, by a job that the server's page shows too."""
    try:
        job, _ = server.jobs.start(PrelabelRequest(project=project.id, all=True))
    except LabelConfigError as error:  # the labels can be changed in Label Studio, which therefore has to go on
        note(error.summary)
        return Progress(total=0)
    return job.follow(on_progress)


def count_predicted(client: LabelStudioClient, project: int, version: str) -> tuple[int, int]:
    """The tasks of a project, and those of them with a prediction of a version, by Label Studio's own counters."""
    tasks = client.task_count(project)
    # The first takes versions whose names contain this one for it, the second counts a prediction stored twice.
    having = tasks - client.count_tasks(project, without_version=version)
    return tasks, min(having, client.prediction_versions(project).get(version, 0))


# --- checked before anything is started ------------------------------------------------------------------------------


def labels_of(identity: ModelIdentity) -> list[str]:
    """The classes that weights know by name, for a project's labels.

    Raises:
        UsageError: they carry no names.
    """
    if all(identity.classes):
        return list(identity.classes)
    number = len(identity.classes)
    classes = "1 class" if number == 1 else f"{number} classes"
    raise UsageError(
        "the labels are missing",
        where="spica up",
        expected="--labels or --label-config: these weights don't say what their classes are called",
        got=f"{classes} without names",
        hint="for example: --labels " + ("spike" if number == 1 else "spike,leaf"),
    )


def check_labels(classes: Sequence[str], label_config: str) -> None:
    """Raise unless some class of the model meets a label.

    Raises:
        LabelConfigError: no box could be shown.
    """
    matches = match_controls(classes, parse_label_config(label_config))
    if all(match.is_empty for match in matches):
        raise LabelConfigError(
            "no class of the model meets a label, so that no box could be shown",
            where="--labels, --label-config",
            expected=", ".join(filter(None, classes)) or f"{len(classes)} labels, one for each of the model's classes",
            got=", ".join(name for match in matches for name in match.label_names),
            hint="give the model's own names (without --labels, weights that know them give them), or a configuration "
            'with <Label value="…" predicted_values="class name"/>',
        )


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


def find_images(folder: Path) -> tuple[list[Path], str | None]:
    """The photographs below a folder, sorted, and a line about the other files, None without any.

    Raises:
        UsageError: no such folder, or no photographs in it.
    """
    if not folder.is_dir():
        is_file = folder.is_file()
        raise UsageError(
            "there is no such folder of photographs",
            where=str(folder),
            expected="a folder",
            got="a file" if is_file else "nothing",
            hint=f"give the folder that the photographs lie in, here {folder.parent}"
            if is_file
            else "check the spelling; put quotes around a name with spaces",
        )
    is_shown = re.compile(IMAGE_REGEX).match
    photographs: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_shown(path.name):
            photographs.append(path)
        elif path.is_file() and path.name.lower() not in _OF_SYSTEMS:
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            others += [] if hidden else [path]
    kinds = Counter(path.suffix.lower() or "without an ending" for path in others).most_common(8)
    if not photographs:
        raise UsageError(
            "there are no photographs in this folder that a browser can show",
            where=str(folder),
            expected=f"files ending in {_SHOWN}",
            got=f"files ending in {', '.join(sorted(kind for kind, _ in kinds))}" if kinds else "an empty folder",
            hint="save photographs of other kinds as PNG or JPEG" if kinds else None,
        )
    if not others:
        return photographs, None
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds)
    names = ", ".join(path.name for path in others[:3]) + (", …" if len(others) > 3 else "")
    return photographs, (
        f"files in the folder that are passed over: {counts} ({names}). Browsers show {_SHOWN} only; save "
        "photographs of other kinds as PNG or JPEG"
    )


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


def prepare_data_dir(data_dir: Path, images: Path) -> Path:
    """The data folder, resolved, made, and tried by writing to it.

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
        write_text(record, json.dumps({"document_root": str(images.parent)}, ensure_ascii=False, indent=2))
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

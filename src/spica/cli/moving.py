"""After another version was made active: the model server takes it up, and Label Studio shows it.

The pointer in the store is all that counts; what happens here only saves people from waiting or doing it by hand, so
what can't be done is said, and is no failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spica.cli.console import label_studio
from spica.errors import SpicaError
from spica.settings import Settings

_PATIENCE_S = 90.0
"""The model server looks for changes once a second; then it loads the version, and converts nothing."""

_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look for Label Studio and the model server; None for what was not said.

    Attributes:
        data_dir: with the store, and maybe with the Label Studio of ``spica up``.
        url: of Label Studio.
        token: of Label Studio.
        model_url: of the model server.
        basic_auth: ``user:password`` that the model server asks for.
    """

    data_dir: Path | None = None
    url: str | None = None
    token: str | None = None
    model_url: str | None = None
    basic_auth: str | None = None

    @property
    def label_studio_dir(self) -> Path | None:
        """The data folder, if it holds a Label Studio of ``spica up``."""
        from spica.labelstudio.data_folder import folder_in

        return self.data_dir if self.data_dir is not None and folder_in(self.data_dir) is not None else None

    def settings(self) -> Settings:
        """With address and token of Label Studio, as far as they are known."""
        return label_studio(self.url, self.token, self.label_studio_dir, basic_auth=self.basic_auth)


def move(project: int, version: str | None, before: str | None, place: Place, say: Callable[[str], None]) -> bool:
    """Wait until the model server answers with a version, then have Label Studio ask for it, by which it is shown.

    Args:
        project: its number.
        version: that is active now; None for the weights that the server was started with.
        before: that was active.
        place: where things are.
        say: called with what was done, or why it was not, a line each.

    Returns:
        Whether Label Studio shows the version.
    """
    from spica.connect import RemoteServer, connect
    from spica.http import same_url
    from spica.labelstudio.client import LabelStudioClient

    settings = place.settings()
    later = f"`spica connect --project {project}` tells Label Studio later"
    if settings.label_studio_api_key is None:
        say(f"Label Studio was not told, for want of a token (--token, or --data-dir of `spica up`); {later}.")
        return False
    auth = settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None
    token = settings.label_studio_api_key.get_secret_value()
    try:
        with LabelStudioClient(settings.label_studio_url, token) as client:
            row = client.project(project)
            models = client.backends(project)  # the one at the address, else the first, which Label Studio asks
            model = next((m for m in models if place.model_url is None or same_url(m.url, place.model_url)), None)
            url = place.model_url or (model.url if model is not None else None)
            if url is None:
                say(f"No model is connected with project {project}; {later}, once the model server runs.")
                return False
            with RemoteServer(url, auth) as server:
                answers = _wait(lambda: str(server.setup(row.key, row.label_config)["model_version"]), version, before)
            if answers is not None:
                say(f"The model server at {url} still answers with {answers}; its page says why; {later}.")
                return False
            interactive = model.is_interactive if model is not None else True
            done = connect(client, project, model_url=url, basic_auth=auth, interactive=interactive)
    except SpicaError as error:
        say(f"Label Studio was not told: {error.summary}; {later}.")
        return False
    say(f"Label Studio shows project {project} with {done.version}.")
    for problem in done.problems:
        say(f"Note: {problem}")
    return True


def _wait(answer: Callable[[], str], version: str | None, before: str | None) -> str | None:
    """None as soon as the server answers with the version; else, after a while, what it answers with."""
    from spica.models.version import answers_with

    until = time.monotonic() + _PATIENCE_S
    while True:
        name = answer()
        if answers_with(name, version) if version is not None else before is None or not answers_with(name, before):
            return None
        if time.monotonic() >= until:
            return name
        time.sleep(_PAUSE_S)

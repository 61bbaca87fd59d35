"""Accounts, versions and projects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spica.errors import LabelStudioError, LabelStudioRefusedError
from spica.labelstudio.api.records import Project, User
from spica.labelstudio.api.transport import Transport
from spica.project import ProjectKey

MIN_TITLE = 3
MAX_TITLE = 50
"""Label Studio's limits on a project's title (core/settings/base.py, PROJECT_TITLE_MIN_LEN and _MAX_LEN)."""


class ProjectsApi(Transport):
    """Calls about the account, the server and its projects."""

    def whoami(self) -> User:
        """The account that the token belongs to: the cheapest proof that it works."""
        return User.read(self.call("GET", "/api/current-user/whoami"))

    def version(self) -> str:
        """Label Studio's release, such as ``1.23.2``; "" when it does not say."""
        body = self.call("GET", "/api/version")
        return str(body.get("release") or "") if isinstance(body, dict) else ""

    def project(self, project: int) -> Project:
        """One project by its number.

        Raises:
            LabelStudioError: there is none with this number, or this account may not see it.
        """
        try:
            return Project.read(self.call("GET", f"/api/projects/{project}/"))
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != 404:
                raise
            raise LabelStudioRefusedError(
                f"there is no project {project}",
                404,
                where=self.url,
                got=refusal.got,
                hint="the number is in the address of the project's page: /projects/<number>/data",
            ) from refusal

    def known_project(self, key: ProjectKey) -> Project:
        """One project, if it is still the one that is meant.

        Raises:
            LabelStudioError: there is none with this number, this account may not see it, or it is another one.
        """
        found = self.project(key.number)
        refuse_another(found.key, key, where=self.url)
        return found

    def projects(self, *, page_size: int = 100) -> Iterator[Project]:
        """All projects that this account sees, newest first, a page at a time."""
        for body in self._project_pages(page_size):
            yield Project.read(body)

    def find_project(self, title: str) -> Project | None:
        """The oldest project with exactly this title, or None."""
        found = [body for body in self._project_pages(1000, include="id,title") if body.get("title") == title]
        return self.project(min(int(body["id"]) for body in found)) if found else None

    def create_project(
        self, title: str, label_config: str, *, show_collab_predictions: bool = True, **fields: Any
    ) -> Project:
        """A new project.

        Args:
            title: of 3 to 50 characters.
            label_config: XML of the labelling interface.
            show_collab_predictions: whether stored predictions are shown to annotators.
            fields: anything else that Label Studio takes, such as ``sampling`` or ``description``.

        Raises:
            LabelStudioError: the title has another length, or Label Studio refuses the configuration.
        """
        checked_title(title)
        body = {
            "title": title,
            "label_config": label_config,
            "show_collab_predictions": show_collab_predictions,
            **fields,
        }
        return Project.read(self.call("POST", "/api/projects/", json=body))

    def update_project(self, project: int, **fields: Any) -> Project:
        """Change fields of a project, by Label Studio's names for them."""
        if isinstance(fields.get("title"), str):
            checked_title(fields["title"])
        return Project.read(self.call("PATCH", f"/api/projects/{project}/", json=fields, repeatable=True))

    def delete_project(self, project: int) -> None:
        """Delete a project with its tasks, annotations and predictions."""
        self.call("DELETE", f"/api/projects/{project}/")

    def _project_pages(self, page_size: int, **params: str) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            body = self.call("GET", "/api/projects/", params={"page": page, "page_size": page_size, **params})
            yield from body["results"]
            if not body.get("next"):
                return
            page += 1


def refuse_another(found: ProjectKey, meant: ProjectKey, *, where: str) -> None:
    """Raise unless Label Studio's project of a number is the one that is meant, as far as that is known.

    Raises:
        LabelStudioError: it was created at another time.
    """
    if meant.created not in (0, found.created):
        raise LabelStudioRefusedError(
            f"project {meant} is another one here",
            404,
            where=where,
            expected=f"the project created {meant.date}",
            got=f"one created {found.date}: Label Studio was set up anew, or is another one",
            hint="start the model server with the address and token of the Label Studio that is meant",
        )


def checked_title(title: str) -> str:
    """The title itself, if Label Studio takes it.

    Raises:
        LabelStudioError: it is shorter than 3 or longer than 50 characters.
    """
    if not MIN_TITLE <= len(title.strip()) <= MAX_TITLE:
        raise LabelStudioError(
            "a project's title has the wrong length",
            where=repr(title),
            expected=f"{MIN_TITLE} to {MAX_TITLE} characters",
            got=f"{len(title.strip())}",
            hint="give another title with --project",
        )
    return title

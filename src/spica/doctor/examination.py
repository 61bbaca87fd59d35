"""All checks, in order."""

from __future__ import annotations

import contextlib

from spica.doctor.finding import Finding, Section
from spica.doctor.label_studio import examine_label_studio
from spica.doctor.model_server import ModelServer, examine_model_server
from spica.doctor.photographs import examine_photographs
from spica.doctor.project import Connected, ProjectExamination, connected_models
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import Project
from spica.settings import Settings


def examine(settings: Settings, *, project: int | None, model_url: str) -> list[Finding]:
    """Look at Label Studio, the model server and projects.

    A check that can't be made because another one failed is skipped, and that other one counts. Where all projects
    are looked at, one without a model counts only if none has one: not every project is about boxes.

    Args:
        settings: addresses, token, folders.
        project: number of the project to look at; None for all.
        model_url: of the model server.

    Returns:
        What was found, in the order of looking. Never raises for what is wrong: that is a finding.
    """
    label_studio, server_section = Section("Label Studio"), Section("Model server")
    with contextlib.ExitStack() as stack:
        client = label_studio.attempt("label-studio-reachable", lambda: examine_label_studio(settings, label_studio))
        if client is not None:
            stack.callback(client.close)
        server = server_section.attempt(
            "model-server-reachable", lambda: examine_model_server(settings, model_url, client, server_section)
        )
        sections = [label_studio, server_section]
        if client is not None and server is not None:
            sections += _examine_projects(settings, client, server, project)
        else:
            waiting = Section("Projects" if project is None else f"Project {project}", project=project)
            waiting.skipped("project-exists", "projects can't be looked at before the above is mended")
            sections.append(waiting)
        return [finding for section in sections for finding in section.findings]


def _examine_projects(
    settings: Settings, client: LabelStudioClient, server: ModelServer, number: int | None
) -> list[Section]:
    section = Section("Projects" if number is None else f"Project {number}", project=number)
    projects = section.attempt(
        "project-exists", lambda: list(client.projects()) if number is None else [client.project(number)]
    )
    if projects is None:
        return [section]
    if not projects:
        section.skipped("project-exists", "there are no projects yet", hint="spica up photos --weights FILE --labels …")
        return [section]
    projects = sorted(projects, key=lambda each: each.id)
    sections = [Section(f"Project {each.id} ({each.title})", project=each.id) for each in projects]
    models = [_models(client, each, own) for each, own in zip(projects, sections, strict=True)]
    is_wanted = number is not None or not any(models)
    for each, connected, own in zip(projects, models, sections, strict=True):
        if connected is None:
            continue
        examination = ProjectExamination(client, server, each, connected, own)
        if connected or is_wanted:
            config = examination.run()
            examine_photographs(settings, client, each, config, own)
        else:
            examination.pass_over()
    return sections


def _models(client: LabelStudioClient, project: Project, section: Section) -> list[Connected] | None:
    section.ok("project-exists", f"it has {project.task_count} task{'' if project.task_count == 1 else 's'}")
    return section.attempt("model-connected", lambda: connected_models(client, project.id))

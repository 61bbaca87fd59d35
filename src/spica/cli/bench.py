"""`spica bench`: how fast this machine is, with which way of computing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table

from spica.cli.console import note, out, settings_with
from spica.cli.options import AsJson, DataDir, Eps, MaxDetections
from spica.cli.progress import working
from spica.errors import UsageError


def bench(
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", "--weight", help="Weights to measure.", show_default="the tutorial's architecture, untrained"
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of photographs.", show_default="rendered ones of 1024 x 1024")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Look at no more photographs than this.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Look so many times at each.")] = 3,
    ways: Annotated[
        str | None,
        typer.Option(
            help="Only these, separated by commas: tutorial, inference_mode, f32, bf16, int8.",
            show_default="all that this machine and the weights have",
        ),
    ] = None,
    no_server: Annotated[bool, typer.Option("--no-server", help="Without starting the server.")] = False,
    data_dir: DataDir = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    as_json: AsJson = False,
) -> None:
    """Measure on this machine: the tutorial's way against Spica's, in turn, on the same photographs.

    [bold]Example[/bold]: spica bench --weights gwhd.pth --images photos
    """
    from spica.bench.methods import Method
    from spica.bench.photographs import choose_photographs, untrained_weights
    from spica.bench.run import HEAD, run

    chosen = [way.strip() for way in ways.split(",")] if ways is not None else None
    unknown = sorted(set(chosen or ()) - set(get_args(Method)))
    if unknown:
        raise UsageError(
            "there is no such way", where="--ways", expected=", ".join(get_args(Method)), got=", ".join(unknown)
        )
    settings = settings_with(data_dir=data_dir, norm_eps=norm_eps, max_detections=max_detections)
    with tempfile.TemporaryDirectory(prefix="spica-bench-") as name:
        scratch = Path(name)
        chosen_photographs = choose_photographs(
            images, scratch / "photographs", most=most, max_pixels=settings.max_pixels
        )
        if weights is None:
            weights = untrained_weights(scratch / "untrained.pth")
            settings = settings.model_copy(update={"data_dir": scratch / "data"})
        with working("Preparing") as say:
            result = run(
                weights,
                chosen_photographs.paths,
                settings,
                methods=cast("list[Method] | None", chosen),
                rounds=rounds,
                startups=0 if no_server else 1,
                say=say,
            )
    notes = [*chosen_photographs.notes, *result.notes]
    if as_json:
        told = {
            "architecture": result.architecture,
            "conditions": dict(result.conditions),
            "ways": [row.as_json() for row in result.rows],
            "notes": notes,
        }
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return
    for condition, value in result.conditions:
        out.print(f"[dim]{condition}:[/dim] {escape(value)}")
    table = Table(title=escape(f"{result.architecture}, from the file to the boxes"), title_justify="left")
    columns = [HEAD, *(row.cells() for row in result.rows)]  # a way each: five fit on a screen, eleven figures don't
    for number, column in enumerate(columns):
        table.add_column(column[0], justify="left" if number == 0 else "right")
    for line in list(zip(*columns, strict=True))[1:]:
        table.add_row(*line)
    out.print(table)
    for text in notes:
        note(f"{text}.")
    out.print("Seconds hold for this machine in this moment; compare ways within one table only.")

"""`spica train`: from annotated images to weights."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.markup import escape

from spica.cli.console import count, err, note, out, settings_with
from spica.cli.data import DataOptions, note_problems
from spica.cli.progress import Bar, ctrl_c, working
from spica.errors import UsageError

if TYPE_CHECKING:
    from spica.evaluation.counting import Counting
    from spica.training.dataset import DataSet
    from spica.training.progress import Epoch, Progress, Trained
    from spica.training.recipe import Recipe

_SUFFIXES = (".pth", ".pt", ".safetensors")
_WORK = ".training"
"""Suffix of the folder with the checkpoints, beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """How is trained; None for what follows from the data and the network. Named as :class:`Recipe` has it."""

    epochs: Annotated[int | None, typer.Option(min=1, help="Most passes.", show_default="by the data")] = None
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step.", show_default="by the network")] = None
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default="by the network")] = None
    patience: Annotated[
        int | None,
        typer.Option(
            min=0, help="With --valid: stop after this many epochs without a better one; 0 never.", show_default="6"
        ),
    ] = None
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Stop after the epoch in which they are over.")
    ] = None
    frozen: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="Stages of the backbone that do not learn.", show_default="by the data"),
    ] = None
    min_size: Annotated[
        int | None,
        typer.Option(
            "--size", min=64, max=4096, help="Pixels of an image's shorter side.", show_default="the network's"
        ),
    ] = None
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror images from left to right.")] = True
    flip_vertical: Annotated[
        bool, typer.Option("--flip-vertical/--no-flip-vertical", help="And upside down: photographs from above.")
    ] = False
    zoom: Annotated[bool, typer.Option("--zoom/--no-zoom", help="Nearer and farther.")] = True
    colour: Annotated[bool, typer.Option("--colour/--no-colour", help="In another light.")] = True
    pretrained: Annotated[
        bool, typer.Option("--pretrained/--from-scratch", help="Without --init: published weights, or random numbers.")
    ] = True
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0
    threads: Annotated[int, typer.Option(min=0, help="Most threads; 0 for all.")] = 0


def train(
    target: Annotated[
        Path, typer.Option("--out", help="The weights to write: .pth, or .safetensors, which knows its classes.")
    ],
    data: DataOptions,
    chosen: RecipeOptions,
    valid: Annotated[
        Path | None,
        typer.Option(
            help="Annotated images to choose the best epoch by.",
            show_default="a fifth of DATA judges, and the last epoch is taken",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Architecture, as fasterrcnn_resnet50_fpn.",
            show_default="that of --init, else fasterrcnn_efficientnet_lite0_fpn, with a GPU fasterrcnn_resnet50_fpn",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Begin with these weights, or this model version.", show_default="published weights"),
    ] = None,
    init_labels: Annotated[
        str | None,
        typer.Option(
            "--init-labels", help="The classes of --init in order, for a file without names.", show_default=False
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace --out if it exists, and drop a training of it that was stopped.")
    ] = False,
) -> None:
    """Train a detector on annotated images.

    Beside the weights are written: a card (.card.json, .card.md), loss and mAP by epoch (.curves.png), and predicted
    against true numbers of objects (.counts.png). Ctrl-C keeps what was learned; --resume goes on from there. Of a
    project, images that are held out of its training are only judged by.

    [bold]Example[/bold]: spica train annotations.json --out gwhd.pth
    """
    if chosen.patience is not None and valid is None:
        raise UsageError(
            "nothing tells which epoch is better",
            where=f"--patience {chosen.patience}",
            hint="give other annotated images with --valid; without them the last epoch is taken",
        )
    data.check("learn from")
    _check_target(target, force=force, resume=resume)
    from spica.models.version import weights_info
    from spica.training.holdout import path_of
    from spica.training.recipe import Recipe, require_packages

    require_packages()
    settings = data.settings()
    dataset, project = data.read(settings)
    note_problems(dataset)
    others: DataSet | None = None
    if valid is not None:
        others = data.read_file(valid, classes=dataset.classes)
        note_problems(others)
    learned, judged = _parts(dataset, others, None if project is None else path_of(settings.data_dir, project))
    if arch is None and init is not None:
        arch = weights_info(init).architecture
    images = max(1, len(learned.examples))
    recipe = Recipe.for_data(images, arch, continued=init is not None, **dataclasses.asdict(chosen))
    names = [name.strip() for name in init_labels.split(",")] if init_labels is not None else None
    trained = _train(learned, judged, target, recipe, init, names, chooses=others is not None, resume=resume)
    _finish(trained, target, learned, judged)


def _check_target(target: Path, *, force: bool, resume: bool) -> None:
    from spica.training.outputs import paths

    if target.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            "weights can't be written under this name",
            where=f"--out {target}",
            expected=f"a name that ends with {', '.join(_SUFFIXES)}",
        )
    if not target.absolute().parent.is_dir():
        raise UsageError("there is no such folder", where=str(target.absolute().parent), hint="make it first")
    there = [path.name for path in paths(target) if path.exists()]
    if there and not force:
        raise UsageError(
            "the weights are there already, and nothing is overwritten",
            where=str(target),
            got=", ".join(there),
            hint="choose another --out, or say --force",
        )
    work = _work_of(target)
    if not resume and not force and work.is_dir() and any(work.iterdir()):
        raise UsageError(
            "a training of these weights was stopped, and what it has learned is kept",
            where=str(work),
            hint="go on with it with --resume, or drop it and begin anew with --force",
        )


def _work_of(target: Path) -> Path:
    return target.with_name(target.name + _WORK)


def _parts(dataset: DataSet, others: DataSet | None, record: Path | None) -> tuple[DataSet, DataSet | None]:
    """What is learned from, and what is judged by.

    Args:
        dataset: all images.
        others: other images to judge by.
        record: of a project's held-out images, extended by the new ones; None for a division of this training's own.
    """
    from spica.training.holdout import divide, split

    learned, held = dataset, None
    if others is None or record is not None:
        settings = settings_with()
        share, minimum = settings.holdout_share, settings.holdout_min
        if record is None:
            learned, held, _ = split(dataset, {}, share=share, minimum=minimum)
        else:
            learned, held = divide(record, dataset, share=share, minimum=minimum)
    if others is None:
        if held is not None:
            note_problems(held)
        return learned, held if held is not None and held.examples else None
    seen = {example.digest for example in learned.examples}
    double = sum(example.digest in seen for example in others.examples)
    if double:
        note(f"{double} validation images are learned from too: the metrics flatter.")
    return learned, others


def _train(
    learned: DataSet,
    judged: DataSet | None,
    target: Path,
    recipe: Recipe,
    init: Path | None,
    init_classes: list[str] | None,
    *,
    chooses: bool,
    resume: bool,
) -> Trained:
    """Train with bars; Ctrl-C ends it after the step that it is in."""
    from spica.training import loop

    work = _work_of(target)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    boxes = f"{count(len(learned.examples), 'image')} with {count(learned.boxes, 'box')}"
    judging = f", judged by {len(judged.examples)} others" if judged is not None else ""
    out.print(f"Training {recipe.architecture} on {boxes}{judging}: {', '.join(map(escape, learned.classes))}")
    try:
        with ctrl_c(lambda: err.print("Stopping after this step …")) as stop, _Bars(recipe) as bars:
            return loop.train(
                learned,
                judged,
                work,
                recipe,
                chooses=chooses,
                init=init,
                init_classes=init_classes,
                on_progress=bars.show,
                stop=stop,
            )
    except loop.StoppedError as error:
        out.print(f"Stopped after {escape(error.got or '')}. The same command with --resume goes on from there.")
        raise typer.Exit(130) from None


class _Bars:
    """A bar of all steps, and a line for each epoch that is over."""

    def __init__(self, recipe: Recipe) -> None:
        self._bar = Bar(f"epoch 1/{recipe.epochs}", transient=True)
        self._epochs = 0

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def show(self, progress: Progress) -> None:
        """One step further."""
        for epoch in progress.history[self._epochs :]:
            out.print(_line(epoch, progress.epochs, best=epoch.number == progress.best_epoch))
        self._epochs = len(progress.history)
        rest = "validating" if progress.validating else f"loss {progress.losses.get('loss', 0.0):.3f}"
        if progress.eta_s is not None:
            rest += f", {_minutes(progress.eta_s)} to go"
        done = len(progress.history) * progress.steps + progress.step
        what = f"epoch {progress.epoch}/{progress.epochs}"
        self._bar.show(done, progress.epochs * progress.steps, rest=rest, what=what)


def _line(epoch: Epoch, epochs: int, *, best: bool) -> str:
    parts = [f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}", f"loss {epoch.losses['loss']:.3f}"]
    if epoch.metrics is not None:
        for key, name in (("ap", "mAP"), ("ap50", "mAP50"), ("ar", "mAR")):
            value = epoch.metrics.get(key)
            parts.append(f"{name} {'–' if value is None else f'{value:.3f}'}")
    parts.append(f"{epoch.seconds:.0f} s")
    return "  ".join(parts) + ("  best" if best else "")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _finish(trained: Trained, target: Path, learned: DataSet, judged: DataSet | None) -> None:
    from spica.training.outputs import paths, write

    counts = _counts(trained, judged) if judged is not None else None
    write(trained, target, data=learned, valid=judged, counts=counts)
    shutil.rmtree(_work_of(target), ignore_errors=True)
    for text in trained.notes:
        note(text)
    metrics = trained.metrics or {}
    shown = [f"{name} {metrics[key]:.3f}" for key, name in (("ap", "mAP"), ("ap50", "mAP50")) if metrics.get(key)]
    if counts is not None and counts.r2 is not None:
        shown.append(f"counting R² {counts.r2:.2f}, bias {counts.bias:+.1f} an image")
    out.print(
        f"Wrote {escape(str(target))}: epoch {trained.best_epoch} of {len(trained.history)}"
        + (", " + ", ".join(shown) if shown else "")
        + f"; {_minutes(trained.seconds)}."
    )
    beside = [path.name for path in paths(target)[1:] if path.exists()]
    out.print(f"Beside it: {escape(', '.join(beside))}")
    labels = "" if target.suffix.lower() == ".safetensors" else f" --labels {escape(','.join(trained.classes))}"
    out.print(f"Use it: spica up PHOTOS --weights {escape(str(target))}{labels}")


def _counts(trained: Trained, judged: DataSet) -> Counting:
    """Objects an image as the weights see them."""
    from spica.evaluation.counting import count
    from spica.training.detection import detect_with

    with working("Counting objects …"):
        found = detect_with(trained.weights, judged)
    return count([example.truth for example in judged.examples], found, settings_with().threshold)

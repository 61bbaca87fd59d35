"""Options that several commands share. Default None means: from the environment, else the setting's default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spica.settings import Precision, help_for

Weights = Annotated[
    Path,
    typer.Option(
        "--weights",
        "--weight",
        help="Weights file: a state_dict of a detection network of torchvision's or Spica's (.pth, .safetensors), an "
        "ONNX export of YOLO, RT-DETR, D-FINE or RF-DETR, or what Spica wrote (.onnx, .xml, a version's folder).",
        show_default=False,
    ),
]
Threshold = Annotated[float | None, typer.Option(min=0, max=1, help=help_for("threshold"), show_default="0.6")]
Eps = Annotated[float | None, typer.Option("--norm-eps", min=0, help=help_for("norm_eps"), show_default="0")]
MaxDetections = Annotated[int | None, typer.Option(min=1, help=help_for("max_detections"), show_default="1000")]
ChosenPrecision = Annotated[
    Precision | None, typer.Option("--precision", help=help_for("precision"), show_default="auto")
]
Tile = Annotated[
    str | None, typer.Option("--tile", metavar="off|auto|PIXELS", help=help_for("tile"), show_default="off")
]
Overlap = Annotated[
    float | None, typer.Option("--overlap", min=0, max=0.5, help=help_for("overlap"), show_default="0.2")
]
Host = Annotated[str | None, typer.Option(help=help_for("host"), show_default="127.0.0.1")]
Expose = Annotated[bool, typer.Option("--expose", help="Allow a --host that other machines can reach.")]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help=help_for("allowed_hosts") + " May be given several times.", show_default=False),
]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help=help_for("port"), show_default="8080")]
ModelPort = Annotated[int | None, typer.Option(min=0, max=65535, help=help_for("model_port"), show_default="8010")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Stop when every task has a prediction, say how many; fail if one has none."),
]
Url = Annotated[str | None, typer.Option(help=help_for("label_studio_url"), show_default="http://127.0.0.1:8080")]
Token = Annotated[str | None, typer.Option(help=help_for("label_studio_api_key"), show_default=False)]
LabelStudioDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Data folder of `spica up`, to take Label Studio's token from.", show_default=False
    ),
]
ProjectNumber = Annotated[int, typer.Option("--project", min=1, help="The project's number, as in its address.")]
BasicAuth = Annotated[str | None, typer.Option(help=help_for("basic_auth"), show_default=False)]
ModelUrl = Annotated[
    str | None, typer.Option("--model-url", help="Address of the model server.", show_default="http://127.0.0.1:8010")
]
JobWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "--weight",
        help="Without a server: predict in this process, with these weights.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(help="Write each failed task with its reason to this file, a JSON object a line.", show_default=False),
]
ServerAuth = Annotated[str | None, typer.Option("--basic-auth", help=help_for("basic_auth"), show_default=False)]
AnnotatedData = Annotated[
    Path | None,
    typer.Argument(
        help="A COCO json, a YOLO or Pascal VOC folder, or a JSON export of Label Studio.", show_default=False
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option("--allow-partial", help="Go on even if the labels of more than a tenth of the images are in doubt."),
]
NotesFile = Annotated[
    Path | None,
    typer.Option(
        "--notes",
        metavar="FILE",
        help="Write each image that is left out to this file, with the reason.",
        show_default=False,
    ),
]
AnnotatedProject = Annotated[
    int | None,
    typer.Option(
        "--project", min=1, help="The submitted annotations of this project of Label Studio.", show_default=False
    ),
]

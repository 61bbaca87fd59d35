"""What a weights file is, from its bytes, without torch and without running anything in it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spica.detectors.architecture import Norm, Recognised, recognise
from spica.detectors.checkpoint import read, read_safetensors
from spica.detectors.exported import open_exported
from spica.detectors.graph import data_files, read_graph, summarise
from spica.detectors.openvino import GRAPH_FORMAT
from spica.detectors.refusals import EXPECTED, FIRST_CHOICES, damaged, few, other_graph, shown, yolo_export
from spica.errors import WeightsError
from spica.files import sha256_file

logger = logging.getLogger(__name__)

Format = Literal["state_dict", "safetensors", "onnx", "openvino"]

_OUTPUTS = {"boxes", "labels", "scores"}


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """What a weights file is: found out once, and carried by whoever serves, trains or evaluates it.

    Attributes:
        path: the file, or the folder of a model version (:func:`spica.models.version.weights_info`).
        sha256: of the file's bytes, in hex; of an IR over both files, of a version over its files' digests.
        format: how the numbers are kept.
        architecture: torchvision's name, Spica's own, or what an exported graph says of itself.
        classes: names by class id, without the background; empty strings where the weights carry none.
        norm: the kind of batch norm the weights were trained with, None for exported graphs.
        nbytes: of all files together.
        input_size: in pixels the sides to which the shorter side of images is scaled, and which the longer one does not
            exceed, where the file says them; None for the network's own.
        source: the state_dict's file, which torch can load and train further; None for graphs alone.
    """

    path: Path
    sha256: str
    format: Format
    architecture: str
    classes: tuple[str, ...]
    norm: Norm | None
    nbytes: int
    input_size: tuple[int, int] | None = None
    source: Path | None = None

    @property
    def num_classes(self) -> int:
        """How many classes, without the background."""
        return len(self.classes)

    @property
    def needs_conversion(self) -> bool:
        """Whether torch is needed once before it can be served."""
        return self.format in ("state_dict", "safetensors")


def inspect(path: Path, architecture: str | None = None) -> WeightsInfo:
    """What the weights file is. Torch is not imported and nothing in the file is run.

    Two networks have the same keys and shapes (torchvision's ``fasterrcnn_mobilenet_v3_large_fpn`` for images of 800
    pixels and ``…_320_fpn`` for 320). Which one it is says, in this order, the file's own metadata
    (``spica.architecture`` in ``.safetensors``), ``architecture``, and the file's name if a network's full name is part
    of it; else it is the first, and the log says so.

    Args:
        path: the file.
        architecture: of a state_dict; one whose shapes differ is refused, and graphs don't need it.

    Raises:
        WeightsError: missing, empty, damaged, unsafe, or of a kind that is not served; each with its own message.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise WeightsError(
                "this is a folder, not a weights file",
                where=str(path),
                expected=f"{EXPECTED}; or the folder of a model version, with model.json in it",
                hint=_inside(path),
            )
        if not path.exists():
            raise WeightsError(
                "there is no such weights file",
                where=str(path),
                expected=EXPECTED,
                hint="check the path for typing errors",
            )
        if path.stat().st_size == 0:
            raise WeightsError(
                "this weights file is empty", where=str(path), expected=EXPECTED, got="0 bytes", hint="copy it again"
            )
        return _file(path, architecture)
    except OSError as error:
        raise WeightsError(
            "this weights file can't be read",
            where=str(path),
            got=f"{type(error).__name__}: {error.strerror}",
            hint="check that it is a plain file that you may read",
        ) from error


def _file(path: Path, architecture: str | None) -> WeightsInfo:
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _onnx(path)
    if suffix == ".xml":
        return _openvino(path)
    content = read(path)
    wanted = content.metadata.get("spica.architecture", architecture)
    network = recognise(content.shapes, wanted)
    if isinstance(network, str):
        raise WeightsError(
            "these are not the weights of a network that is served",
            where=str(path),
            expected=EXPECTED,
            got=shown(network, chars=600),
            hint=f"train {FIRST_CHOICES}, or give the weights of one",
        )
    if network.others and wanted is None:
        network = _by_name(path, network)
    classes = _class_names(content.metadata, path) or ("",) * network.num_classes
    if len(classes) != network.num_classes:
        raise damaged(path, f"{len(classes)} names for {network.num_classes} classes")
    return WeightsInfo(
        path,
        sha256_file(path),
        content.format,
        network.architecture,
        classes,
        network.norm,
        path.stat().st_size,
        input_size=_input_size(content.metadata, path),
        source=path,
    )


def _by_name(path: Path, network: Recognised) -> Recognised:
    """The one of several networks with the same shapes that the file's name names, else the first."""
    stem = path.stem.lower().replace("-", "_")
    alike = (network.architecture, *network.others)
    taken = next((name for name in alike if name in stem), network.architecture)
    others = tuple(name for name in alike if name != taken)
    logger.info(
        "%s fits %s alike; it is taken as %s. If that is wrong, say so with SPICA_ARCHITECTURE",
        path.name,
        " and ".join(alike),
        taken,
    )
    return replace(network, architecture=taken, others=others)


def trained_size(source: Path | None) -> tuple[int, int] | None:
    """``WeightsInfo.input_size`` of a version's weights, without a look at their numbers."""
    if source is None or source.suffix.lower() != ".safetensors":
        return None
    return _input_size(read_safetensors(source)[1], source)


def _input_size(metadata: Mapping[str, str], path: Path) -> tuple[int, int] | None:
    sides = _json(metadata, "spica.input_size", path)
    if sides is None:
        return None
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise damaged(path, "an input size that is not two numbers")
    least, most = sides
    if not 32 <= least <= most <= 8192:
        raise damaged(path, f"an input size of {least} to {most} pixels")
    return least, most


def _onnx(path: Path) -> WeightsInfo:
    model = read_graph(path)
    summary = summarise(model)
    if "spica.format" not in summary.metadata:
        return _exported(path, model)
    _check_format(path, summary.metadata)
    if data_files(path):
        raise other_graph(path, "a graph whose numbers are kept in other files")
    inputs, outputs = ([port.name for port in ports] for ports in (summary.inputs, summary.outputs))
    if inputs != ["image"] or set(outputs) != _OUTPUTS:
        raise other_graph(path, f"inputs {few(inputs)}, outputs {few(outputs)}")
    return _graph(path, "onnx", summary.metadata, (path,))


def _exported(path: Path, model: Any) -> WeightsInfo:
    """A network that another exporter wrote."""
    _, network = open_exported(path, model)
    return _info(path, "onnx", network.architecture, network.classes, (path, *data_files(path)))


def _openvino(path: Path) -> WeightsInfo:
    metadata = summarise(read_graph(path)).metadata
    _check_format(path, metadata)
    return _graph(path, "openvino", metadata, (path, path.with_suffix(".bin")))


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("spica.format")
    if version != GRAPH_FORMAT:
        raise other_graph(path, "no spica.format in its metadata" if version is None else f"spica.format {version}")


def _graph(path: Path, kind: Format, metadata: Mapping[str, str], files: tuple[Path, ...]) -> WeightsInfo:
    classes = _class_names(metadata, path)
    if not classes:
        raise other_graph(path, "no class names in its metadata")
    return _info(path, kind, shown(metadata.get("spica.architecture", "unknown")), classes, files)


def _info(
    path: Path, kind: Format, architecture: str, classes: tuple[str, ...], files: tuple[Path, ...]
) -> WeightsInfo:
    digest = joined([sha256_file(file) for file in files])
    return WeightsInfo(path, digest, kind, architecture, classes, None, sum(file.stat().st_size for file in files))


def _inside(folder: Path) -> str:
    """Which file of a folder to give."""
    if any(folder.glob("*.onnx")) or not any(folder.glob("*.xml")):
        return "give the file inside it"
    return f"OpenVINO exports of others are not served; for YOLO: {yolo_export(folder)}"


def _class_names(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    names = _json(metadata, "spica.classes", path)
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(path, "class names that are no list of texts")
    return tuple(names)


def _json(metadata: Mapping[str, str], key: str, path: Path) -> object:
    """A value that is written as JSON; None if it is missing."""
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{key} that is no JSON") from error


def joined(digests: list[str]) -> str:
    """One digest for several files, of their digests in this order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()

"""State dicts in files: names and shapes of their tensors, read without torch and without running anything.

``torch.save`` writes a zip archive, and before torch 1.6 a row of pickles. A pickle is a program: it is followed on
plain data only, and where it asks to import or to call something, that is noted and not done.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from spica.detectors.refusals import EXPECTED, SAVE_STATE_DICT, bomb, damaged, few, shown, yolo_export
from spica.errors import WeightsError

Shape = tuple[int, ...]
Format = Literal["state_dict", "safetensors"]
T = TypeVar("T")

MAX_OPERATIONS = 1_000_000
"""Of a pickle. A state_dict of Faster R-CNN takes 13,000."""

MAX_PICKLE_BYTES = 16 * 2**20
"""Of the pickle beside the numbers; 50 KB for a Faster R-CNN."""

MAX_MEMBERS = 20_000
"""Files in the archive; torch writes one for each tensor, 350 for a Faster R-CNN."""

_MAX_DIRECTORY_BYTES = 200 * MAX_MEMBERS
_MAX_DIMENSIONS = 8
_MAX_COUNT = 2**40
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER

_OTHER_KINDS = (
    (b"\x89HDF", "an HDF5 file (Keras?)"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: the download gave a page instead of the file"),
    (b"<!doctype", "a web page: the download gave a page instead of the file"),
    (b"<html", "a web page: the download gave a page instead of the file"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"%PDF", "a PDF"),
)
"""First bytes of what people give by mistake."""

_ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
"""torch's kinds of storage and their bytes per number."""

ALLOWED_BESIDE_TENSORS = (
    "argparse.Namespace",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
)
"""What training scripts keep beside the weights (torchvision's own keeps its arguments) and can run nothing, though
torch's loader for weights alone refuses it unless it is named."""

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_HARMLESS = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
        *(f"{home}.{kind}" for home in ("builtins", "__builtin__") for kind in ("set", "bytearray", "complex")),
        *(f"torch.{kind}" for kind in ("Size", "device", "Tensor", "storage.UntypedStorage", *_ITEM_BYTES, *_DTYPES)),
        *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter", "parameter_with_state")),
        *("torch.nn.parameter.Parameter", "torch.serialization._get_layout", *ALLOWED_BESIDE_TENSORS),
    }
)
"""What torch's own loader for weights alone allows that checkpoints of detectors have, and ours beside it."""

_RUNS_CODE = frozenset(
    {
        *("os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "pty", "ctypes", "code"),
        *("webbrowser", "commands", "multiprocessing"),
        *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__"),
        *("__builtin__.eval", "__builtin__.exec", "__builtin__.execfile"),
    }
)
"""Modules and functions that no weights need; naming them makes the message plainer, nothing more."""

_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "weights", "model_ema")
"""Under these keys training scripts keep the state_dict beside the optimizer's state; the first of them counts."""

_MOST_PREFIXES = 4
"""Lightning around an average of the weights around DataParallel around a compiled model."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """What a file holds.

    Attributes:
        format: how the numbers are kept.
        shapes: by key, as :func:`find_state_dict` names them.
        metadata: texts of a ``.safetensors`` file by key.
    """

    format: Format
    shapes: dict[str, Shape]
    metadata: dict[str, str]


def read(path: Path) -> StateDict:
    """The state_dict in a file that is not empty.

    Raises:
        WeightsError: damaged, unsafe, or of a kind that is not known; each with its own message.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        start = file.read(64)
    length = int.from_bytes(start[:8], "little")
    if path.suffix.lower() == ".safetensors" or (start[8:9] == b"{" and length < path.stat().st_size):
        shapes, metadata = read_safetensors(path)
        named = find_state_dict(shapes, is_tensor=lambda shape: isinstance(shape, tuple)) or {}
        return StateDict("safetensors", named, metadata)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        tensors = _read_zip(path) if start[:2] == b"PK" else _read_legacy(path)
        return StateDict("state_dict", {key: tensor.shape for key, tensor in tensors.items()}, {})
    other = f"bytes that begin with {start[:8]!r}"
    kind = next((kind for magic, kind in _OTHER_KINDS if start.startswith(magic)), other)
    raise WeightsError("this is no weights file that is known here", where=str(path), expected=EXPECTED, got=kind)


def read_safetensors(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes by key and the metadata of a ``.safetensors`` file.

    Raises:
        WeightsError: damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
            return shapes, dict(file.metadata() or {})
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def find_state_dict(content: object, *, is_tensor: Callable[[object], bool]) -> dict[str, Any] | None:
    """The state_dict in what a file holds: itself, or under a training script's usual keys, without prefixes.

    Keys of torchvision before 0.13 get their present names. None if there is no dict of tensors.
    """
    if not isinstance(content, Mapping):
        return None
    key = _wrapper(content, is_inner=lambda inner: _is_state_dict(inner, is_tensor))
    content = content if key is None else content[key]
    if not content or not all(isinstance(key, str) and is_tensor(value) for key, value in content.items()):
        return None
    plain = _without_prefixes(dict(content))
    fcos = any("bbox_ctrness" in key for key in plain)
    return {_present_name(key, fcos=fcos): value for key, value in plain.items()}


def _wrapper(content: Mapping[Any, Any], *, is_inner: Callable[[object], bool]) -> str | None:
    """The usual key under which a training script keeps what is looked for."""
    return next((key for key in _WRAPPERS if is_inner(content.get(key))), None)


def _is_state_dict(inner: object, is_tensor: Callable[[object], bool]) -> bool:
    return isinstance(inner, Mapping) and bool(inner) and all(is_tensor(value) for value in inner.values())


def _without_prefixes(state_dict: dict[str, T]) -> dict[str, T]:
    """Keys without the parts that all of them begin with.

    A detector's own keys begin with at least two different parts (``backbone`` and ``head``); what is common was put
    before them by DataParallel, ``torch.compile``, ``AveragedModel`` or a Lightning module's attribute.
    """
    for _ in range(_MOST_PREFIXES):
        inner = {key: value for key, value in state_dict.items() if key != "n_averaged"}  # AveragedModel's counter
        firsts = {key.partition(".")[0] for key in inner}
        if len(firsts) != 1 or any(key.count(".") < 2 for key in inner):  # fc.weight has no prefix
            break
        start = len(firsts.pop()) + 1
        state_dict = {key[start:]: value for key, value in inner.items()}
    return state_dict


def _present_name(key: str, *, fcos: bool) -> str:
    """The key since torchvision 0.13, which wrapped convolutions of the FPN and of the heads into blocks."""
    parts = key.split(".")
    if parts[:2] == ["backbone", "fpn"] and parts[2] in ("inner_blocks", "layer_blocks") and len(parts) == 5:
        return ".".join([*parts[:4], "0", parts[4]])
    if key.startswith("rpn.head.conv.") and len(parts) == 4:  # rpn.head.conv.weight
        return ".".join([*parts[:3], "0", "0", parts[3]])
    if len(parts) == 5 and parts[0] == "head" and parts[2] == "conv" and parts[3].isdigit() and not fcos:
        # RetinaNet's head.….conv.2.weight: every other layer was a ReLU. FCOS has such keys to this day
        return ".".join([*parts[:3], str(int(parts[3]) // 2), "0", parts[4]])
    return key


# --- the archive


def _read_zip(path: Path) -> dict[str, _Tensor]:
    """Tensors by key of a file written by torch 1.6 or later."""
    with path.open("rb") as file:
        try:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # before anything reads the directory
            if end is not None and end[5] > _MAX_DIRECTORY_BYTES:
                raise bomb(path, f"a directory of {end[5]} bytes")
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), path)
                pickled, prefix = _pickle_of(archive, path)
                sizes = {info.filename: info.file_size for info in archive.infolist()}
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, struct.error, ValueError) as error:
            raise damaged(path, str(error)) from error
    tensors = _state_dict(_follow(io.BytesIO(pickled), path), path)
    for storage in _storages(tensors):
        name = f"{prefix}data/{storage.key}"
        if sizes.get(name) != storage.nbytes:
            raise damaged(path, f"{name} has {sizes.get(name, 0)} bytes, not {storage.nbytes}")
    return tensors


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuse an archive that is larger unpacked than packed; torch stores its files as they are."""
    if len(members) > MAX_MEMBERS:
        raise bomb(path, f"{len(members)} files in the archive")
    packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size]
    if packed:
        largest = max(packed, key=lambda member: member.file_size)
        raise bomb(path, f"{largest.filename}, {largest.compress_size} bytes that become {largest.file_size}")
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > size:
        raise bomb(path, f"files that overlap: {total} bytes in a file of {size}")


def _pickle_of(archive: zipfile.ZipFile, path: Path) -> tuple[bytes, str]:
    """The pickle in the archive, and the folder in which it lies there."""
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") <= 1 and name.endswith("data.pkl")]
    if not pickles:
        raise WeightsError(
            "a zip archive, but not one that torch.save writes",
            where=str(path),
            expected=EXPECTED,
            got=few(names) or "an empty archive",
            hint="if the weights are inside, unpack them first",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in names:
        raise WeightsError(
            "this is a TorchScript archive, which holds code; nothing of it was run",
            where=str(path),
            expected=EXPECTED,
            hint=SAVE_STATE_DICT,
        )
    info = archive.getinfo(pickles[0])
    if info.file_size > MAX_PICKLE_BYTES:
        raise bomb(path, f"a pickle of {info.file_size} bytes")
    return archive.read(info), prefix


def _read_legacy(path: Path) -> dict[str, _Tensor]:
    """Tensors by key of a file written before torch 1.6: magic number, protocol, system, object, storage keys (a
    pickle each), then the numbers of each storage behind their count.
    """
    with path.open("rb") as file:
        start = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if _follow(start, path) != _LEGACY_MAGIC:
        raise WeightsError(
            "a pickle, but not one that torch.save writes", where=str(path), expected=EXPECTED, hint=SAVE_STATE_DICT
        )
    for _ in ("protocol version", "system"):
        _follow(start, path)
    tensors = _state_dict(_follow(start, path), path)
    _follow(start, path)
    needed = start.tell() + sum(8 + storage.nbytes for storage in _storages(tensors))
    if path.stat().st_size < needed:
        raise damaged(path, f"{path.stat().st_size} bytes of {needed}")
    return tensors


# --- the pickle


@dataclass(frozen=True, slots=True)
class _Storage:
    """A run of numbers outside the pickle: ``count`` numbers of ``item_bytes`` bytes, kept under ``key``."""

    key: str
    count: int
    item_bytes: int

    @property
    def nbytes(self) -> int:
        return self.count * self.item_bytes


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: Shape
    storage: _Storage


class _Object:
    """Something that the pickle would have made by a call."""


@dataclass(frozen=True, slots=True)
class _Import:
    """Something that the pickle asks to import. Called, it makes what matters of a state_dict, else an _Object."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def __call__(self, *arguments: Any) -> object:
        make = _MAKERS.get(str(self))
        made = make(*arguments) if make is not None else None
        return _Object() if made is None else made


def _tensor(storage: object = None, _: object = None, size: object = None, *_more: object) -> _Tensor | None:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or len(size) > _MAX_DIMENSIONS:
        return None
    if not all(isinstance(side, int) and 0 <= side <= storage.count for side in size):
        return None
    return _Tensor(size, storage) if math.prod(size) <= storage.count else None


_MAKERS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": lambda *pairs: None if pairs else {},  # it is filled like a dict
    "torch.Size": lambda sides=None, *_: sides if isinstance(sides, tuple) else None,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data=None, *_: data if isinstance(data, _Tensor) else None,
}


_PythonUnpickler: Any = pickle._Unpickler  # the one in Python, whose steps can be replaced


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]  # of type Any: what it has is not in its stubs
    """Follows a pickle on plain data: nothing real that could be called is ever in its hands.

    Replaced are the steps that would import, hash what a stranger made (a deep tuple takes for ever), set an object's
    state, or take memory on the pickle's word.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin-1")
        self.imports: dict[_Import, None] = {}
        self.operations = 0

    def find_class(self, module: str, name: str) -> Any:
        wanted = _Import(module, name)
        self.imports[wanted] = None
        return wanted

    def persistent_load(self, pid: Any) -> object:
        """The numbers of a tensor, which torch keeps outside the pickle."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            kind, key, count = pid[1], pid[2], pid[4]
            item_bytes = _ITEM_BYTES.get(kind.name) if isinstance(kind, _Import) else None
            if item_bytes and isinstance(key, str) and isinstance(count, int) and 0 <= count <= _MAX_COUNT:
                return _Storage(key, count, item_bytes)
        return _Object()

    def _fill(self, items: list[Any]) -> None:
        """Put items into the list or dict on top of the stack; an object of somebody's takes none."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # other keys never matter here
                target[key if isinstance(key, str | int | bytes | float) else id(key)] = value

    def load_append(self) -> None:
        self._fill([self.stack.pop()])

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_appends(self) -> None:
        self._fill(self.pop_mark())

    load_setitems = load_additems = load_appends

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def load_empty_set(self) -> None:
        self.stack.append([])

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # which takes another stack
        self.stack.append(items)

    def load_bytearray8(self) -> None:
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_build(self) -> None:
        self.stack.pop()

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_ext1(self) -> None:
        raise pickle.UnpicklingError("an instruction that no weights file has")

    load_ext2 = load_ext4 = load_next_buffer = load_readonly_buffer = load_ext1


def _counted(step: Callable[[_Unpickler], None]) -> Callable[[_Unpickler], None]:
    def follow(unpickler: _Unpickler) -> None:
        unpickler.operations += 1
        if unpickler.operations > MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"more than {MAX_OPERATIONS} instructions")
        step(unpickler)

    return follow


_Unpickler.dispatch = {code: _counted(getattr(_Unpickler, step.__name__)) for code, step in _Unpickler.dispatch.items()}


_DAMAGE = (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError)
"""What following a pickle may end with that no pickler wrote; struct.error too."""


def _follow(file: BinaryIO, path: Path) -> object:
    """What one pickle says, of dicts, lists, tuples, scalars, tensors, imports and objects; from the file's position
    to just behind its end.

    Raises:
        WeightsError: damaged, or it asks for more than tensors and dicts; nothing of it was run.
    """
    unpickler = _Unpickler(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about odd escapes in old text instructions
            value: object = unpickler.load()
    except (*_DAMAGE, struct.error) as error:
        raise damaged(path, f"its pickle: {str(error) or type(error).__name__}") from error
    _refuse_code(unpickler.imports, value, path)
    return value


def _state_dict(value: object, path: Path) -> dict[str, _Tensor]:
    state_dict = find_state_dict(value, is_tensor=lambda item: isinstance(item, _Tensor))
    if state_dict is not None:
        return state_dict
    got = "a single tensor" if isinstance(value, _Tensor) else f"a {type(value).__name__.lstrip('_').lower()}"
    if isinstance(value, dict):
        keys = [key if isinstance(key, str) else f"a {type(key).__name__}" for key in value]
        got = f"a dict with the keys {few(keys)}" if keys else "an empty dict"
    raise WeightsError(
        "this file holds no state_dict", where=str(path), expected=EXPECTED, got=got, hint=SAVE_STATE_DICT
    )


def _storages(tensors: dict[str, _Tensor]) -> Iterable[_Storage]:
    return {tensor.storage.key: tensor.storage for tensor in tensors.values()}.values()


def _refuse_code(imports: Iterable[_Import], value: object, path: Path) -> None:
    """Raise unless a pickle asks for nothing but tensors and dicts, with what it asks for."""
    unknown = [wanted for wanted in imports if str(wanted) not in _HARMLESS]
    if not unknown:
        return
    code = [wanted for wanted in unknown if {wanted.module.partition(".")[0], str(wanted)} & _RUNS_CODE]
    what, hint = "this file asks for more than tensors, which could run code when loaded", _how_to_save(value, path)
    if code:
        what = "this file would run code when loaded"
        hint = "don't load it with anything else either; get the weights from a source you trust"
    elif any(wanted.module.startswith(("ultralytics", "models.yolo")) for wanted in unknown):
        what, hint = "this is a model of Ultralytics YOLO, which is served as its ONNX export", yolo_export(path)
    elif any(wanted.module.startswith(("torch.nn", "torchvision.")) for wanted in unknown):
        what = "this is a whole pickled model, which could run code when loaded"
    raise WeightsError(
        f"{what}; nothing of it was run",
        where=str(path),
        expected=EXPECTED,
        got=f"a pickle that asks for {few([str(wanted) for wanted in code or unknown])}",
        hint=hint,
    )


def _how_to_save(value: object, path: Path) -> str:
    """The line that makes a file of the numbers alone, where what is in this one says where they are."""
    place = ".state_dict()" if isinstance(value, _Object) else None
    if isinstance(value, dict):
        tensors = _wrapper(value, is_inner=lambda inner: _is_state_dict(inner, lambda item: isinstance(item, _Tensor)))
        model = _wrapper(value, is_inner=lambda inner: isinstance(inner, _Object))
        if tensors is not None or model is not None:
            place = f"['{tensors}']" if tensors is not None else f"['{model}'].state_dict()"
    if place is None:
        return SAVE_STATE_DICT
    source, target = (
        shown(name).replace("'", "?").replace('"', "?") for name in (path.name, f"{path.stem}-weights.pth")
    )
    return (
        "if you trust where it comes from, for this runs what is in it, save the numbers alone where the program that "
        f"made it is installed: python -c \"import torch; torch.save(torch.load('{source}', map_location='cpu', "
        f"weights_only=False){place}, '{target}')\"; then give {target}"
    )

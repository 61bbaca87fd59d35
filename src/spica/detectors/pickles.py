"""What a pickle says, without doing it.

A pickle is a program. :func:`read` follows its instructions on plain data only: where the program asks to import or to
call something, that is written down (:class:`Global`, :class:`Call`) and nothing else happens. So a hostile file can be
named for what it is, and the shapes of a state_dict can be told without torch.
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_OPERATIONS = 1_000_000
"""A state_dict of Faster R-CNN takes 13,000; beyond this a pickle is not read on."""


class DamagedPickleError(ValueError):
    """Not a whole, sound pickle."""


@dataclass(frozen=True, slots=True)
class Global:
    """Something that the pickle asks to import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Something that the pickle asks to call; it was not called."""

    function: object
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class External:
    """Something that is kept outside the pickle under ``pid``, as torch keeps the numbers of its tensors."""

    pid: object


@dataclass(slots=True)
class Reading:
    """What a pickle says.

    Attributes:
        value: the object it describes, of dicts, lists, tuples, scalars, :class:`Global`, :class:`Call` and
            :class:`External`.
        imports: all that it asks to import, in order, each once.
    """

    value: object
    imports: list[Global]


def read(file: BinaryIO) -> Reading:
    """Follow one pickle from the file's position to just behind its end.

    Raises:
        DamagedPickleError: cut off, nonsense, or longer than ``MAX_OPERATIONS``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pickletools, about odd escapes in old text opcodes
        return _follow(file)


def _follow(file: BinaryIO) -> Reading:
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPERATIONS:
                raise DamagedPickleError(f"more than {MAX_OPERATIONS} instructions")
            if opcode.name == "STOP":
                return Reading(machine.stack[-1], list(machine.imports))
            machine.follow(opcode.name, argument)
    except DamagedPickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise DamagedPickleError(str(error) or type(error).__name__) from error
    raise DamagedPickleError("it ends before its end mark")


@dataclass(slots=True)
class _Machine:
    """The pickle machine of the standard library's ``pickle.py``, its imports and calls replaced by notes."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    imports: dict[Global, None] = field(default_factory=dict)

    def follow(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        else:
            handler = _HANDLERS.get(name)
            if handler is None:
                raise DamagedPickleError(f"an instruction {name} that no weights file has")
            handler(self, argument)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise DamagedPickleError("it takes more than it has put down")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def push(self, item: Any) -> None:
        self.stack.append(item)

    def wanted(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickleError("it imports something that is no name")
        wanted = Global(module, name)
        self.imports[wanted] = None
        return wanted

    def call(self, function: object, arguments: object) -> None:
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        # an OrderedDict is made by a call, then filled like a dict
        empty = isinstance(function, Global) and str(function) == "collections.OrderedDict" and not given
        self.push({} if empty else Call(function, given))

    def set_items(self, target: object, flat: list[Any]) -> None:
        if isinstance(target, dict):
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                # other keys never matter here, and hashing a deep tuple could take for ever
                target[key if isinstance(key, str | int | bytes | float) else id(key)] = value


def _mark(machine: _Machine, _: Any) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _drop(machine: _Machine, _: Any) -> None:
    machine.pop(1)


def _drop_since_mark(machine: _Machine, _: Any) -> None:
    machine.since_mark()


def _dict(machine: _Machine, _: Any) -> None:
    made: dict[Any, Any] = {}
    items = machine.since_mark()
    machine.set_items(made, items)
    machine.push(made)


def _append(machine: _Machine, _: Any) -> None:
    (item,) = machine.pop(1)
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].append(item)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(items)


def _set_item(machine: _Machine, _: Any) -> None:
    machine.set_items(machine.stack[-3], list(machine.pop(2)))


def _set_items(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    machine.set_items(machine.stack[-1], items)


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.push(machine.wanted(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.pop(2)
    machine.push(machine.wanted(module, name))


def _instance(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.call(machine.wanted(module, name), tuple(machine.since_mark()))


def _object(machine: _Machine, _: Any) -> None:
    made, *arguments = machine.since_mark()
    machine.call(made, tuple(arguments))


def _reduce(machine: _Machine, _: Any) -> None:
    machine.call(*machine.pop(2))


def _new_object_with_names(machine: _Machine, _: Any) -> None:
    made, arguments, _names = machine.pop(3)
    machine.call(made, arguments)


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put(machine: _Machine, argument: int) -> None:
    machine.memo[argument] = machine.stack[-1]


def _extension(machine: _Machine, argument: int) -> None:
    machine.push(machine.wanted("copyreg.extension", str(argument)))


_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
"""Instructions that put down the value they carry."""

_MADE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
"""Instructions that put down a value of their own; sets become lists."""

_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "BUILD": _drop,
    "POP": _drop,
    "POP_MARK": _drop_since_mark,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "MARK": _mark,
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_object_with_names,
    "REDUCE": _reduce,
    "PERSID": lambda machine, pid: machine.push(External(pid)),
    "BINPERSID": lambda machine, _: machine.push(External(*machine.pop(1))),
    "MEMOIZE": _memoize,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "GET": lambda machine, index: machine.push(machine.memo[index]),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "EXT1": _extension,
    "EXT2": _extension,
    "EXT4": _extension,
}

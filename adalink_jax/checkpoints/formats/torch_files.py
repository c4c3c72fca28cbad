"""State dicts that PyTorch wrote before version 1.6, read without PyTorch.

Such a file is a row of pickles, then the contents of the storages. A pickle is a program; here it
is not run. Its instructions are read one by one, and those that a state dict does not need are
errors, so a file from anybody can do nothing but name arrays.

Source of the format: torch/serialization.py (_legacy_save) and pickletools.
"""

import collections
import dataclasses
import io
import pathlib
import pickletools
from collections.abc import Iterator
from typing import Any

import numpy as np

from adalink_jax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

# Instructions that put their own argument on the stack.
_VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclasses.dataclass(frozen=True)
class _Name:
    """Something that the file calls by its name."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dict by their names.

    Args:
      path: the file.

    Raises:
      UserError: the file cannot be read, or is no such state dict.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    stream = io.BytesIO(content)
    try:
        magic, protocol, _, tree, keys = (_unpickled(stream) for _ in range(5))
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise ValueError("another format")
        dtypes = {tensor.key: tensor.dtype for tensor in tree.values()}
        storages = {}
        for key in keys:
            size = int.from_bytes(stream.read(8), "little")
            held = stream.read(size * dtypes[key].itemsize)
            storages[key] = np.frombuffer(held, dtypes[key], size)
        arrays = {name: _array(tensor, storages[tensor.key]) for name, tensor in tree.items()}
        if stream.read(1):
            raise ValueError("more than the arrays")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no state dict that is known here, or damaged") from error
    return arrays


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    steps = [(size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True)]
    if min([tensor.offset, *steps]) < 0 or tensor.offset + sum(steps) >= storage.size:
        raise ValueError("an array outside its storage, or an empty one")
    strides = [step * storage.itemsize for step in tensor.stride]
    part = storage[tensor.offset :]
    return np.lib.stride_tricks.as_strided(part, tensor.shape, strides, writeable=False)


def _unpickled(stream: io.BytesIO) -> Any:
    """Reads one pickle and returns what it describes.

    Raises:
      ValueError: it has an instruction that a state dict does not need.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for instruction, argument, _ in pickletools.genops(stream):
        name = instruction.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(str(argument)))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(_above_mark(stack)))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("SETITEM", "SETITEMS"):
            items = stack[-2:] if name == "SETITEM" else _above_mark(stack)
            if name == "SETITEM":
                del stack[-2:]
            stack[-1].update(_pairs(items))
        elif name == "APPENDS":
            items = _above_mark(stack)
            stack[-1].extend(items)
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _made(stack[-1], arguments)
        elif name == "BUILD":
            stack.pop()  # A state dict's metadata.
        elif name == "STOP":
            (result,) = stack
            return result
        elif name not in ("PROTO", "BINPERSID"):
            raise ValueError(name)
    raise ValueError("no end")


def _above_mark(stack: list[Any]) -> list[Any]:
    """Removes what lies above the last mark, and the mark; returns what lay there."""
    mark = max(i for i, item in enumerate(stack) if item is _MARK)
    items = stack[mark + 1 :]
    del stack[mark:]
    return items


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _made(function: _Name, arguments: tuple[Any, ...]) -> Any:
    """Returns what a call would make. A storage is the tuple that names it."""
    if function.text == "collections OrderedDict":
        return collections.OrderedDict()
    if function.text != "torch._utils _rebuild_tensor_v2":
        raise ValueError(function.text)
    storage, offset, shape, stride, *_ = arguments
    _, storage_class, key, *_ = storage
    return _Tensor(key, _DTYPES[storage_class.text.removeprefix("torch ")], offset, shape, stride)

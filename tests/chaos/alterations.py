"""Alterations of bytes, JSON and safetensors files, drawn by hypothesis."""

import copy
import json

from hypothesis import strategies as st

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from(
            [0, 1, -1, 2**28 - 1, 2**63, 10**30, 10**400, 1e308, float("nan"), float("inf")]
        ),
        st.text(max_size=6),
        st.sampled_from(["adalink", "lora", "full", "encoder", "float32", "F16", "a\nb", "\ud800"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def altered_bytes(draw, content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    put = draw(st.binary(max_size=9))
    cut = draw(st.sampled_from([0, 0, 1, 2, 8, 64, len(content)]))
    return content[:place] + put + content[place + cut :]


def altered_json(draw, value):
    """The value with something in it replaced, dropped or added."""
    value = copy.deepcopy(value)
    holder = value
    while True:
        keys = list(holder if isinstance(holder, dict) else range(len(holder)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
            holder = inner
            continue
        match draw(st.integers(0, 3)):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = inner
            case _:
                holder[key] = draw(VALUES)
        break
    return value


def altered_tensors(draw, content: bytes) -> bytes:
    """A safetensors file whose header lies, or is no header."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = draw(st.sampled_from(["length", "header", "dtype", "bytes", "data"]))
    if kind == "bytes":
        return altered_bytes(draw, content)
    if kind == "data":
        return content[: 8 + length] + altered_bytes(draw, data)
    if kind == "dtype":
        for entry in header.values():
            entry["dtype"] = draw(st.sampled_from(["F32", "I32", "U32", "F16", "BF16", "F64"]))
    if kind == "header":
        header = altered_json(draw, header)
    text = json.dumps(header).encode()
    said = len(text)
    if kind == "length":
        said = draw(st.sampled_from([0, 1, said - 1, said + 1, 2**31, 2**63, 2**64 - 1]))
    return said.to_bytes(8, "little") + text + data

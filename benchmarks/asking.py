"""HTTP as the benchmarks speak it: a request in one write, an answer of known length.

A client library would need more of the cores that it shares with the server than the requests do.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any


def message(path: str, about: Mapping[str, Any]) -> bytes:
    """Returns a POST request whose body is JSON."""
    body = json.dumps(about).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answered(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> int:
    """Sends a request; returns the status of its answer, once the whole answer is there."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return int(head.split()[1])

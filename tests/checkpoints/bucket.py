"""A Google Cloud Storage that serves a folder: the part of its JSON API that reading asks."""

import contextlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

PAGE = 7  # Objects in one answer to a listing; the real one gives a thousand.


class _Handler(http.server.BaseHTTPRequestHandler):
    folder: pathlib.Path
    bucket: str
    asked: list[tuple[str, str | None]]

    def log_message(self, *arguments):
        """Says nothing."""

    def do_GET(self):  # noqa: N802
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        objects = f"/storage/v1/b/{self.bucket}/o"
        if url.path == objects:
            return self._list(query)
        if url.path.startswith(f"{objects}/"):
            name = urllib.parse.unquote(url.path.removeprefix(f"{objects}/"))
            return self._read(name) if query.get("alt") == "media" else self._describe(name)
        self._answer(404, b"{}")

    def _list(self, query):
        names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        )
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        end = query.get("endOffset", "")
        names = [name for name in names if name >= first and (not end or name < end)]
        found = {"items": [{"name": name} for name in names[:PAGE]]}
        if len(names) > PAGE:
            found["nextPageToken"] = names[PAGE]
        self._answer(200, json.dumps(found).encode())

    def _describe(self, name):
        path = self.folder / name
        if not path.is_file():
            return self._answer(404, b"{}")
        size = str(path.stat().st_size)
        described = {"name": name, "size": size, "generation": "1", "metageneration": "1"}
        self._answer(200, json.dumps(described).encode())

    def _read(self, name):
        self.asked.append((name, self.headers.get("Range")))
        path = self.folder / name
        if not path.is_file():
            return self._answer(404, b"{}")
        content, code, extra = path.read_bytes(), 200, {}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), int(match[2] or len(content) - 1) + 1
            if start >= len(content):
                return self._answer(416, b"")
            extra = {"Content-Range": f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"}
            content, code = content[start:stop], 206
        self._answer(code, content, extra)

    def _answer(self, code, content, extra=()):
        self.send_response(code)
        headers = {"Content-Length": len(content), "x-goog-generation": "1", **dict(extra)}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def serve(folder: pathlib.Path, bucket: str) -> Iterator[tuple[str, list]]:
    """Yields the server's URL and the list of what is asked of it: (object, range)."""
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (_Handler,), {"folder": folder, "bucket": bucket, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()

"""Stand-ins for the Hugging Face Hub: a cache in a folder, and a server on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT, OLDER = "a" * 40, "b" * 40


def cache(hub: Path, name: str, files: Path, commit: str = COMMIT, revision: str = "main") -> Path:
    """Put a model into the cache ``hub`` as huggingface_hub does, and return the directory of the snapshot."""
    folder = hub / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    shutil.copytree(files, snapshot)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return snapshot


class _Handler(BaseHTTPRequestHandler):
    models: dict[str, Path]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.asked.append(f"{self.command} {path}")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        folder = self.models.get(name)
        if folder is None:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if "gated" in name:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if rest[:1] == ["revision"] and rest[1] not in {"main", COMMIT}:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [str(file.relative_to(folder)) for file in files]
        if api and rest[:1] == ["tree"]:
            rows = [
                {"type": "file", "path": one, "size": file.stat().st_size, "oid": _hash(file)}
                for one, file in zip(names, files, strict=True)
            ]
            return self._send(200, json.dumps(rows).encode(), {}, body)
        if api:
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": one} for one in names]}
            return self._send(200, json.dumps(info).encode(), {}, body)
        file = folder.joinpath(*rest[2:])  # NAME/resolve/COMMIT/FILE
        headers = {"ETag": f'"{_hash(file)}"', "X-Repo-Commit": COMMIT}
        return self._send(200, file.read_bytes(), headers, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve models by name, each with the one commit :data:`COMMIT`; give the address and the paths asked for."""
    handler = type("Handler", (_Handler,), {"models": models, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        server.server_close()

"""A stand-in of the Hugging Face Hub: so much of its HTTP interface as an upload and a download ask for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Repositories = dict[str, dict[str, bytes]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories
    large: dict[str, bytes]  # by SHA-256

    def log_message(self, *args: object) -> None:
        pass

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def answer(self, values: object = None, content: bytes | None = None, status: int = 200, **headers: str) -> None:
        content = json.dumps(values).encode() if content is None else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path).path.strip("/").split("/")
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo_id = f"{asked['organization']}/{asked['name']}"
                self.repositories.setdefault(repo_id, {})
                self.answer({"url": f"{self.address}/{repo_id}", "name": repo_id})
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.large[oid] = body
                self.answer({})
            case [owner, name, "info", "lfs", "objects", "batch"]:
                objects = json.loads(body)["objects"]
                uploads = [{**o, "actions": {"upload": {"href": f"{self.address}/lfs/{o['oid']}"}}} for o in objects]
                self.answer({"transfer": "basic", "objects": uploads})
            case ["api", "models", owner, name, *rest] if (
                files := self.repositories.get(f"{owner}/{name}")
            ) is not None:
                self.answer(self.about(files, f"{owner}/{name}", rest, body))
            case [owner, name, "resolve", sha, path] if path in (files := self.repositories.get(f"{owner}/{name}", {})):
                digest = hashlib.sha256(files[path]).hexdigest()
                self.answer(content=files[path], X_Repo_Commit=sha, ETag=f'"{digest}"')
            case _:
                self.answer({"error": "Not found"}, status=404, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def about(self, files: dict[str, bytes], repo_id: str, what: list[str], body: bytes) -> object:
        sha = hashlib.sha1(json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in files.items()}).encode()).hexdigest()
        match what:
            case ["preupload", _]:
                modes = {True: "lfs", False: "regular"}
                asked = [file["path"] for file in json.loads(body)["files"]]
                return {
                    "files": [
                        {"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False}
                        for p in asked
                    ]
                }
            case ["commit", _]:
                for line in body.splitlines():
                    part = json.loads(line)
                    if part["key"] == "file":
                        files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
                    elif part["key"] == "lfsFile":
                        files[part["value"]["path"]] = self.large[part["value"]["oid"]]
                return {"commitUrl": f"{self.address}/{repo_id}/commit/{sha}", "commitOid": sha}
            case ["tree", *_]:
                return [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
        return {"id": repo_id, "sha": sha, "siblings": [{"rfilename": name} for name in files]}


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Repositories]]:
    """The address of a hub, and what is on it."""
    handler = type("Hub", (Handler,), {"repositories": {}, "large": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.repositories
        finally:
            server.shutdown()
            thread.join()

"""A small Hugging Face hub on loopback: model info, listed files, downloads with Range, and what goes wrong with them.

It answers as huggingface.co does to `huggingface_hub`: the headers, status codes and X-Error-Code values are those of
https://huggingface.co/docs/hub/api and of `huggingface_hub.utils.hf_raise_for_status`. Small files are git blobs and
come directly; large ones (LFS) come by a redirect to another host name, as from the hub's content network.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf")


@dataclass(frozen=True)
class Blob:
    """A file: its bytes, the hash that names it, and the size the hub lists."""

    data: bytes
    etag: str
    lfs: bool
    size: int

    @classmethod
    def of(cls, name, data, size=None):
        lfs = name.endswith(LFS_SUFFIXES)
        digest = hashlib.sha256(data) if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data)
        return cls(data, digest.hexdigest(), lfs, len(data) if size is None else size)


@dataclass
class Repo:
    """Commits by hash, and the branches and tags that point at them. `readers` are the tokens let in, None: anyone."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    readers: frozenset[str] | None = None


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    path: str
    range: str | None
    token: str | None
    status: int
    sent: int  # bytes of the body


class Hub:
    """The server and what it holds. A context manager; `url` is for HF_ENDPOINT.

    `cuts`: each download of a large file takes the first, and the connection is closed after that many bytes.
    `altered`: names of files whose first byte arrives changed. `down`: status of every answer, as in 503.
    """

    def __init__(self):
        self.repos = {}
        self.requests = []
        self.cuts = []
        self.altered = set()
        self.ignores_range = False
        self.down = None
        self.invalid_tokens = set()

    def add(self, name, files, branch="main", sizes=None, gated=False, readers=None):
        """Commit `files` to `branch` of the repository `name`, and give the commit's hash."""
        repo = self.repos.setdefault(name, Repo())
        repo.gated, repo.readers = gated, None if readers is None else frozenset(readers)
        blobs = {file: Blob.of(file, data, (sizes or {}).get(file)) for file, data in files.items()}
        listing = repr(sorted((file, blob.etag) for file, blob in blobs.items()))
        commit = hashlib.sha1(f"{name} {len(repo.commits)} {listing}".encode()).hexdigest()
        repo.commits[commit], repo.refs[branch] = blobs, commit
        return commit

    def downloads(self, suffix=".safetensors"):
        """The requests that moved bytes of files with that ending."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(suffix) and r.host == "localhost"]

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if self.hub.down is not None:
            return self._refuse(self.hub.down)
        if path.startswith("/api/models/"):
            return self._info(path.removeprefix("/api/models/"))
        if path.startswith("/cdn/"):
            return self._large(path.removeprefix("/cdn/"))
        if "/resolve/" in path:
            return self._resolve(*path.strip("/").split("/resolve/", 1))
        return self._refuse(404)

    def _repo(self, name):
        """The repository, or None once a refusal has been sent."""
        repo = self.hub.repos.get(name)
        if self.token in self.hub.invalid_tokens:
            return self._refuse(401, message="Invalid credentials in Authorization header")
        hidden = repo is None or (repo.readers is not None and not repo.gated and self.token not in repo.readers)
        if hidden:  # to the anonymous, the hub does not say whether a repository exists
            return self._refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _info(self, path):
        name, _, revision = path.partition("/revision/")
        repo = self._repo(name)
        if repo is None:
            return None
        commit = repo.refs.get(revision or "main", revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = []
        for file, blob in repo.commits[commit].items():
            entry = {"rfilename": file, "blobId": blob.etag[:40], "size": blob.size}
            if blob.lfs:
                entry["lfs"] = {"sha256": blob.etag, "size": blob.size, "pointerSize": 134}
            siblings.append(entry)
        info = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        info |= {"private": False, "downloads": 0, "likes": 0, "gated": "manual" if repo.gated else False}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name, rest):
        repo = self._repo(name)
        if repo is None:
            return None
        revision, _, file = rest.partition("/")
        commit = repo.refs.get(revision, revision)
        if repo.gated and self.token not in (repo.readers or ()):
            message = f"Access to model {name} is restricted."
            return self._refuse(403 if self.token else 401, "GatedRepo", message)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        blob = repo.commits[commit].get(file)
        if blob is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self._content(file, blob, headers | {"ETag": f'"{blob.etag}"'})
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{blob.etag}/{file}"
        return self._send(302, b"", headers)

    def _large(self, rest):
        etag, _, file = rest.partition("/")
        blobs = (b for repo in self.hub.repos.values() for files in repo.commits.values() for b in files.values())
        blob = next(b for b in blobs if b.etag == etag)
        return self._content(file, blob, {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"})

    def _content(self, file, blob, headers):
        data = blob.data
        if file in self.hub.altered:
            data = bytes([data[0] ^ 1]) + data[1:]
        asked = self.headers.get("Range")
        if not asked or self.hub.ignores_range:
            return self._send(200, data, headers, self._cut(blob))
        start = int(asked.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self._send(206, data[start:], headers, self._cut(blob))

    def _cut(self, blob):
        return self.hub.cuts.pop(0) if blob.lfs and self.hub.cuts and self.command == "GET" else None

    def _refuse(self, status, code=None, message=None):
        headers = {"Content-Type": "application/json"}
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"X-Error-Message": message} if message else {}
        return self._send(status, json.dumps({"error": message or "error"}).encode(), headers)

    def _send(self, status, body, headers, cut=None):
        sent = 0 if self.command == "HEAD" else len(body) if cut is None else min(cut, len(body))
        host = (self.headers.get("Host") or "").split(":")[0]
        self.hub.requests.append(
            Request(self.command, host, self.path, self.headers.get("Range"), self.token, status, sent)
        )
        if cut == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        if cut is not None:
            self.close_connection = True

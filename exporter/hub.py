"""Checkpoints from the Hugging Face hub: pinned to a commit, chosen, fetched, checked, kept in the hub's own cache.

`huggingface_hub` finds the hub, the token and the cache, and lays out the latter, so that other programs share what is
downloaded. The bytes are received here, over HTTP with Range: a file that is cut off stays beside its place and a later
run goes on from there, which the library gave up in 1.31 (https://github.com/huggingface/huggingface_hub/issues/4196).
Every file is compared with the hash by which the hub lists it before it takes its place.

Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, OutputError, RecipeError, SvrtError
from ..models.checkpoint import INDEX_NAME, PICKLE_SUFFIXES, PREFERRED_NAMES, SINGLE_NAMES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Bytes that are there, out of all that are wanted.
Progress = Callable[[int, int], None]

# Read beside the tensors: configurations, the tokenizer, the chat template.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
)

_ID = re.compile(r"([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1 of a small file, SHA-256 of a large one (LFS)
_TIMEOUT = 10.0  # seconds without an answer to the first question, after which the hub counts as out of reach
_ATTEMPTS = 8  # at one file, each with the library's own tries; given up earlier where one brings nothing new


@dataclass(frozen=True)
class Snapshot:
    """What a repository held at `commit`: `path` is for `Checkpoint`, a folder or the one file of tensors in it."""

    path: Path
    commit: str


@dataclass(frozen=True)
class _Entry:
    """A file as the hub lists it. `etag` is the hash of its content, and its name among the cache's blobs."""

    name: str
    bytes: int
    etag: str


@dataclass(frozen=True)
class _Cache:
    """The part of the hub's cache that belongs to one repository: blobs/ETAG, snapshots/COMMIT/NAME, refs/REVISION."""

    root: Path
    folder: Path

    @classmethod
    def of(cls, repo: str) -> _Cache:
        from huggingface_hub.constants import HF_HUB_CACHE

        root = Path(HF_HUB_CACHE)
        return cls(root, root / f"models--{repo.replace('/', '--')}")

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, entry: _Entry) -> Path:
        return self.folder / "blobs" / entry.etag

    def partial(self, entry: _Entry) -> Path:
        return self.folder / "blobs" / f"{entry.etag}.incomplete"

    def lock(self, entry: _Entry) -> Path:
        """The library's own lock, so that it and we never write the same blob at once."""
        return self.root / ".locks" / self.folder.name / f"{entry.etag}.lock"

    def holds(self, entry: _Entry, commit: str) -> bool:
        return entry.bytes in (_size(self.snapshot(commit) / entry.name), _size(self.blob(entry)))

    def missing(self, entry: _Entry, commit: str) -> int:
        """Bytes of `entry` still to come."""
        return 0 if self.holds(entry, commit) else max(0, entry.bytes - _size(self.partial(entry), 0))

    def commit_of(self, revision: str) -> str | None:
        """The commit that `revision` was when it was last asked for; None where it never was."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if _COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        if revision == commit or self.commit_of(revision) == commit:
            return
        ref = self.folder / "refs" / revision
        with _writing(self.root):
            ref.parent.mkdir(parents=True, exist_ok=True)
            partial = ref.with_name(f"{ref.name}.{os.getpid()}.part")
            partial.write_text(commit, encoding="utf-8")
            partial.replace(ref)


class _UnreachableError(RecipeError):
    """The hub cannot be asked: no network, HF_HUB_OFFLINE, or a server in trouble."""


class _PartialFile(io.FileIO):
    """A file that is added to, and tells how long it has become."""

    def __init__(self, path: Path, report: Callable[[int], None]) -> None:
        super().__init__(path, "ab")
        self._path, self._report = path, report

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:])
        except OSError as exc:  # told apart here from what goes wrong in the network
            raise OutputError(f"{self._path}: cannot be written: {exc.strerror}") from exc
        self._report(self.tell())
        return done


def split_id(source: str) -> tuple[str, str | None] | None:
    """Repository and revision of `OWNER/NAME` or `OWNER/NAME@REVISION`; None for text that is no such id."""
    found = _ID.fullmatch(source)
    return None if found is None or ".." in source else (found[1], found[2])


def download(repo: str, revision: str | None = None, progress: Progress | None = None) -> Snapshot:
    """Fetch what svrt reads of the model `repo` at `revision` (branch, tag or commit; default: its main branch).

    That is: tensors as safetensors, and `COMPANIONS`; never a pickle, nothing in folders. `progress` gets bytes, those
    that were already there included. Where the hub is out of reach, a complete copy in the cache is used.

    Raises `RecipeError` for a repository or revision that does not exist, or is neither in reach nor in the cache;
    `CheckpointError` where it may not be read, has no safetensors, or arrives cut off or altered; `OutputError` where
    the cache cannot be written or its disk is too small.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise RecipeError(
            f"{repo}: the Hugging Face hub needs huggingface_hub; run: pip install 'svrt[export]'"
        ) from None
    with _quiet():
        cache = _Cache.of(repo)
        try:
            commit, listed = _list(repo, revision)
        except _UnreachableError as exc:
            return _cached(cache, repo, revision, exc)
        folder = cache.snapshot(commit)

        def read_index() -> bytes:
            _obtain(cache, repo, commit, [listed[INDEX_NAME]])
            return (folder / INDEX_NAME).read_bytes()

        weights = _weights(repo, listed, read_index)
        wanted = [listed[name] for name in (*COMPANIONS, INDEX_NAME, *weights) if name in listed]
        _check_space(cache, repo, sum(cache.missing(entry, commit) for entry in wanted))
        _obtain(cache, repo, commit, wanted, progress)
        cache.remember(_revision(revision), commit)
    return _snapshot(folder, weights)


def _revision(revision: str | None) -> str:
    from huggingface_hub.constants import DEFAULT_REVISION

    return DEFAULT_REVISION if revision is None else revision


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and warnings off stderr: what matters is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )
        from huggingface_hub.utils.logging import get_verbosity, set_verbosity

        level, shown = get_verbosity(), not are_progress_bars_disabled()
        set_verbosity(CRITICAL)
        disable_progress_bars()
        try:
            yield
        finally:
            set_verbosity(level)
            if shown:
                enable_progress_bars()


def _list(repo: str, revision: str | None) -> tuple[str, dict[str, _Entry]]:
    """The commit that `revision` is now, and the files it holds by name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        commit, listed = str(info.sha), {}
        for file in info.siblings or []:
            size, etag = (file.size, file.blob_id) if file.lfs is None else (file.lfs.size, file.lfs.sha256)
            if size is None or etag is None or not _HASH.fullmatch(etag):
                raise ValueError(f"{file.rfilename} is listed without its size and hash")
            listed[file.rfilename] = _Entry(file.rfilename, size, etag)
        if not _COMMIT.fullmatch(commit):
            raise ValueError("no commit")
    except HFValidationError as exc:
        raise RecipeError(f"{repo}: not a name the hub can have: {exc}") from None
    except _network_errors() as exc:
        raise _explained(exc, repo, revision) from exc
    except (ValueError, TypeError, KeyError) as exc:  # a proxy's page, a captive portal
        raise _UnreachableError(f"{repo}: {_endpoint()} does not answer as a Hugging Face hub does") from exc
    return commit, listed


def _weights(repo: str, names: Collection[str], read_index: Callable[[], bytes]) -> list[str]:
    """The files of tensors among `names`, in the order of preference of `Checkpoint`; raises `CheckpointError`."""
    for name in PREFERRED_NAMES:
        if name in names:
            return _shards(repo, names, read_index()) if name == INDEX_NAME else [name]
    top = sorted(name for name in names if "/" not in name)
    tensors = [name for name in top if name.endswith(".safetensors")]
    if len(tensors) == 1:
        return tensors
    if tensors:
        raise CheckpointError(
            f"{repo}: several safetensors files and no {INDEX_NAME} ({', '.join(tensors)}); download the one you mean"
        )
    pickles = [name for name in top if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise CheckpointError(
            f"{repo}: holds only pickles ({', '.join(pickles)}), which can run code when they are read; "
            "ask its owner for safetensors, or convert them"
        )
    if any(name.endswith(".gguf") for name in top):
        raise CheckpointError(f"{repo}: holds GGUF files; download the one you mean, and give its path")
    raise CheckpointError(f"{repo}: no safetensors file at its top level; expected {SINGLE_NAMES[0]}")


def _shards(repo: str, names: Collection[str], index: bytes) -> list[str]:
    try:
        shards = sorted(set(map(str, json.loads(index)["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{repo}: {INDEX_NAME} is not a shard index with a weight_map: {exc}") from exc
    for shard in shards:
        if "/" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{repo}: {INDEX_NAME} names {shard!r}; shards are safetensors files beside it")
        if shard not in names:
            raise CheckpointError(f"{repo}: shard {shard} named by {INDEX_NAME} is missing; the repository is broken")
    return shards


def _snapshot(folder: Path, weights: list[str]) -> Snapshot:
    alone = len(weights) == 1 and weights[0] not in SINGLE_NAMES and not (folder / INDEX_NAME).exists()
    return Snapshot(folder / weights[0] if alone else folder, folder.name)


def _cached(cache: _Cache, repo: str, revision: str | None, why: _UnreachableError) -> Snapshot:
    """The copy that an earlier run left. Raises `RecipeError` with `why` where there is none, or only a part."""
    commit = cache.commit_of(_revision(revision))
    folder = cache.snapshot(commit or "none")
    try:
        names = [path.name for path in folder.iterdir() if path.is_file()]  # not a link whose blob is gone
        weights = _weights(repo, names, lambda: (folder / INDEX_NAME).read_bytes())
    except (OSError, CheckpointError):
        raise RecipeError(
            f"{why}, and {cache.root} holds no complete copy of {_revision(revision)}; "
            "connect and run again, or name a local folder"
        ) from why
    return _snapshot(folder, weights)


def _check_space(cache: _Cache, repo: str, need: int) -> None:
    folder = cache.root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OutputError(
            f"{cache.root}: {repo} needs {need / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free; "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def _obtain(cache: _Cache, repo: str, commit: str, entries: list[_Entry], progress: Progress | None = None) -> None:
    """Have every entry as a file of the snapshot, whole and of the right hash."""
    tell = progress or (lambda done, total: None)
    total, done = sum(entry.bytes for entry in entries), 0

    def after(done: int) -> Callable[[int], None]:
        return lambda size: tell(done + size, total)

    tell(done, total)
    for entry in entries:
        with _writing(cache.root):
            if not cache.holds(entry, commit):
                _fetch(cache, repo, commit, entry, after(done))
            _link(cache, repo, commit, entry)
        done += entry.bytes
        tell(done, total)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or exc
        raise OutputError(f"{root}: cannot be written: {reason}; set HF_HOME to a folder that can") from exc


def _fetch(cache: _Cache, repo: str, commit: str, entry: _Entry, report: Callable[[int], None]) -> None:
    """Fill the blob of `entry`, going on where an earlier run was cut off."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob, partial = cache.blob(entry), cache.partial(entry)
    for folder in (blob.parent, cache.lock(entry).parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cache.lock(entry)):
        if _size(blob) == entry.bytes:  # another process was faster
            return
        _receive(partial, repo, commit, entry, report)
        if _hash(partial, entry) != entry.etag:
            partial.unlink()
            raise CheckpointError(
                f"{repo}: {entry.name} arrived altered: its hash is not the hub's; run the same command again"
            )
        partial.replace(blob)


def _receive(partial: Path, repo: str, commit: str, entry: _Entry, report: Callable[[int], None]) -> None:
    """Add to `partial` until it has the entry's length. Raises `CheckpointError` where that does not come about."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repo, entry.name, revision=commit)
    for _ in range(_ATTEMPTS):
        with _PartialFile(partial, report) as file:
            if file.tell() > entry.bytes:  # a server that ignored Range, and a library that did not notice
                file.seek(0)
                file.truncate()
            start = file.tell()
            try:
                http_get(url, file, resume_size=start, headers=build_hf_headers(), expected_size=entry.bytes)
                return
            except _network_errors() as exc:
                reason = exc
        if _is_refusal(reason):
            raise _explained(reason, repo, commit) from reason
        if _size(partial) <= start:
            break
    raise CheckpointError(
        f"{repo}: {entry.name} was cut off at {_size(partial)} of {entry.bytes} bytes ({_first_line(reason)}); "
        "run the same command again: it goes on from there"
    ) from reason


def _hash(path: Path, entry: _Entry) -> str:
    """Of the content, as the hub has it: SHA-256 for large files (LFS), git's blob id for the others."""
    digest = (
        hashlib.sha256() if len(entry.etag) == 64 else hashlib.sha1(b"blob %d\0" % entry.bytes, usedforsecurity=False)
    )
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _link(cache: _Cache, repo: str, commit: str, entry: _Entry) -> None:
    """Let the library name the blob in the snapshot: a link, or a copy on disks that have none."""
    from huggingface_hub import hf_hub_download

    path = cache.snapshot(commit) / entry.name
    if _size(path) == entry.bytes:
        return
    path.unlink(missing_ok=True)  # damaged, or a link to a blob that was
    try:
        hf_hub_download(repo, entry.name, revision=commit, cache_dir=cache.root)
    except _network_errors() as exc:
        raise _explained(exc, repo, commit) from exc
    if _size(path) != entry.bytes:
        raise CheckpointError(f"{repo}: {entry.name} has {_size(path)} bytes, the hub lists {entry.bytes}")


def _size(path: Path, absent: int = -1) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return absent


def _network_errors() -> tuple[type[Exception], ...]:
    """What the library raises for the network: httpx's, httpx2's or requests' errors, as the version goes."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, HfHubHTTPError.__bases__[0]


def _is_refusal(exc: Exception) -> bool:
    """Whether the hub understood and said no, so that another try is of no use."""
    status = _status(exc)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _status(exc: Exception) -> int | None:
    status = getattr(getattr(exc, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _explained(exc: Exception, repo: str, revision: str | None) -> SvrtError:
    """The error in our words: what the hub said, and what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    status = _status(exc)
    if isinstance(exc, RevisionNotFoundError):
        return RecipeError(f"{repo}: no revision {revision!r}; give a branch, a tag or a commit")
    if isinstance(exc, GatedRepoError) or status in (401, 403):
        return _closed(repo, isinstance(exc, GatedRepoError), status)
    if status == 404 and isinstance(exc, EntryNotFoundError):
        return CheckpointError(f"{repo}: a file that the hub lists is not there; the repository is broken")
    if status == 404:
        return RecipeError(f"{repo}: no such repository on {_endpoint()}")
    if isinstance(exc, OfflineModeIsEnabled):
        return _UnreachableError(f"{repo}: HF_HUB_OFFLINE is set")
    if isinstance(exc, OSError) and exc.errno is not None and status is None:
        return OutputError(f"{exc.filename or repo}: {exc.strerror}")
    said = f"answered {status}" if status is not None else f"cannot be reached ({_first_line(exc)})"
    return _UnreachableError(f"{repo}: {_endpoint()} {said}")


def _closed(repo: str, gated: bool, status: int | None) -> SvrtError:
    """401 is also what the hub says of a name that does not exist, where no token is sent: it does not tell which."""
    from huggingface_hub import get_token

    what = "gated" if gated else f"refused ({status}), so private, gated or misspelt"
    token = "the token that was sent does not open it" if get_token() else "no token was sent"
    kind = RecipeError if status == 401 and not gated else CheckpointError
    return kind(
        f"{repo}: {what}, and {token}; accept its licence at https://huggingface.co/{repo} "
        "and give a token (HF_TOKEN, or `hf auth login`)"
    )


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return ENDPOINT


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)

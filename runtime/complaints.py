"""What libav says about damage in a clip, read from stderr: OpenCV gives out frames and does not say they were patched.

libav writes to file descriptor 2 of the process and nowhere else, so while a clip is decoded that is a pipe.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MAX_COMPLAINTS = 100  # kept a clip
_LAST_LINE = b"\0svrt: decoded\n"
_LIBAV_LINE = re.compile(r"^\[(?P<codec>[\w,/.+ -]+) @ 0x[0-9a-f]+\] ?(?P<message>.*)$")
_NOISE = re.compile(r"^\s*Last message repeated \d+ times$|^\[ ?[A-Z]+:\d+@|^OpenCV: ")  # libav's echo, OpenCV's log
_one_clip = threading.Lock()
_switching = threading.Lock()
_aside: int | None = None  # the real stderr while descriptor 2 is the pipe


@contextmanager
def decoder_complaints() -> Iterator[list[str]]:
    """Collect what libav says within; another thread's clip waits. Lines of anyone else are passed on as they come."""
    complaints: list[str] = []
    with _one_clip:
        try:
            saved = os.dup(2)
        except OSError:  # no stderr at all, as in some services
            yield complaints
            return
        try:
            source, sink = os.pipe()
        except OSError:  # no descriptor left: damage goes unnoticed, the clip is described
            os.close(saved)
            yield complaints
            return
        listener = threading.Thread(target=_listen, args=(source, saved, complaints), daemon=True)
        listener.start()
        _switch(sink, saved)
        try:
            yield complaints
        finally:
            _switch(saved, None)
            os.write(sink, _LAST_LINE)  # not by end of file: a child started meanwhile may hold the pipe open
            listener.join()
            os.close(sink)
            os.close(saved)


def say(text: str) -> None:
    """Write a line to stderr at once, also while a clip is decoded: through the pipe it could come after later ones.

    Where it cannot be written, as on a full disk, it is lost: what is told of the work must not end it.
    """
    if sys.stderr is None:  # closed when the process began
        return
    with _switching, suppress(OSError):
        if _aside is None or not _is_descriptor_2():
            sys.stderr.write(text + "\n")  # one write: of two the second could go elsewhere
            sys.stderr.flush()
        else:
            os.write(_aside, f"{text}\n".encode(errors="backslashreplace"))


def _is_descriptor_2() -> bool:
    """Whether Python's stderr is the process's: a program that calls svrt may have put another in its place."""
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _switch(to: int, aside: int | None) -> None:
    global _aside
    with _switching:
        os.dup2(to, 2)
        _aside = aside


def _listen(source: int, stderr: int, complaints: list[str]) -> None:
    """Sort the pipe's lines until `_LAST_LINE`: libav's are kept, `MAX_COMPLAINTS` of them, others' go to `stderr`."""
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            whole = line.removesuffix(_LAST_LINE)
            text = whole.decode(errors="replace").rstrip("\n")
            match = _LIBAV_LINE.match(text)
            if match:
                if len(complaints) < MAX_COMPLAINTS:
                    complaints.append(f"{match['codec']}: {match['message']}".rstrip(": "))
            elif text.strip() and not _NOISE.match(text):
                os.write(stderr, whole)
            if whole != line:
                return

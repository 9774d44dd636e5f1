"""The errors a user can cause, and those alone.

A message is one line: what is wrong, where, and what to do about it. The command line prints it without a
traceback and exits with `exit_code`; from Python it is an ordinary exception.
"""

from __future__ import annotations


class SvrtError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 2


class ClipError(SvrtError):
    """A clip that cannot be read as a video, or that is outside the limits svrt keeps memory bounded with."""


class BundleError(SvrtError):
    """A bundle that is absent, incomplete, altered, or of another schema."""


class RecipeError(SvrtError):
    """A recipe with an unknown key, a wrong type, or a source that does not exist."""


class CheckpointError(SvrtError):
    """Checkpoint tensors that are missing, of the wrong shape, or in a layout that is not supported."""


class EngineError(SvrtError):
    """A backend that is not installed, or that cannot run a given graph on this machine."""


class DecoderError(SvrtError):
    """A GGUF file that llama.cpp cannot load, quantize or run."""


class OutputError(SvrtError):
    """A place that cannot be written to."""

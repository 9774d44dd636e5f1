"""A term of a score that needs something this machine may not have."""

from __future__ import annotations

from ..errors import SvrtError


class AbsentTermError(SvrtError):
    """What a term is computed with is not here: the term is reported as null, with this message as the reason."""

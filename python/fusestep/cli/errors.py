"""How the command line tells a user's mistake from a bug."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2, no traceback."""


@contextmanager
def as_user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of ``kinds`` inside the block into a ``UserError`` with the same text, on one line."""
    try:
        yield
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error

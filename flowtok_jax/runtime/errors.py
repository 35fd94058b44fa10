"""Errors that a user can mend, as against bugs."""

import reprlib
from collections.abc import Callable, Mapping


class UserError(ValueError):
    """A mistake that the user can mend; one line says what, got, expected, cure.

    The command line prints it and exits with status 2, without a traceback.
    """


class StoreError(UserError):
    """A failure of a remote store, which may work again on the next try: status 1."""


class PlaceError(UserError, OSError):
    """A place that cannot be written: no permission, a file in the way of a folder.

    An OSError too, for callers that go on where a file is a mere convenience.
    """


class WriteError(UserError, OSError):
    """A failure to write where that was possible: no room, a quota, a disk that fails.

    The command ends at once, before libraries try to write once more.
    """


def reason_of(error: Exception) -> str:
    """Returns the reason of an error in one line.

    An OSError's own text repeats the file's name, which the message has already.
    """
    told = getattr(error, "strerror", None) or str(error).strip()
    return (told.splitlines() or [type(error).__name__])[0]


def short_repr(value: object) -> str:
    """Returns the start of a value's repr, on one line of text that can be printed."""
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:  # whatever a value's own method may raise
        text = "?"
    return text[:80].encode(errors="backslashreplace").decode()


def raise_together(checks: Mapping[str, Callable[[], object]], what: str) -> None:
    """Calls every check, and raises what all of them find wrong as one error.

    A user who mends one thing should not meet the next one after another start.

    Args:
        checks: the subject of each check, such as "data", and the check.
        what: the start of the first line where several things are wrong.

    Raises:
        UserError: the only one as it is; several as a list, a line each.
    """
    found: dict[str, UserError] = {}
    for subject, check in checks.items():
        try:
            check()
        except UserError as error:
            # The same thing may be missing for several reasons.
            if str(error) not in map(str, found.values()):
                found[subject] = error
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        width = max(map(len, found))
        lines = [f"  {subject:<{width}}  {error}" for subject, error in found.items()]
        # Another try helps only where nothing but a store stands in the way.
        stores = all(isinstance(error, StoreError) for error in found.values())
        kind = StoreError if stores else UserError
        raise kind("\n".join([f"{what}; {len(lines)} things are wrong:", *lines]))

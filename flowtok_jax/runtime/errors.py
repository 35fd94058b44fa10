"""Errors that a user can mend, as against bugs."""

import reprlib
from collections.abc import Callable, Mapping

EXPECTED = "; expected "  # stands between what is wrong and what would be right


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
        errors, cure = _split_cure([str(error) for error in found.values()])
        pairs = zip(found, errors, strict=True)
        lines = [f"  {subject:<{width}}  {error}" for subject, error in pairs]
        # Another try helps only where nothing but a store stands in the way.
        stores = all(isinstance(error, StoreError) for error in found.values())
        kind = StoreError if stores else UserError
        first = f"{what}; {len(lines)} things are wrong:"
        raise kind("\n".join([first, *lines, *cure]))


def _split_cure(errors: list[str]) -> tuple[list[str], list[str]]:
    """Splits off what all the errors expect alike, which is then said once."""
    # The last one: what is wrong may itself have been expected to be otherwise.
    parts = [error.rpartition(EXPECTED) for error in errors]
    cures = {cure if found else None for _, found, cure in parts}
    if len(cures) > 1 or None in cures:
        return errors, []
    return [what for what, _, _ in parts], [f"  expected {cures.pop()}"]

"""A user's mistake, as against a bug."""


class UserError(ValueError):
    """Something the user can mend; its text is one line: what, got, wanted, cure.

    The command line prints it and exits with status 2, without a traceback.
    """


class StoreError(UserError):
    """A remote store that fails; the same command may find it well again: status 1."""


class WriteError(UserError):
    """What cannot be written: no room, a quota, a disk that fails."""

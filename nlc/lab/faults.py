"""What can go wrong in an experiment that no spec is to blame for.

Out: `LabError`, which the command line shows without a traceback.
"""

from __future__ import annotations


class LabError(Exception):
    """A wrong call: a bad file, folder or number. `hint` says what would be accepted."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what = what
        self.hint = hint


class Diverged(Exception):
    """Training met a number that is not finite; says where and what is left."""

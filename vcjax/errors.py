"""Every error that vcjax raises on purpose.

All of them derive from `VcjaxError`, carry the leaf path or object at fault
and a `hint` that says what to do next, in Python; where one does something else
in a shell, `shell_hint` says that, and the command line shows it::

    VcjaxError
    ├── TreeError                 a PyTree cannot be taken apart or put together
    │   ├── UnsupportedLeafError  a leaf that is neither an array nor a plain value
    │   └── StructureError        a tree and the `like=` it should become do not match
    ├── RepositoryError           a repository cannot be opened or created
    │   ├── RepositoryNotFoundError
    │   ├── RepositoryExistsError
    │   └── UnknownFormatError    written by a version of vcjax that this one cannot read
    ├── RevisionError             a revision names no commit, or more than one
    ├── RefError                  a branch or tag name that is invalid, missing or taken
    ├── ConflictError             two sides changed the same leaves
    ├── CorruptionError           stored bytes are not what was written
    │   └── MissingObjectError    stored bytes are gone
    ├── PrunedError               a retention policy let the data of a commit go
    ├── StepExistsError           a training step that was saved already
    ├── StorageError              the disk or bucket refused (full, read-only, unreachable)
    ├── ProcessError              another process of a multi-process program failed
    │   └── ProcessTimeoutError   it was not heard of for too long
    ├── UpdateError               leaves cannot be expressed by an update
    ├── FormatError               a checkpoint file cannot be read or written
    └── MergeError                a merge cannot be done as asked: its method, its sides
"""

from collections.abc import Sequence


class VcjaxError(Exception):
    """Root of every error of vcjax.

    Args:
        message: what went wrong, naming the object or leaf at fault.
        hint: what the user can do about it, from Python.
        path: the leaf path at fault, where there is one.
        shell_hint: what to do about it from a shell, where that is something else.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: str | None = None,
        shell_hint: str | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = path
        self._shell_hint = shell_hint

    @property
    def shell_hint(self) -> str | None:
        """The hint in the words of the command line."""
        return self._shell_hint or self.hint

    def add_hint(self, text: str, shell_text: str | None = None) -> None:
        """Adds to the hint.

        Args:
            text: what.
            shell_text: what in a shell, where that is something else.
        """
        if self._shell_hint or shell_text:
            self._shell_hint = "; ".join(filter(None, [self.shell_hint, shell_text or text]))
        self.hint = "; ".join(filter(None, [self.hint, text]))

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class TreeError(VcjaxError, ValueError):
    """A PyTree cannot be taken apart into leaves, or put together from them."""


class UnsupportedLeafError(TreeError, TypeError):
    """A leaf is neither an array, a PRNG key nor a plain Python value."""


class StructureError(TreeError):
    """A stored tree and the tree it should be restored into do not match.

    Attributes:
        problems: one line per offending leaf path.
    """

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[str] = (),
        hint: str | None = None,
        shell_hint: str | None = None,
    ):
        listed = "".join(f"\n  {line}" for line in list(problems)[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        super().__init__(message + listed + more, hint=hint, shell_hint=shell_hint)
        self.problems = tuple(problems)


class RepositoryError(VcjaxError):
    """A repository cannot be opened or created."""


class RepositoryNotFoundError(RepositoryError, FileNotFoundError):
    """There is no repository at this place."""


class RepositoryExistsError(RepositoryError, FileExistsError):
    """There already is a repository at this place."""


class UnknownFormatError(RepositoryError):
    """Something was written in a format that this version cannot read."""


class RevisionError(VcjaxError, LookupError):
    """A revision names no commit, or more than one."""


class RefError(VcjaxError, ValueError):
    """A ref name is invalid, missing or already taken."""


class ConflictError(VcjaxError):
    """Two sides changed the same leaves in different ways.

    Attributes:
        paths: the leaf paths that both sides changed.
    """

    def __init__(
        self,
        message: str,
        *,
        paths: Sequence[str] = (),
        hint: str | None = None,
        shell_hint: str | None = None,
    ):
        listed = "".join(f"\n  {path}" for path in list(paths)[:20])
        more = f"\n  … and {len(paths) - 20} more" if len(paths) > 20 else ""
        super().__init__(message + listed + more, hint=hint, shell_hint=shell_hint)
        self.paths = tuple(paths)


class CorruptionError(VcjaxError):
    """Stored bytes are not the bytes that were written."""


class MissingObjectError(CorruptionError):
    """A stored object that a commit needs is gone."""


class PrunedError(VcjaxError, FileNotFoundError):
    """A retention policy let the data of a commit go."""


class StepExistsError(VcjaxError, ValueError):
    """A training step was saved already."""


class StorageError(VcjaxError, OSError):
    """The disk or bucket refused an operation."""


class ProcessError(VcjaxError, RuntimeError):
    """Another process of a multi-process program failed, or disagrees with this one."""


class ProcessTimeoutError(ProcessError, TimeoutError):
    """Another process of a multi-process program was not heard of for too long."""


class UpdateError(VcjaxError, ValueError):
    """Leaves cannot be expressed by an update as asked."""


class FormatError(VcjaxError, ValueError):
    """A checkpoint file cannot be read or written."""


class MergeError(VcjaxError, ValueError):
    """A merge cannot be done as asked: its method does not fit, or another one is under way."""


def listing(names: Sequence[str]) -> str:
    """Names in words: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))

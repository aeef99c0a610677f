"""The names of refs: where each kind is stored, and which names are allowed."""

import re
import shlex

from vcjax.errors import RefError

HEADS, TAGS, REMOTES, ALIASES = "refs/heads/", "refs/tags/", "refs/remotes/", "aliases/"
HEAD = "HEAD"
KINDS = {HEADS: "branch", TAGS: "tag", REMOTES: "remote branch", ALIASES: "alias"}

MAX_NAME_BYTES = 200
"""File systems allow 255 for a file name; the log appends 18 and TensorStore's lock files 7."""

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\]\\@]|\.\.|//|^[/\-.]|/[\-.]|[/.]$|\.lock(/|$)")


def prefix_of(name: str) -> str:
    """How the full name of a ref begins: a key of `KINDS`; "" for "HEAD"."""
    return next((prefix for prefix in KINDS if name.startswith(prefix)), "")


def short_name(name: str) -> str:
    """A full name as users type it: "main", "v1.0", "origin/main"."""
    return name.removeprefix(prefix_of(name))


def check_name(name: str) -> str:
    """A branch or tag name, if it is valid (the rules of `git check-ref-format`).

    Raises:
        RefError: it is not.
    """
    if not is_name(name):
        raise RefError(
            f"{name!r} is not a valid name for a branch or tag",
            hint="use letters, digits, `-`, `_`, `.` and `/`; not at the beginning or end",
        )
    return name


def is_name(name: str) -> bool:
    """Whether `check_name` accepts a name."""
    if not name or _FORBIDDEN.search(name) or name in ("HEAD", "@"):
        return False
    try:
        return len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def set_command(short: str, revision: str, kind: str = "branch") -> str:
    """The command that takes a ref to a revision or makes it there, quoted for a shell."""
    return f"`vcjax {kind} --force {shlex.quote(short)} {shlex.quote(revision)}`"

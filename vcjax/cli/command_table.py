"""Which commands there are. Each is the module of its name, with a `COMMAND`.

A name that is a keyword of Python has an underscore after it as a module.
"""

import difflib
import importlib
import keyword

from vcjax.cli.command import Command, UsageError

GROUPS = {
    "Record and restore": ("init", "commit", "checkout"),
    "Look": ("status", "log", "show", "ls", "diff", "similarity", "blame", "plot"),
    "Bring in and take out": ("import", "export"),
    "Branch and merge": ("branch", "tag", "switch", "merge", "undo"),
    "Take care": ("fsck", "gc", "upgrade", "stats", "doctor"),
    "Learn": ("demo", "help"),
}
"""{heading in `vcjax help`: names of commands}. A new command is a new file and its name here."""

GIT_WORDS = {
    "add": "`vcjax commit FILE` takes a file as it is: there is no index",
    "rm": "`vcjax commit FILE` takes a file as it is: there is no index",
    "revert": "`vcjax undo` takes back the last commit, merge or undo of a branch",
    "reset": "`vcjax undo` takes back the last change of a branch; `vcjax branch --force NAME REV` "
    "moves one anywhere",
    "reflog": "`vcjax log --reflog` lists what a branch pointed to",
    "restore": "`vcjax checkout REV FILE` writes a commit into a file",
    "cat-file": "`vcjax show REV:PATH` shows a leaf",
    "ls-tree": "`vcjax ls REV` lists the leaves of a commit",
    "ls-files": "`vcjax ls` lists the leaves of HEAD",
    "rev-list": "`vcjax log --oneline` lists commits",
    "rev-parse": "`vcjax show REV` tells the digest",
    "describe": "`vcjax show REV` tells the digest",
    "shortlog": "`vcjax log --oneline` lists commits",
    "annotate": "`vcjax blame` tells which commit last changed each leaf",
    "rebase": "`vcjax merge BRANCH` brings two branches together",
    "cherry-pick": "`vcjax merge BRANCH --rule=GLOB=SIDE` takes some leaves of a branch",
    "count-objects": "`vcjax stats` tells what is stored",
    "prune": "`vcjax gc` removes what nothing refers to",
    "mergetool": "`vcjax merge --continue --interactive` asks about each conflict",
}
"""{command that Git has and we lack: what does it here}."""


def names() -> list[str]:
    """The names of all commands."""
    return [name for group in GROUPS.values() for name in group]


def load(name: str) -> Command:
    """The command with this name.

    Raises:
        UsageError: there is none.
    """
    if name not in names():
        if name in GIT_WORDS:
            raise UsageError(f"there is no command {name!r}", hint=GIT_WORDS[name])
        close = difflib.get_close_matches(name, names(), n=2, cutoff=0.5)
        meant = f"did you mean {' or '.join(close)}?" if close else "`vcjax help` lists them"
        raise UsageError(f"there is no command {name!r}", hint=meant)
    module = f"{name}_" if keyword.iskeyword(name) else name
    return importlib.import_module(f"vcjax.cli.commands.{module}").COMMAND

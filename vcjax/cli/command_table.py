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


def names() -> list[str]:
    """The names of all commands."""
    return [name for group in GROUPS.values() for name in group]


def load(name: str) -> Command:
    """The command with this name.

    Raises:
        UsageError: there is none.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=2, cutoff=0.5)
        meant = f"did you mean {' or '.join(close)}?" if close else "`vcjax help` lists them"
        raise UsageError(f"there is no command {name!r}", hint=meant)
    module = f"{name}_" if keyword.iskeyword(name) else name
    return importlib.import_module(f"vcjax.cli.commands.{module}").COMMAND

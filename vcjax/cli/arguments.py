"""From the words of a command line to flags and positional arguments."""

import difflib
import re
from collections.abc import Sequence

from absl import flags

from vcjax.cli.command import Command, UsageError, define_common, spelling, takes_value


def split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The flags before the command, the command (None without one), and what follows it.

    Raises:
        UsageError: Git's `-C`, whose folder would be taken for the command.
    """
    values = flags.FlagValues()
    define_common(values)
    words = list(argv)
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] != "--":
        if words[i].startswith("-C"):
            folder = words[i][2:] or next(iter(words[i + 1 :]), "DIR")
            raise UsageError(
                "vcjax has no flag -C", hint=f"name the repository with --repo={folder}"
            )
        name, separator, _ = words[i].lstrip("-").partition("=")
        i += 2 if not separator and name in values and takes_value(values[name]) else 1
    if i >= len(words):
        return words, None, []
    return words[:i], words[i], words[i + 1 :]


def parse(command: Command, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str], list[str]]:
    """The flags of a command, its positional arguments, and which of these follow a `--`.

    Flags may stand anywhere before a `--`. Dashes and underscores in their names
    are the same: `--dry-run` is `--dry_run` and `--no-stats` is `--nostats`.

    Raises:
        UsageError: an unknown flag, a bad value, too few or too many arguments.
    """
    values = command.flag_values()
    try:
        spelled, after = _spelled(values, argv)
        arguments = [*values(["vcjax", *spelled])[1:], *after]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(
            f"vcjax {command.name} has no flag {_dashed(error.flagname)}",
            hint=_suggestion(values, error.flagname, command),
        ) from error
    except flags.IllegalFlagValueError as error:
        text = _reason(str(error).removeprefix("flag "))
        raise UsageError(f"vcjax {command.name}: {text}", hint=_help(command)) from error
    except flags.Error as error:
        name = re.search(r"--?([\w-]+)", str(error))
        flag = values[name[1]] if name and name[1] in values else None
        text = str(error) if flag is None else f"{spelling(flag)} lacks its value"
        raise UsageError(f"vcjax {command.name}: {text}", hint=_help(command)) from error
    least, most = command.arguments
    if not values.help and not least <= len(arguments) <= (least + 99 if most is None else most):
        raise UsageError(
            f"vcjax {command.name} takes {_amount(least, most)}, not {len(arguments)}",
            hint=f"usage: vcjax {command.name} [flags] {command.usage}".rstrip(),
        )
    return values, arguments, after


def _spelled(values: flags.FlagValues, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before a `--` with each flag spelled as absl knows it, and those after it."""
    spelled: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return spelled, list(words)
        name, separator, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or word == "-":
            spelled.append(word)
            continue
        name = _known(values, name)
        if name not in values and not word.startswith("--") and name[:1] in values:
            # -n5, as Git and most tools allow
            name, separator, value = name[0], "=", name[1:]
        spelled.append(f"--{name}{separator}{value}")
        if not separator and name in values and takes_value(values[name]):
            spelled += [value for value in [next(words, None)] if value is not None]
    return spelled, []


_EXPECTED = {
    "invalid literal for int()": "a whole number is expected",
    "could not convert string to float": "a number is expected",
}
"""{how Python says that a value does not do: what is wrong with it}."""


def _reason(text: str) -> str:
    """Why a value does not do, without what Python calls it."""
    for words, expected in _EXPECTED.items():
        if words in text:
            return text.partition(words)[0] + expected
    return text


def _known(values: flags.FlagValues, name: str) -> str:
    if name in values:
        return name
    joined = name.replace("-", "_")
    if joined.startswith("no_") and joined[3:] in values:
        return "no" + joined[3:]
    return joined if joined in values else name


def _dashed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _suggestion(values: flags.FlagValues, name: str, command: Command) -> str:
    close = difflib.get_close_matches(name, [n for n in values if len(n) > 1], n=2, cutoff=0.6)
    if not close:
        return _help(command)
    return f"did you mean {' or '.join(f'--{other}' for other in close)}?"


def _help(command: Command) -> str:
    return f"`vcjax {command.name} --help` lists its flags"


def _amount(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} or more arguments"
    amount = str(least) if least == most else f"{least} to {most}"
    return f"{amount} argument{'' if amount == '1' else 's'}"

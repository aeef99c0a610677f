"""What a command is: its flags, its help text and the function that runs it."""

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax.errors import VcjaxError

if TYPE_CHECKING:
    from vcjax.cli.session import Session

WIDTH = 88
"""Characters of a line of help text."""


class UsageError(VcjaxError):
    """The command line makes no sense; the exit code is 2."""


def _no_flags(values: flags.FlagValues) -> None:
    """A command without flags of its own."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: what the user types after `vcjax`.
        summary: what it does, in one line.
        usage: its positional arguments, for example "REV FILE".
        run: does it; gives the exit code.
        arguments: the least and greatest number of positional arguments; None for any.
        define: defines its flags. A back-quoted word in a flag's help stands for
            the flag's value ("`HOURS` to spare").
        details: more help, in paragraphs.
        reports: whether `--json` is one of its flags.
    """

    name: str
    summary: str
    usage: str
    run: "Callable[[Session], int]"
    arguments: tuple[int, int | None] = (0, 0)
    define: Callable[[flags.FlagValues], None] = _no_flags
    details: str = ""
    reports: bool = True

    def flag_values(self) -> flags.FlagValues:
        """Fresh flags: those of this command and those that all commands have."""
        values = flags.FlagValues()
        self.define(values)
        define_common(values, self.reports)
        values.set_gnu_getopt(True)
        return values

    def help(self, common: bool = True) -> str:
        """What `vcjax NAME --help` prints.

        Args:
            common: whether the flags that all commands have are among it.
        """
        values = self.flag_values()
        parts = [f"usage: vcjax {self.name} [flags] {self.usage}".rstrip(), self.summary]
        if self.details:
            parts += [_wrapped(paragraph) for paragraph in self.details.strip().split("\n\n")]
        shared = common_names()
        own = [flag for flag in unique(values) if flag.name not in shared]
        if own:
            parts.append("flags:\n" + "\n".join(map(describe, own)))
        if common:
            parts.append(common_help(self.reports))
        return "\n\n".join(parts)


def _wrapped(paragraph: str) -> str:
    """A paragraph filled to the width; one that is indented stays as it is."""
    if paragraph.startswith(" "):
        return paragraph
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def define_common(values: flags.FlagValues, reports: bool = True) -> None:
    """Defines the flags that all commands have."""
    flags.DEFINE_string(
        "repo",
        None,
        "`URL` of the repository (path, file://, s3://, gs://); else VCJAX_REPO, else the "
        "nearest .vcjax from here upward",
        short_name="R",
        flag_values=values,
    )
    if reports:
        flags.DEFINE_boolean(
            "json", False, "print one JSON document instead of text", flag_values=values
        )
    flags.DEFINE_boolean(
        "debug", False, "log what is done; show a traceback with errors", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "print this text", short_name="h", flag_values=values)


def common_help(reports: bool = True) -> str:
    """The part of a help text about the flags that all commands have."""
    values = flags.FlagValues()
    define_common(values, reports)
    return "flags of all commands:\n" + "\n".join(map(describe, unique(values)))


def common_names() -> set[str]:
    """Names of the flags that all commands have."""
    values = flags.FlagValues()
    define_common(values)
    return {flag.name for flag in unique(values)}


def unique(values: flags.FlagValues) -> list[flags.Flag[Any]]:
    """The flags, each once although it may have a short name too."""
    return list({values[name].name: values[name] for name in values}.values())


def takes_value(flag: flags.Flag[Any]) -> bool:
    """Whether a flag is followed by a value."""
    return not flag.boolean


def spelling(flag: flags.Flag[Any]) -> str:
    """How a flag is written: "-n, --limit=COUNT"."""
    short = f"-{flag.short_name}, " if flag.short_name else ""
    return f"{short}--{flag.name}" + (f"={_value_name(flag)}" if takes_value(flag) else "")


def _value_name(flag: flags.Flag[Any]) -> str:
    quoted = (flag.help or "").split("`")
    if len(quoted) > 2:
        return quoted[1]
    options = getattr(flag.parser, "enum_values", None)
    return "|".join(options) if options else flag.name.upper()


def describe(flag: flags.Flag[Any]) -> str:
    """A flag with its help, in lines of help text."""
    # absl adds that a flag may be repeated and what an enum may be; our text says both.
    text = (flag.help or "").partition(";\n    repeat this option")[0].replace("`", "")
    text = re.sub(r"^<[^>]*>: ", "", text)
    if flag.default not in (None, False, [], ""):
        text += f" (default: {flag.default})"
    lines = textwrap.wrap(text, WIDTH - 6, break_long_words=False)
    return "\n".join([f"  {spelling(flag)}", *(f"      {line}" for line in lines)])

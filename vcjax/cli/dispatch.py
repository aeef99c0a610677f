"""`main`: finds the command, runs it, and turns errors into messages and exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence

from vcjax._version import __version__
from vcjax.cli import command_table as registry
from vcjax.cli.arguments import parse, split
from vcjax.cli.command import UsageError
from vcjax.cli.output import Output
from vcjax.cli.session import Session
from vcjax.errors import VcjaxError
from vcjax.report.lines import Span

OK, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
BROKEN_PIPE = 141
"""128 + SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: its words, without the program's name; those of this process by default.

    Returns:
        0: done. 1: an error of vcjax, or what was asked about is not so (`fsck`
        found problems, `diff --exit_code` changes, `merge` conflicts). 2: the
        command line makes no sense. 130: interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output("--json" in words)
    try:
        code = _run(words, out)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        out.note("interrupted")
        return INTERRUPTED


def _run(words: list[str], out: Output) -> int:
    debug = "--debug" in words
    try:
        return _dispatch(words, out)
    except VcjaxError as error:
        if debug:
            traceback.print_exc()
        _explain(out, error.message, error.shell_hint, type(error).__name__)
        return USAGE if isinstance(error, UsageError) else FAILED
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:  # a defect of ours: whatever it is, say so without a traceback
        if debug:
            traceback.print_exc()
        name = type(error).__name__
        hint = "run the same with --debug for a traceback, and report it"
        _explain(out, f"unexpected {name}: {error}", None if debug else hint, name)
        return FAILED


def _dispatch(words: list[str], out: Output) -> int:
    before, name, after = split(words)
    if {"--version", "-V"} & {*before}:
        out.raw(f"vcjax {__version__}")
        return OK
    command = registry.load(name or "help")
    values, arguments, after = parse(command, [*before, *after])
    out.json = command.reports and values.json
    if values.debug:
        from absl import logging  # 0.05 s

        logging.set_verbosity(logging.DEBUG)
    if values.help and name is not None:
        out.raw(command.help())
        return OK
    return command.run(Session(values, arguments, out, after))


def _explain(out: Output, message: str, hint: str | None, kind: str) -> None:
    out.document("error", {"error": message, "hint": hint, "kind": kind})
    _labelled(out, Span("error: ", "bold red"), message)
    if hint:
        _labelled(out, Span("hint: ", "bold cyan"), hint)


def _labelled(out: Output, label: Span, text: str) -> None:
    first, *rest = text.splitlines() or [""]
    out.note(label, first)
    for more in rest:
        out.note(more)


def _discard_stdout() -> None:
    """Points stdout nowhere, so that Python's flush at exit does not complain again."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())

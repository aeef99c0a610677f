"""`vcjax diff`: what changed, leaf by leaf, as text, JSON, Markdown or a page."""

import re
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax import report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.diff_sides import Side, compare, side
from vcjax.cli.session import Session
from vcjax.report import Line

if TYPE_CHECKING:
    from vcjax.diffing import TreeDiff

_RANGE = re.compile(r"(.*)(?<![./])\.\.(?![./])(.*)", re.S)
"""A..B; in the path of a file a `/` or another `.` is beside the two dots."""

STATUSES = ("added", "removed", "changed", "moved", "unchanged")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean("stat", False, "one line and a bar per leaf", flag_values=values)
    flags.DEFINE_integer(
        "depth",
        None,
        "one line and a bar per module: per `COUNT` parts of the leaf path",
        0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "sort",
        "tree",
        list(report.ORDERS),
        "order of leaves or modules; figures from the most to the least changed",
        flag_values=values,
    )
    flags.DEFINE_list(
        "status", [], f"`STATUS,…`: only leaves that are {' '.join(STATUSES)}", flag_values=values
    )
    flags.DEFINE_list("paths", [], "`GLOB,…` of leaf paths: only these leaves", flag_values=values)
    flags.DEFINE_boolean(
        "stats",
        True,
        "read what changed and compute figures; --no-stats compares digests alone",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "whole",
        False,
        "of leaves that changed in part read the equal chunks too, for relative, cosine and norms",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "full",
        None,
        "as --whole, and compute singular values and histograms too; on for --html",
        flag_values=values,
    )
    flags.DEFINE_string(
        "base",
        None,
        "revision or file `BASE` that A and B come from: show what each side changed of it, and "
        "how far they agree",
        flag_values=values,
    )
    flags.DEFINE_string(
        "html", None, "write a page that opens from disk to `FILE`", flag_values=values
    )
    flags.DEFINE_boolean(
        "markdown", False, "print Markdown, for a pull request", flag_values=values
    )
    flags.DEFINE_boolean("exit_code", False, "exit with 1 if there is a change", flag_values=values)


def run(session: Session) -> int:
    """Compares two commits or files."""
    values = session.flags
    unknown = [status for status in values.status if status not in STATUSES]
    if unknown:
        raise UsageError(
            f"--status={','.join(unknown)}: no leaf is that", hint=f"write {', '.join(STATUSES)}"
        )
    if values.markdown and session.out.json:
        raise UsageError("--markdown and --json cannot both be printed", hint="leave one out")
    old, new, globs = _sides(session)
    base = None if values.base is None else side(session, values.base)
    full = values.full if values.full is not None else values.html is not None
    stats = values.stats and ("full" if full else "whole" if values.whole else True)
    with session.out.status(f"comparing {old.name} and {new.name}"):
        diff = compare(old, new, stats, globs, base)
    title = f"{old.name} → {new.name}"
    if values.html:
        diff.to_html(values.html, title=title, old=_label(old), new=_label(new))
    if values.markdown:
        session.out.raw(diff.to_markdown(title))
    else:
        ends = {"old": _document(old), "new": _document(new)}
        if base is not None:
            ends["base"] = _document(base)
        shown = [change.to_dict() for change in report.arranged(diff, values.sort, values.status)]
        fields = {**ends, **diff.to_dict(), "changes": shown}
        session.out.report("diff", fields, _lines(diff, values))
    return 1 if values.exit_code and diff else 0


def _lines(diff: "TreeDiff", values: Any) -> list[Line]:
    if values.html:
        return [report.line(report.summary(diff)), report.line(f"written to {values.html}")]
    if diff.three_way is not None:
        return [*report.three_way_lines(diff.three_way), *report.unread_lines(diff)]
    if values.depth is not None:
        return report.module_lines(diff, values.depth, values.sort)
    if values.stat:
        return report.stat_lines(diff, values.sort, values.status)
    return report.diff_lines(diff, values.sort, values.status)


def _sides(session: Session) -> tuple[Side, Side, list[str] | None]:
    """Old and new, and globs.

    A commit alone is compared with the HEAD that came of it, a file with HEAD, and
    the ends of a range `A..B` with each other.
    """
    args = [*session.args]
    if args and (ends := _RANGE.fullmatch(args[0])):
        args[:1] = [ends[1] or "HEAD", ends[2] or "HEAD"]
    globs = [*args[2:], *session.flags.paths] or None
    if len(args) >= 2:
        return side(session, args[0]), side(session, args[1]), globs
    if not args:
        return side(session, "HEAD~1"), side(session, "HEAD"), globs
    one, head = side(session, args[0]), side(session, "HEAD")
    return (head, one, globs) if one.commit is None else (one, head, globs)


def _document(one: Side) -> dict[str, str | None]:
    return {"name": one.name, "commit": one.commit}


def _label(one: Side) -> str:
    return one.name if one.commit is None else f"{one.name} ({one.commit[:8]})"


COMMAND = Command(
    name="diff",
    summary="Show what changed between two commits or checkpoint files, leaf by leaf",
    usage="[A [B [GLOB…]]]",
    run=run,
    arguments=(0, None),
    define=define,
    details="A and B are revisions or files (write ./main for a file that is called like a "
    "branch). Without both, HEAD~1 and HEAD are compared; A alone is compared with HEAD: a "
    "revision as the old side, a file as the new one; A..B is the same as A B. Two files need no "
    "repository.\n\n"
    "relative is |new − old| / |old|, l2 is |new − old|, max the largest difference of an element, "
    "elements how many of them differ, cosine that of the angle between old and new. Chunks of a "
    "leaf that two commits share are not read; relative and cosine would need them, and are – "
    "without --whole.\n\n"
    "With --base, < marks what A changed alone, > what B did, = what both changed to the same, ! "
    "what both changed; cosine, same sign and overlap are of the task vectors A − BASE and "
    "B − BASE, overlap of the elements that either changed.",
)

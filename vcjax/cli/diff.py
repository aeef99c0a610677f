"""`vcjax diff`: what changed, leaf by leaf."""

from absl import flags

from vcjax import report
from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.cli.sides import Side, compare, side


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean(
        "stat", False, "one line and a bar per leaf that changed", flag_values=values
    )
    flags.DEFINE_boolean(
        "stats",
        True,
        "read the leaves that changed and compute figures; --no-stats compares digests alone",
        flag_values=values,
    )
    flags.DEFINE_boolean("exit_code", False, "exit with 1 if there is a change", flag_values=values)
    flags.DEFINE_list("paths", [], "`GLOB,…` of leaf paths: only these leaves", flag_values=values)


def run(session: Session) -> int:
    """Compares two commits or files."""
    values = session.flags
    old, new = _sides(session)
    globs = [*session.args[2:], *values.paths] or None
    with session.out.status(f"comparing {old.name} and {new.name}"):
        diff = compare(old, new, values.stats, globs)
    lines = report.stat_lines(diff) if values.stat else report.diff_lines(diff)
    ends = {"old": _document(old), "new": _document(new)}
    session.out.report("diff", {**ends, **diff.to_dict()}, lines)
    return 1 if values.exit_code and diff else 0


def _sides(session: Session) -> tuple[Side, Side]:
    """Old and new. A commit alone is compared with the HEAD that came of it, a file with HEAD."""
    args = session.args
    if len(args) >= 2:
        return side(session, args[0]), side(session, args[1])
    if not args:
        return side(session, "HEAD~1"), side(session, "HEAD")
    one, head = side(session, args[0]), side(session, "HEAD")
    return (head, one) if one.commit is None else (one, head)


def _document(one: Side) -> dict[str, str | None]:
    return {"name": one.name, "commit": one.commit}


COMMAND = Command(
    name="diff",
    summary="Show what changed between two commits or checkpoint files, leaf by leaf",
    usage="[A [B [GLOB…]]]",
    run=run,
    arguments=(0, None),
    define=define,
    details="A and B are revisions or files (write ./main for a file that is called like a "
    "branch). Without both, HEAD~1 and HEAD are compared; A alone is compared with HEAD: a "
    "revision as the old side, a file as the new one. Two files need no repository.\n\n"
    "relative is |new − old| / |old|, l2 is |new − old|, max the largest difference of an element, "
    "elements how many of them differ, cosine that of the angle between old and new.",
)

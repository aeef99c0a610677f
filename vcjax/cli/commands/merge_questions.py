"""`vcjax merge --interactive`: the conflicts of a merge, one by one."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vcjax import report
from vcjax.cli import method_spec
from vcjax.cli.command import UsageError
from vcjax.cli.session import Session
from vcjax.errors import VcjaxError

if TYPE_CHECKING:
    from vcjax.history import Commit
    from vcjax.threeway import Decision
    from vcjax.threeway.progress import MergeProgress

_HELP = """\
a letter settles this conflict; its capital this one and all that are left below the same
prefix of the leaf path (in the tree of params/head/kernel: params/head)
  base     what the sides come from
  method   a merge method computes the leaf from the sides that changed it
  skip     leave it for later; quit: leave this and all others for later
Each answer is kept at once: after `quit`, `vcjax merge --continue` goes on."""


def settle(session: Session, progress: "MergeProgress", branch: str | None) -> "Commit":
    """Asks about each conflict that is left, then finishes the merge.

    Args:
        session: of the command.
        progress: where the merge stands.
        branch: that it moves; None for the current one.

    Raises:
        ConflictError: some were skipped.
    """
    left = dict(progress.left)
    total = len(left)
    method: Mapping[str, Any] | None = progress.request.method
    skipped: set[str] = set()
    while rest := [path for path in left if path not in skipped]:
        path = rest[0]
        _show(session, progress, left[path], f"({total - len(rest) + 1}/{total}) ")
        letter = _answer(session, _choices(progress, left[path]))
        if letter == "q":
            break
        paths = _below(path, rest) if letter.isupper() else [path]
        kind = letter.lower()
        if kind == "s":
            skipped.update(paths)
            continue
        paths = [name for name in paths if kind in _choices(progress, left[name])]
        new = None
        if kind == "m" and method is None:
            new = method = _method(session)
            if method is None:
                continue
        side = _choices(progress, left[path])[kind]
        session.repo.merges.decide(branch, resolve=_rules(paths, side), method=new)
        for name in paths:
            del left[name]
    with session.out.progress("merging") as shown:
        return session.repo.merges.resume(branch, progress=shown)


def _rules(paths: list[str], side: str) -> list[tuple[str, str]]:
    from vcjax.tree import exactly

    return [(exactly(path), side) for path in paths]


def _below(path: str, paths: list[str]) -> list[str]:
    """Those of some paths that are below the same prefix as one of them."""
    prefix = path.rpartition("/")[0]
    return [name for name in paths if not prefix or name.startswith(f"{prefix}/")]


def _choices(progress: "MergeProgress", decision: "Decision") -> dict[str, str]:
    """{letter: side} of what may be answered."""
    from vcjax.threeway.rules import has_base

    sides = progress.sides
    found = {"o": "ours"}
    if len(sides) == 2:
        found["t"] = "theirs"
    else:
        found |= {str(at + 1): name for at, name in enumerate(sides) if at}
    if has_base(decision):
        found["b"] = "base"
    if decision.verdict == "conflict":
        found["m"] = "method"
    return found


def _show(session: Session, progress: "MergeProgress", decision: "Decision", number: str) -> None:
    """Writes down what is known of a conflict."""
    from vcjax.threeway.sizes import size_of

    out = session.out
    out.note()
    out.note(report.Span(number, "dim"), report.Span(decision.path or "(root)", "bold"))
    size = size_of(decision, session.repo.objects)
    rows = [("base", _what(decision.base), "")]
    for at, changed in zip(decision.changed, size.relative_l2, strict=True):
        text = "" if changed is None else f"relative L2 {report.format_number(changed)}"
        rows.append((progress.sides[at], _what(decision.sides[at]), text))
    width = max(len(row[0]) for row in rows)
    longest = max(len(row[1]) for row in rows)
    for name, what, text in rows:
        out.note(f"  {name:<{width}}  {what:<{longest}}  {text}".rstrip())
    names = [progress.sides[at] for at in decision.changed]
    for i, row in enumerate(size.cosine):
        for j in range(i + 1, len(row)):
            cosine = report.format_number(row[j])
            out.note(f"  cosine of the changes of {names[i]} and {names[j]}: {cosine}")


def _what(node: Any) -> str:
    """A node in words."""
    from vcjax.threeway import ABSENT
    from vcjax.tree import Node

    if node is ABSENT:
        return "absent"
    if isinstance(node, Node):
        return str(node.kind)
    return "undecided" if node.spec is None else str(node.spec)


_WORDS = {"o": "[o]urs", "t": "[t]heirs", "b": "[b]ase", "m": "[m]ethod"}


def _answer(session: Session, choices: Mapping[str, str]) -> str:
    """The letter that was chosen; "q" at the end of the input."""
    words = [_WORDS.get(letter, f"[{letter}] {side}") for letter, side in choices.items()]
    while True:
        line = _line(f"{' '.join(words)} [s]kip [q]uit [?]: ")
        if line is None or line in ("q", "Q"):
            return "q"
        if line and (line.lower() in choices or line in ("s", "S")):
            return line
        if line:
            session.out.note(_HELP)


def _method(session: Session) -> Mapping[str, Any] | None:
    """The merge method that was typed; None at the end of the input."""
    while True:
        line = _line("method [average]: ")
        if line is None:
            return None
        try:
            from vcjax import merging

            name, parameters = method_spec.parse(line or "average")
            return merging.to_config(merging.from_config(name, parameters))
        except (UsageError, VcjaxError) as error:
            session.out.note(report.Span("error: ", "bold red"), error.message)


def _line(prompt: str) -> str | None:
    """A line from the terminal, without blanks around it; None at its end."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None

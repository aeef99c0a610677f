"""`vcjax log`: the commits that lead to a revision, or those of them that changed some leaves."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax import report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.session import Session
from vcjax.errors import RevisionError, TreeError
from vcjax.report import Line, Row, Span
from vcjax.tree import CROSSES, pattern

if TYPE_CHECKING:
    from vcjax.history import Commit, Pruning, TouchWalk

Touched = dict[str, Any]
"""What a commit did to the leaves that are asked about, as JSON types."""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean("graph", False, "draw branches and merges", flag_values=values)
    flags.DEFINE_boolean("oneline", False, "one line per commit", flag_values=values)
    flags.DEFINE_integer(
        "limit", None, "`COUNT` of commits at the most", 0, short_name="n", flag_values=values
    )
    flags.DEFINE_list("metrics", [], "`NAME,…` of metrics to show in columns", flag_values=values)
    flags.DEFINE_boolean(
        "first_parent", False, "follow only the first parent of merges", flag_values=values
    )
    flags.DEFINE_boolean("all", False, "start at all refs", flag_values=values)
    flags.DEFINE_boolean(
        "stats",
        False,
        "with GLOBs, the L2 norm of what each commit changed; reads these leaves",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "reflog",
        False,
        "instead of commits, list what the current (or given) branch pointed to, as of "
        "BRANCH@{0}, BRANCH@{1}…",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Lists commits, newest first."""
    if session.flags.reflog:
        return _reflog(session)
    repo, values = session.repo, session.flags
    _note_merges(session)
    refs = [*repo.refs.under("refs/").values(), *repo.refs.under("aliases/").values()]
    names = report.decorations(repo.head, refs)
    commits, touched, parents = _commits(session, names)
    if session.out.json:
        full, found = report.full_names(refs), list(commits)
        pruned = repo.prunings.among(commit.digest for commit in found)
        listed = [
            report.commit_document(c, full.get(c.digest, ()), pruned.get(c.digest)) for c in found
        ]
        for document in listed if session.after else ():
            document["touched"] = touched[document["digest"]]
        session.out.document("log", {"commits": listed})
        return 0
    pruned = repo.prunings.all()

    def pruning(commit: "Commit") -> "Pruning | None":
        return repo.prunings.get(commit.digest) if commit.digest in pruned else None

    view = _View(names, values.metrics, values.oneline, pruning, touched)
    if values.metrics:
        session.out.line(*report.metric_headings(values.metrics))
    lines = _graph(view, commits, parents) if values.graph else _list(view, commits)
    session.out.lines(lines)
    return 0


def _note_merges(session: Session) -> None:
    """Says on stderr which merges are under way: there is no commit that would show it."""
    for target in session.repo.kept_merges.targets():
        short = target.removeprefix("refs/heads/")
        session.out.note(f"a merge into {short} is under way: `vcjax status`")


_Parents = Callable[["Commit"], Sequence[str]]


def _commits(
    session: Session, names: dict[str, list[str]]
) -> "tuple[Iterator[Commit], dict[str, Touched], _Parents]":
    """The commits, what they did to the leaves that are asked about, and how they hang together.

    The second is filled while the commits are gone through.
    """
    repo, values = session.repo, session.flags
    count = len(session.args) - len(session.after)
    starts: list[str | Commit] = [*session.args[:count]]
    if values.all:
        starts += [repo.history.commit(digest) for digest in names]
    if not session.after:
        if values.stats:
            raise UsageError("log --stats is about leaves", hint="vcjax log --stats -- GLOB…")
        followed = 1 if values.first_parent else None
        try:
            commits = repo.log(*starts, limit=values.limit, first_parent=values.first_parent)
            first = list(itertools.islice(commits, 1))
        except RevisionError as error:
            error.add_hint("leaf paths go after `--`: vcjax log -- GLOB")
            raise
        return itertools.chain(first, commits), {}, lambda commit: commit.parents[:followed]
    walk = repo.touches(*starts, paths=session.after, first_parent=values.first_parent)
    touched: dict[str, Touched] = {}
    return _touching(session, walk, touched), touched, walk.parents


def _touching(
    session: Session, walk: "TouchWalk", touched: dict[str, Touched]
) -> "Iterator[Commit]":
    """The commits that changed the leaves; what each did is noted in `touched`."""
    limit = session.flags.limit
    for touch in itertools.islice(walk, limit):
        fields = touch.to_dict()
        if session.flags.stats:
            fields["l2"] = _l2(session, touch.commit)
        touched[touch.commit.digest] = fields
        yield touch.commit
    if not touched and limit != 0:
        raise TreeError(
            f"no leaf of these commits matches {' or '.join(map(repr, session.after))}",
            hint=f"`vcjax ls REV` lists the leaf paths; {CROSSES}",
        )


def _l2(session: Session, commit: "Commit") -> float | None:
    """The norm of what a commit changed of the leaves, as one vector.

    None for a root, and where the data of the commit or of its parent are gone.
    """
    if not commit.parents:
        return None
    diff = session.repo.diff(commit.parents[0], commit)
    if diff.unread:
        return None
    changes = diff.changes
    patterns = [pattern(glob) for glob in session.after]
    chosen = [c.stats["l2"] for c in changes if c.stats and any(p.match(c.path) for p in patterns)]
    return math.hypot(*chosen)


@dataclass(frozen=True)
class _View:
    """How commits are shown."""

    names: dict[str, list[str]]
    metrics: Sequence[str]
    oneline: bool
    pruning: "Callable[[Commit], Pruning | None]"
    touched: dict[str, Touched] = field(default_factory=dict)

    def text(self, commit: "Commit") -> list[Line]:
        """The lines about a commit, without graph and metrics."""
        names = self.names.get(commit.digest, ())
        touched = self.touched.get(commit.digest)
        change = None if touched is None else report.touched(touched)
        if self.oneline:
            return [report.oneline(commit, names, change, self.pruning(commit))]
        return report.entry(commit, names, change, self.pruning(commit))

    def margin(self, commit: "Commit | None") -> list[str | Span]:
        """The metrics that stand before the first line about a commit."""
        return report.metric_cells(commit, self.metrics)


def _list(view: _View, commits: "Iterator[Commit]") -> Iterator[Line]:
    for commit in commits:
        for i, text in enumerate(view.text(commit)):
            yield report.line(*view.margin(None if i else commit), *text)


def _graph(view: _View, commits: "Iterator[Commit]", parents_of: _Parents) -> Iterator[Line]:
    found = {commit.digest: commit for commit in commits}
    parents = {digest: parents_of(commit) for digest, commit in found.items()}
    order = report.topological(parents)
    rows = report.draw((digest, parents[digest]) for digest in order)
    for digest, row in zip(order, rows, strict=True):
        yield from _drawn(view, found[digest], row)


def _drawn(view: _View, commit: "Commit", row: Row) -> Iterator[Line]:
    text = view.text(commit)
    prefixes = row.prefixes(len(text))
    text += [()] * (len(prefixes) - len(text))
    for i, (prefix, content) in enumerate(zip(prefixes, text, strict=True)):
        yield report.line(*view.margin(None if i else commit), Span(prefix, "red"), *content)


def _reflog(session: Session) -> int:
    from vcjax.history.refnames import short_name

    repo = session.repo
    name = _logged(session)
    states = repo.refs.log(name)[: session.flags.limit]
    short = short_name(name)
    lines = (
        report.line(
            Span(state.commit[:8], "yellow"),
            f" {short}@{{{i}}} {report.format_time(state.time)} {state.reason}",
        )
        for i, state in enumerate(states)
    )
    fields = ("commit", "sequence", "time", "reason", "restores")
    listed = [{field: getattr(state, field) for field in fields} for state in states]
    session.out.report("reflog", {"ref": name, "states": listed}, lines)
    return 0


def _logged(session: Session) -> str:
    """The full name of the ref whose log is asked for; it may have been deleted."""
    repo = session.repo
    if len(session.args) > 1:
        raise UsageError("log --reflog takes one branch", hint="run it once for each")
    branch = repo.head.branch
    short = session.argument(0, "HEAD")
    if short in ("HEAD", "@"):
        return "HEAD" if branch is None else f"refs/heads/{branch}"
    found = repo.resolver.ref_name(short)
    candidates = [short, f"refs/heads/{short}", f"refs/tags/{short}", f"aliases/{short}"]
    found = found or next((n for n in repo.refs.logged_names() if n in candidates), None)
    if found is None:
        raise RevisionError(
            f"no ref is, or was, called {short!r}", hint="`vcjax branch` lists the branches"
        )
    return found


COMMAND = Command(
    name="log",
    summary="List the commits that lead to a revision",
    usage="[REV…] [-- GLOB…]",
    run=run,
    arguments=(0, None),
    define=define,
    details="Commits are listed newest first, children before their parents. With --graph "
    "--limit, the graph is that of the listed commits. A range A..B is what leads to B and "
    "not to A.\n\n"
    "After `--`, only commits that changed leaves whose paths match a GLOB are listed, with how "
    "many leaves of what size each changed against its first parent. This is known from manifests "
    "alone. A commit that has the leaves as one of its parents has is left out, and only this "
    "parent is followed, as by `git log -- PATH`.",
)

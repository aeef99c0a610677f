"""`vcjax log`: the commits that lead to a revision."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import flags

from vcjax import report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.session import Session
from vcjax.errors import RevisionError
from vcjax.report import Line, Row, Span

if TYPE_CHECKING:
    from vcjax.history import Commit


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
    refs = [*repo.refs.under("refs/").values(), *repo.refs.under("aliases/").values()]
    names = report.decorations(repo.head, refs)
    starts: list[str | Commit] = [*session.args]
    if values.all:
        starts += [repo.history.commit(digest) for digest in names]
    commits = repo.log(*starts, limit=values.limit, first_parent=values.first_parent)
    if session.out.json:
        full = report.full_names(refs)
        listed = [report.commit_document(c, full.get(c.digest, ())) for c in commits]
        session.out.document("log", {"commits": listed})
        return 0
    view = _View(names, values.metrics, values.oneline)
    if values.metrics:
        session.out.line(*report.metric_headings(values.metrics))
    session.out.lines(_graph(view, commits, values) if values.graph else _list(view, commits))
    return 0


@dataclass(frozen=True)
class _View:
    """How commits are shown."""

    names: dict[str, list[str]]
    metrics: Sequence[str]
    oneline: bool

    def text(self, commit: "Commit") -> list[Line]:
        """The lines about a commit, without graph and metrics."""
        names = self.names.get(commit.digest, ())
        return [report.oneline(commit, names)] if self.oneline else report.entry(commit, names)

    def margin(self, commit: "Commit | None") -> list[str | Span]:
        """The metrics that stand before the first line about a commit."""
        return report.metric_cells(commit, self.metrics)


def _list(view: _View, commits: "Iterator[Commit]") -> Iterator[Line]:
    for commit in commits:
        for i, text in enumerate(view.text(commit)):
            yield report.line(*view.margin(None if i else commit), *text)


def _graph(view: _View, commits: "Iterator[Commit]", values: flags.FlagValues) -> Iterator[Line]:
    found = {commit.digest: commit for commit in commits}
    followed = 1 if values.first_parent else None
    parents = {digest: commit.parents[:followed] for digest, commit in found.items()}
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
    repo = session.repo
    name = _logged(session)
    states = repo.refs.log(name)[: session.flags.limit]
    short = name.removeprefix("refs/").partition("/")[2] or name
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
    usage="[REV…]",
    run=run,
    arguments=(0, None),
    define=define,
    details="Commits are listed newest first, children before their parents. With --graph "
    "--limit, the graph is that of the listed commits.",
)

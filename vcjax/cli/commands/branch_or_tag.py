"""What `vcjax branch` and `vcjax tag` have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import flags

from vcjax.cli.command import UsageError
from vcjax.cli.session import Session
from vcjax.report import Span, line

if TYPE_CHECKING:
    from vcjax.history import Ref


@dataclass(frozen=True)
class RefKind:
    """Branches or tags.

    Attributes:
        word: "branch" or "tag".
        plural: "branches" or "tags".
        all: session -> {name: digest of its commit}.
        make: (session, name, revision, force) -> the ref.
        delete: (session, name).
    """

    word: str
    plural: str
    all: Callable[[Session], dict[str, str]]
    make: "Callable[[Session, str, str, bool], Ref]"
    delete: Callable[[Session, str], None]


def define(values: flags.FlagValues) -> None:
    """Defines the flags of both."""
    flags.DEFINE_boolean(
        "delete", False, "delete NAME; its commits stay", short_name="d", flag_values=values
    )
    flags.DEFINE_boolean(
        "force", False, "move NAME if it exists", short_name="f", flag_values=values
    )


def run(session: Session, kind: RefKind) -> int:
    """Lists refs of a kind, makes one, or deletes one."""
    if session.flags.delete:
        return _delete(session, kind)
    if not session.args:
        return _list(session, kind)
    ref = kind.make(session, session.args[0], session.argument(1, "HEAD"), session.flags.force)
    session.out.line(f"{kind.word} {ref.short} is at {ref.commit[:8]}")
    session.out.document(kind.word, {"name": ref.short, "commit": ref.commit, "deleted": False})
    return 0


def _delete(session: Session, kind: RefKind) -> int:
    if len(session.args) != 1:
        raise UsageError(
            f"vcjax {kind.word} --delete takes one name",
            hint=f"usage: vcjax {kind.word} --delete NAME",
        )
    name = session.args[0]
    commit = kind.all(session).get(name, "")
    kind.delete(session, name)
    session.out.line(f"Deleted {kind.word} {name} (was {commit[:8]})")
    session.out.document(kind.word, {"name": name, "commit": commit, "deleted": True})
    return 0


def _list(session: Session, kind: RefKind) -> int:
    repo = session.repo
    current = repo.head.branch if kind.word == "branch" else None
    refs = sorted(kind.all(session).items())
    width = max((len(name) for name, _ in refs), default=0)
    rows = [(name, repo.history.commit(digest)) for name, digest in refs]
    lines = (
        line(
            Span("* " if name == current else "  ", "green"),
            Span(f"{name:<{width}}", "green" if name == current else ""),
            Span(f"  {commit.digest[:8]}", "yellow"),
            f"  {commit.summary}",
        )
        for name, commit in rows
    )
    listed = [{"name": name, "commit": c.digest, "message": c.message} for name, c in rows]
    fields = {"current": current} if kind.word == "branch" else {}
    session.out.report(kind.plural, {**fields, kind.plural: listed}, lines)
    return 0

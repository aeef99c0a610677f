"""`vcjax show`: one commit in detail."""

from vcjax import diffing, report
from vcjax.cli.command import Command
from vcjax.cli.session import Session


def run(session: Session) -> int:
    """Shows who, when, why, how derived, and how many leaves it changes."""
    repo = session.repo
    commit = repo.resolve(session.argument(0, "HEAD"))
    refs = [*repo.refs.under("refs/").values(), *repo.refs.under("aliases/").values()]
    names = report.decorations(repo.head, refs).get(commit.digest, [])
    full = report.full_names(refs).get(commit.digest, [])
    counts = None
    if commit.parents:
        parent = repo.history.commit(commit.parents[0])
        counts = diffing.compare(repo.manifest(parent).root, repo.manifest(commit).root).counts
    session.out.report(
        "show",
        {"commit": report.commit_document(commit, full), "changes": counts},
        report.details(commit, names, counts),
    )
    return 0


COMMAND = Command(
    name="show",
    summary="Show a commit in detail, with its metadata and provenance",
    usage="[REV]",
    run=run,
    arguments=(0, 1),
)

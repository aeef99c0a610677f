"""`vcjax similarity`: how alike several models are in what they changed of a base."""

from absl import flags

from vcjax import diffing, report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.diff_sides import Side, side
from vcjax.cli.session import Session
from vcjax.errors import PrunedError

MEASURES = ("cosine", "sign_agreement", "overlap")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "base",
        None,
        "revision or file `BASE` that all come from; else the best common ancestor",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "measure", "cosine", MEASURES, "what the table and the picture show", flag_values=values
    )
    flags.DEFINE_string(
        "output",
        None,
        "`FILE` for a heat map: .png, .svg or .pdf",
        short_name="o",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Compares the task vectors of models, each with each."""
    values = session.flags
    models = [side(session, name) for name in session.args]
    base = side(session, values.base or _ancestor(session, models))
    if gone := [reason for one in (*models, base) for reason in one.unread]:
        raise PrunedError(gone[0], hint="compare commits that have data: `vcjax log` marks others")
    with session.out.status(f"comparing {len(models)} models"):
        found = diffing.similarity_of(
            [(one.root, one.content) for one in models],
            (base.root, base.content),
            [one.name for one in models],
        )
        if values.output:
            picture = report.similarity_figure(
                found.names, getattr(found, values.measure), values.measure.replace("_", " ")
            )
            report.save(picture, values.output)
    commits = [one.commit for one in models]
    fields = {"base": {"name": base.name, "commit": base.commit}, "commits": commits}
    name = base.name if values.base else base.name[:8]
    same = [one.name for one in models if one.commit is not None and one.commit == base.commit]
    lines = report.similarity_lines(found, values.measure, name, same)
    session.out.report("similarity", {**fields, **found.to_dict()}, lines)
    return 0


def _ancestor(session: Session, models: list[Side]) -> str:
    """The digest of the best common ancestor of the models.

    Raises:
        UsageError: one is no commit.
        RevisionError: they have none or several.
    """
    from vcjax.repo.diff import common_base

    known = session.repo.history
    commits = [known.commit(one.commit) for one in models if one.commit is not None]
    if len(commits) < len(models):
        raise UsageError(
            "a file has no ancestor", hint="name what the models come from: --base=REV"
        )
    return common_base(commits, known).digest


COMMAND = Command(
    name="similarity",
    summary="Compare what several models changed of a common base, each with each",
    usage="REV REV…",
    run=run,
    arguments=(2, None),
    define=define,
    details="A task vector is what a model adds to its base. cosine is that of the angle between "
    "two of them; sign_agreement, of the elements that both changed, the fraction that they "
    "changed in one direction; overlap, of the elements that either changed, the fraction that "
    "both did. Models are revisions or files. The picture needs matplotlib: "
    "pip install 'vcjax[plots]'.",
)

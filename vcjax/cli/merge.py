"""`vcjax merge`: three-way merge of two lines of development."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax import errors, report
from vcjax.cli import merge_models
from vcjax.cli.command import Command, UsageError
from vcjax.cli.session import Session
from vcjax.cli.values import metrics, pair

if TYPE_CHECKING:
    from vcjax.history import Commit
    from vcjax.merging import MergeMethod, MergePlan

SIDES = ("ours", "theirs", "base")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "method",
        None,
        "`METHOD` that merges the leaves that both sides changed: average, linear, ties, slerp…, "
        "with parameters: 'ties(density=0.3)'",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "method_args",
        [],
        "`KEY=VALUE` parameter of the method; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_list(
        "weights", None, "`A,B,…`: one number per side or model, for the method", flag_values=values
    )
    flags.DEFINE_integer(
        "seed", None, "`SEED` of methods that draw random numbers (dare)", flag_values=values
    )
    flags.DEFINE_enum(
        "resolve", None, SIDES, "take this side of every conflict", flag_values=values
    )
    flags.DEFINE_multi_string(
        "rule",
        [],
        "`GLOB=SIDE`: take this side of conflicts at these leaf paths; the first rule that matches "
        "counts; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_boolean("dry_run", False, "only show the plan", flag_values=values)
    flags.DEFINE_string(
        "message", None, "`TEXT` of the merge commit", short_name="m", flag_values=values
    )
    flags.DEFINE_string(
        "branch", None, "`NAME` of the branch that moves, if A is none", flag_values=values
    )
    flags.DEFINE_multi_string(
        "metric", [], "`NAME=NUMBER` to record; may be repeated", flag_values=values
    )
    _define_models(values)


def _define_models(values: flags.FlagValues) -> None:
    """Defines the flags for merging whole models."""
    flags.DEFINE_string(
        "recipe",
        None,
        "`FILE`: a mergekit recipe (YAML) to run; needs --output",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "`PATH`: merge whole models into this new folder of safetensors (or file that ends in "
        ".safetensors) and commit nothing",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "whole", False, "merge whole models, without history, and commit", flag_values=values
    )
    flags.DEFINE_string(
        "base", None, "`MODEL` that the whole models were fine-tuned from", flag_values=values
    )
    flags.DEFINE_string(
        "dtype", None, "`NAME` of the dtype of whole merged models", flag_values=values
    )
    flags.DEFINE_float(
        "shard_size", 5.0, "`GB` per file of --output at the most", 0.001, flag_values=values
    )


def run(session: Session) -> int:
    """Merges B into A, or the only one given into HEAD."""
    values = session.flags
    if values.recipe:
        return merge_models.run_recipe(session)
    if values.output or values.whole:
        return merge_models.run_models(session)
    if values.base or values.dtype:
        raise UsageError("--base and --dtype are for whole models", hint="add --whole or --output")
    if len(session.args) not in (1, 2):
        raise UsageError("merge takes one or two revisions", hint="vcjax merge [A] B")
    ours, theirs = session.args if len(session.args) == 2 else ("HEAD", session.args[0])
    request = _Request(
        ours,
        theirs,
        merge_models.method_of(values),
        _rules(values),
        merge_models.weights_of(values),
    )
    if values.dry_run:
        return _plan(session, request)
    repo = session.repo
    before = repo.resolve(ours), repo.resolve(theirs)
    try:
        with session.out.progress(f"merging {theirs} into {ours}") as progress:
            commit = repo.merge(
                ours,
                theirs,
                method=request.method,
                resolve=request.rules,
                weights=request.weights,
                key=_key(values.seed),
                message=values.message,
                branch=values.branch,
                metrics=metrics(values.metric),
                author=session.author,
                progress=progress,
            )
    except errors.ConflictError as error:
        return _conflict(session, request, error)
    outcome = _outcome(commit, *before)
    session.out.line(f"{_WORDS[outcome]}: {commit.digest[:8]} {commit.summary}")
    decided = (commit.provenance or {}).get("decisions", {}) if outcome == "merged" else {}
    counts = {how: list(decided.values()).count(how) for how in dict.fromkeys(decided.values())}
    if counts:
        session.out.line(" " + ", ".join(f"{n:,} {how}" for how, n in counts.items()))
    fields = {"outcome": outcome, "commit": report.commit_document(commit), "decisions": decided}
    session.out.document("merge", {**fields, "conflicts": []})
    return 0


_WORDS = {
    "merged": "Merged",
    "fast_forward": "Fast-forward",
    "up_to_date": "Up to date already",
}


@dataclass(frozen=True)
class _Request:
    """What the command line asks for."""

    ours: str
    theirs: str
    method: "MergeMethod | None"
    rules: dict[str, str]
    weights: list[float] | None


def _rules(values: Any) -> dict[str, str]:
    """{leaf path glob: side}, those of `--rule` before that of `--resolve`."""
    rules = dict(pair("rule", text) for text in values.rule)
    for glob, side in rules.items():
        if side not in SIDES:
            raise UsageError(
                f"--rule={glob}={side}: {side!r} is no side", hint=f"one of {', '.join(SIDES)}"
            )
    return {**rules, **({"**": values.resolve} if values.resolve else {})}


def _key(seed: int | None) -> Any:
    if seed is None:
        return None
    import jax  # only here, for its two seconds

    return jax.random.key(seed)


def _outcome(commit: "Commit", ours: "Commit", theirs: "Commit") -> str:
    if commit.digest == ours.digest:
        return "up_to_date"
    return "fast_forward" if commit.digest == theirs.digest else "merged"


def _conflict(session: Session, request: _Request, error: "errors.ConflictError") -> int:
    """Reports what is left to settle, as a document too."""
    if not session.out.json:
        raise error
    _, _, left = _planned(session, request)
    fields = {"outcome": "conflict", "commit": None, "decisions": {}, "conflicts": left}
    session.out.document("merge", fields)
    session.out.note(report.Span("error: ", "bold red"), error.message.partition("\n")[0])
    session.out.note(report.Span("hint: ", "bold cyan"), error.hint or "")
    return 1


def _plan(session: Session, request: _Request) -> int:
    """Shows what a merge would do; exit code 1 if conflicts would be left."""
    plan, settled, left = _planned(session, request)
    session.out.report(
        "merge_plan",
        {**plan.to_dict(), "settled": settled, "conflicts": left},
        report.merge_plan_lines(plan, settled),
    )
    return 1 if left else 0


def _planned(session: Session, request: _Request) -> "tuple[MergePlan, dict[str, str], list[str]]":
    """The plan, {path of a conflict: what settles it}, and the paths of those left."""
    from vcjax.repo.merging import chosen_sides  # loads TensorStore

    plan = session.repo.plan_merge(request.ours, request.theirs)
    settled: dict[str, str] = dict.fromkeys(chosen_sides(plan, request.rules), "rule")
    if request.method is not None:
        settled = dict.fromkeys(_mergeable(plan), str(request.method.name)) | settled
    return plan, settled, [path for path in plan.conflicts if path not in settled]


def _mergeable(plan: "MergePlan") -> list[str]:
    """The conflicts that a method can settle: neither deleted nor of another shape or dtype."""
    return [decision.path for decision in plan.decisions if decision.verdict == "conflict"]


COMMAND = Command(
    name="merge",
    summary="Merge two lines of development, leaf by leaf",
    usage="[A] B | MODEL…",
    run=run,
    arguments=(0, None),
    define=define,
    details="What only one side changed since their common ancestor is taken from it. For leaves "
    "that both changed: first the --rule that matches, then --resolve, then --method. What is "
    "left are conflicts: they are listed, nothing is changed, and the exit code is 1. A (HEAD "
    "where it is left out) is the branch that moves.\n\n"
    "With --whole or --output any number of models are merged whole by --method (average by "
    "default): revisions, checkpoint files, folders of safetensors in Hugging Face naming, "
    "directories of Orbax (their latest step), in any mix. Leaves are read, merged and written "
    "one after the other. --recipe does what a mergekit recipe says, and the folder that it "
    "writes has configuration, tokenizer and a model card. A merge that was killed is "
    "continued by the same command.",
)

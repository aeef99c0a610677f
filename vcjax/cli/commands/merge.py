"""`vcjax merge`: merge of two or more lines of development."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import flags

from vcjax import errors, report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.commands import merge_continue as merge_underway
from vcjax.cli.commands import merge_whole as merge_models
from vcjax.cli.session import Session
from vcjax.cli.values import metrics

if TYPE_CHECKING:
    from vcjax.merging import MergeMethod
    from vcjax.threeway import MergePlan


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "method",
        None,
        "`METHOD` that merges the leaves that several sides changed: average, linear, ties, "
        "slerp…, with parameters: 'ties(density=0.3)'",
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
        "resolve",
        None,
        ("ours", "theirs", "base"),
        "take this side of every conflict",
        flag_values=values,
    )
    flags.DEFINE_boolean("ours", False, "the same as --resolve=ours", flag_values=values)
    flags.DEFINE_boolean("theirs", False, "the same as --resolve=theirs", flag_values=values)
    flags.DEFINE_multi_string(
        "rule",
        [],
        "`GLOB=SIDE`: take this side of conflicts at these leaf paths: ours, theirs, base, or "
        "method to leave them to that; of three or more sides those after A go by their names; "
        "the first rule that matches counts; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "interactive",
        False,
        "go through the conflicts one by one and ask",
        short_name="i",
        flag_values=values,
    )
    flags.DEFINE_boolean("dry_run", False, "only show the plan", flag_values=values)
    flags.DEFINE_string(
        "message", None, "`TEXT` of the merge commit", short_name="m", flag_values=values
    )
    flags.DEFINE_string(
        "branch",
        None,
        "`NAME` of the branch that moves, if A is none; with --continue and --abort, of the branch "
        "whose merge is meant, if it is not the current one",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "metric", [], "`NAME=NUMBER` to record; may be repeated", flag_values=values
    )
    _define_underway(values)
    _define_models(values)


def _define_underway(values: flags.FlagValues) -> None:
    """Defines the flags about merges that were begun or made before."""
    flags.DEFINE_boolean(
        "continue",
        False,
        "add decisions to the merge under way into the current branch, and finish it",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "replan",
        False,
        "with --continue, if the branch has moved: merge into what it is at now",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "abort",
        False,
        "drop the merge under way into the current branch",
        flag_values=values,
    )
    flags.DEFINE_string(
        "rerun",
        None,
        "`REV`: merge again what this merge commit was made of, and say whether the same comes "
        "out; stores nothing",
        flag_values=values,
    )


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
    """Merges B, C… into A, or the only one given into HEAD."""
    values = session.flags
    if values.recipe:
        return merge_models.run_recipe(session)
    if values.output or values.whole:
        return merge_models.run_models(session)
    if values.base or values.dtype:
        raise UsageError("--base and --dtype are for whole models", hint="add --whole or --output")
    if values["continue"].value or values.abort or values.rerun or values.replan:
        return merge_underway.run(session)
    if not session.args:
        raise UsageError(
            "merge takes one or more revisions",
            hint="vcjax merge [A] B, or vcjax merge A B C… for more than two",
        )
    sides = session.args if len(session.args) > 1 else ["HEAD", *session.args]
    request = _Request(
        tuple(sides),
        merge_models.method_of(values),
        merge_underway.rules_of(values, sides),
        merge_models.weights_of(values),
    )
    if values.dry_run:
        return _plan(session, request)
    merge_underway.check_terminal(values)
    repo = session.repo
    before = [repo.resolve(side).digest for side in sides]
    try:
        with session.out.progress(f"merging {', '.join(sides[1:])} into {sides[0]}") as progress:
            commit = repo.merge(
                *sides,
                method=request.method,
                resolve=request.rules,
                weights=request.weights,
                key=values.seed,
                message=values.message,
                branch=values.branch,
                metrics=metrics(values.metric),
                author=session.author,
                keep_conflicts=True,
                progress=progress,
            )
    except errors.ConflictError as error:
        return merge_underway.unfinished(session, error, _branch(session, sides[0]))
    return merge_underway.finished(session, commit, before)


def _branch(session: Session, ours: str) -> str | None:
    """The branch that a merge moves; None for the current one."""
    if session.flags.branch or ours in ("HEAD", "@"):
        return session.flags.branch
    name = session.repo.resolver.ref_name(ours) or ours
    return name.removeprefix("refs/heads/")


@dataclass(frozen=True)
class _Request:
    """What the command line asks for."""

    sides: tuple[str, ...]
    method: "MergeMethod | None"
    rules: list[tuple[str, str]]
    weights: list[float] | None


def _plan(session: Session, request: _Request) -> int:
    """Shows what a merge would do; exit code 1 if conflicts would be left."""
    plan, settled, left = _planned(session, request)
    session.out.report(
        "merge_plan",
        {**plan.to_dict(), "settled": settled, "conflicts": left},
        report.merge_plan_lines(plan, settled, request.sides),
    )
    return 1 if left else 0


def _planned(session: Session, request: _Request) -> "tuple[MergePlan, dict[str, str], list[str]]":
    """The plan, {path of a conflict: what settles it}, and the paths of those left."""
    from vcjax.threeway.rules import (
        chosen_sides,
        left_to_method,  # loads TensorStore
    )

    plan = session.repo.plan_merge(*request.sides)
    chosen = chosen_sides(plan, request.rules, request.sides)
    settled: dict[str, str] = dict.fromkeys(chosen, "rule")
    if request.method is not None:
        conflicts, name = plan.conflicts, str(request.method.name)
        wanted = left_to_method(plan, request.rules)
        settled |= {path: name for path in wanted if conflicts[path].verdict == "conflict"}
    return plan, settled, [path for path in plan.conflicts if path not in settled]


COMMAND = Command(
    name="merge",
    summary="Merge two or more lines of development, leaf by leaf",
    usage="[A] B | A B C… | MODEL…",
    run=run,
    arguments=(0, None),
    define=define,
    details="What only one side changed since their common ancestor is taken from it. For leaves "
    "that several changed: first the --rule that matches, then --resolve, then --method, which "
    "merges those sides alone that changed the leaf. A (HEAD where it is left out) is the branch "
    "that moves.\n\n"
    "What is left are conflicts: they are listed, the branch stays where it is, and the exit code "
    "is 1. The merge is kept: --continue adds rules or a method and finishes it, --interactive "
    "asks about each conflict, --abort drops it, `vcjax status` says how it stands.\n\n"
    "With --whole or --output any number of models are merged whole by --method (average by "
    "default): revisions, checkpoint files, folders of safetensors in Hugging Face naming, "
    "directories of Orbax (their latest step), in any mix. Leaves are read, merged and written "
    "one after the other. --recipe does what a mergekit recipe says, and the folder that it "
    "writes has configuration, tokenizer and a model card. A merge that was killed is "
    "continued by the same command.",
)

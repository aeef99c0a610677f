"""`vcjax demo`: train, branch, fine-tune, compare and merge a real model.

Each function below is one chapter, and what it does for a training run it does
with vcjax's public calls; the network and its data are in `demo_training`.
"""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

import vcjax
from vcjax import report
from vcjax.cli import command_table as registry
from vcjax.cli.arguments import parse
from vcjax.cli.command import Command, UsageError
from vcjax.cli.commands import stats
from vcjax.cli.session import Session
from vcjax.report import Column, Span, line

if TYPE_CHECKING:
    from flax.training.train_state import TrainState

    from vcjax.cli.commands.demo_training import Digits

REPOSITORY, README = ".vcjax", "README.txt"
MARK = "Made by `vcjax demo`, which replaces the repository in here when it runs again.\n"
FROZEN = ("stem", "body")
TASKS = ("faded", "tilted")
SAVES = 5
"""Steps that are saved per phase of training, beside the first."""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("folder", "vcjax-demo", "`FOLDER` to work in", flag_values=values)
    flags.DEFINE_integer(
        "steps",
        200,
        "training `STEPS` of the base model; the two that come of it get half as many",
        lower_bound=2 * SAVES,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", 0, "`SEED` of weights, batches and held-out digits", 0, flag_values=values
    )


def run(session: Session) -> int:
    """Runs the whole story; gives 1 if what was stored is not what was in memory."""
    from vcjax.cli.commands import demo_training as training  # loads JAX

    began, values = time.monotonic(), session.flags
    folder = prepare(Path(values.folder))
    repo = vcjax.Repository.init(folder / REPOSITORY)
    digits = training.load_digits(values.seed)

    say(session, "1. Train on plain digits. Every save is a commit.")
    state = training.create_state(values.seed)
    base = train(session, repo, state, digits, "plain", values.steps)
    repo.tag("base")

    say(session, f"2. Branch twice. On `faded`, the layers {' and '.join(FROZEN)} are frozen.")
    models = {"base": base}
    for task, start in (("faded", training.freeze(base, FROZEN)), ("tilted", base)):
        repo.switch("main")
        repo.switch(task, create=True)
        models[task] = train(session, repo, start, digits, task, values.steps // 2)

    say(session, "3. What changed? Frozen layers are not listed: they are unchanged.")
    diffs = {task: repo.diff("base", task, paths=["params/**"]) for task in TASKS}
    for task in TASKS:
        show(session, folder, "diff", "base", task, "params/**")

    say(session, "4. Merge. What both sides changed is averaged, the rest is taken over.")
    models["merged"] = merge(repo, like=base)
    scores = {name: training.evaluate(model, digits) for name, model in models.items()}
    evaluation = repo.commit(models["merged"], "evaluate the merge", metrics=scores["merged"])
    show(session, folder, "log", "--all", "--graph", "--oneline", f"--metrics={','.join(digits)}")

    say(session, "5. Share of the held-out digits that each model recognises.")
    session.out.lines(score_lines(scores))

    say(session, "6. Storage and integrity. Leaves that a save did not change are stored once.")
    storage = measure(repo)
    restored = {
        name: vcjax.diff(model, repo.restore(name, like=model)).is_empty
        for name, model in models.items()
    }
    verified = {"fsck": repo.fsck().ok, "restored": restored}
    session.out.line(
        f"{storage['trees']} versions of the training state are "
        f"{report.format_bytes(storage['logical_bytes'])} as full copies; the repository takes "
        f"{report.format_bytes(storage['stored_bytes'])}, {storage['ratio']:.2f} times less."
    )
    sound = verified["fsck"] and all(restored.values())
    session.out.line(
        "Every object has its digest, and every model is restored bit by bit."
        if sound
        else f"What is stored is not what was in memory: {verified}"
    )

    say(session, "Where to look next")
    session.out.lines(line("  ", command) for command in next_commands(values.folder))
    seconds = time.monotonic() - began
    session.out.line()
    session.out.line(f"Done in {seconds:.0f} s.")
    names = report.decorations(repo.head, repo.refs.under("refs/").values())
    session.out.document(
        "demo",
        {
            "folder": str(folder),
            "repository": repo.url,
            "commits": [
                report.commit_document(commit, names.get(commit.digest, ()))
                for commit in repo.log(*repo.branches)
            ],
            "diffs": {task: diff.to_dict() for task, diff in diffs.items()},
            "merge": report.commit_document(repo.resolve(evaluation.parents[0])),
            "accuracy": scores,
            "storage": storage,
            "verified": verified,
            "next": next_commands(values.folder),
            "seconds": seconds,
        },
    )
    return 0 if sound else 1


def prepare(folder: Path) -> Path:
    """Makes the folder of the demo, without the repository of an earlier one.

    Raises:
        UsageError: there is a folder with something in it that is not the demo's.
    """
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    ours = README in found and (folder / README).read_text(errors="replace").startswith(MARK)
    if (found and not ours) or folder.is_file():
        raise UsageError(
            f"{str(folder)!r} is there already, and is not the demo's",
            hint="name a new folder with --folder=DIR, or move what is there away",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / README).write_text(MARK + "\n" + "\n".join(next_commands(str(folder))) + "\n")
    if REPOSITORY in found:
        shutil.rmtree(folder / REPOSITORY)
    return folder


def train(
    session: Session,
    repo: "vcjax.Repository",
    state: "TrainState",
    digits: "dict[str, Digits]",
    view: str,
    steps: int,
) -> "TrainState":
    """Trains on one view of the digits and saves to the current branch as it goes."""
    import jax
    from rich.console import Console
    from rich.progress import Progress

    from vcjax.cli.commands import demo_training as training

    key = jax.random.key(session.flags.seed)
    options = vcjax.CheckpointManagerOptions(save_interval_steps=steps // SAVES)
    console = Console(stderr=True)
    with (
        vcjax.CheckpointManager(repo.url, options) as manager,
        Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        first = int(state.step)
        for step in progress.track(range(first, first + steps + 1), description=view):
            if step > first:
                state = training.train_step(state, *digits[view].train, key)
            if manager.should_save(step):
                metrics = training.evaluate(state, digits)
                manager.save(step, state, metrics, message=f"step {step}: {view} digits")
    return state


def merge(repo: "vcjax.Repository", like: "TrainState") -> "TrainState":
    """Merges the two branches on a third one; the optimizer goes on from ours."""
    repo.branch("merged", at="tilted")
    repo.switch("merged")
    repo.merge(
        "merged",
        "faded",
        method=vcjax.merging.average(),
        resolve={"opt_state/**": "ours"},
        message="merge faded and tilted",
    )
    return repo.restore("merged", like=like)


def score_lines(scores: dict[str, dict[str, float]]) -> Any:
    """A table: a row per model, a column per view, and the mean over the two tasks."""
    views = list(next(iter(scores.values())))
    columns = [Column("model"), *(Column(view, right=True) for view in (*views, "mean of both"))]
    rows = [
        [name, *(f"{row[view]:.1%}" for view in views), f"{mean_over_tasks(row):.1%}"]
        for name, row in scores.items()
    ]
    return report.table(columns, rows)


def mean_over_tasks(scores: dict[str, float]) -> float:
    """The mean accuracy over the tasks that were fine-tuned for."""
    return sum(scores[task] for task in TASKS) / len(TASKS)


def measure(repo: "vcjax.Repository") -> dict[str, float]:
    """What is stored, against a full copy of every different tree; sizes in bytes."""
    copies = {commit.tree: commit.nbytes for commit in repo.log(*repo.branches)}
    logical, stored = sum(copies.values()), stats.measure(repo).stored_bytes
    return {
        "trees": len(copies),
        "logical_bytes": logical,
        "stored_bytes": stored,
        "ratio": logical / stored,
    }


def next_commands(folder: str) -> list[str]:
    """Commands that work on what the demo leaves behind."""
    return [
        f"cd {shlex.quote(folder)}",
        "vcjax log --all --graph --oneline --metrics=faded,tilted",
        "vcjax show HEAD~1                                # how the merge came about",
        "vcjax diff --stat faded tilted 'params/**'",
        "vcjax checkout best:tilted tilted.safetensors --paths='params/**'",
        "vcjax switch faded",
        "vcjax merge tilted --method='ties(density=0.5)' --rule='opt_state/**=ours'",
        "vcjax undo",
        "vcjax stats",
    ]


def say(session: Session, text: str) -> None:
    """Prints a heading."""
    session.out.line()
    session.out.line(Span(text, "bold"))


def show(session: Session, folder: Path, *words: str) -> None:
    """Prints a command line and what it prints on the demo's repository."""
    if session.out.json:
        return
    session.out.line(Span(f"$ vcjax {shlex.join(words)}", "green"))
    command = registry.load(words[0])
    values, arguments, _ = parse(command, [*words[1:], f"--repo={folder}"])
    command.run(Session(values, arguments, session.out))


COMMAND = Command(
    name="demo",
    summary="See all of it on a real model: train, branch, diff, merge, verify",
    usage="",
    run=run,
    define=define,
    details="Trains a small convolutional network on scikit-learn's handwritten digits, "
    "fine-tunes it two ways on two branches, compares and merges them. Nothing is downloaded. "
    "The repository is left in FOLDER for you to look at.",
)

"""Merges two revisions of a repository, or checkpoint files, by a method from a config.

    python scripts/merge.py --config=configs/merge/ties.py --repo=digits --ours=a --theirs=b
    python scripts/merge.py --config=configs/merge/ties.py --config.parameters.density=0.5 \\
        --inputs=a.safetensors,b.safetensors --base=base.safetensors --output=merged.safetensors

A config holds the `name` and the `parameters` of a method, as
`vcjax.merging.to_config` writes them down. Revisions are merged three-way: the
method settles the leaves that both sides changed. Checkpoints (files, folders of
safetensors, directories of Orbax) are merged whole, leaf by leaf, and a merge that
was killed goes on when the same is run again.
"""

import sys
import time
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import vcjax
from vcjax import merging
from vcjax.formats.sharded import is_folder
from vcjax.orbax.files.merge_input import of_orbax
from vcjax.streaming import model as models
from vcjax.streaming.merge import Merge, to_files

START = time.monotonic()

CONFIG = config_flags.DEFINE_config_file("config", "configs/merge/average.py", "The merge method.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of random methods, such as DARE.")
WEIGHTS = flags.DEFINE_list("weights", None, "One number per model; equal by default.")

REPO = flags.DEFINE_string("repo", None, "Path or URL of a repository.")
OURS = flags.DEFINE_string("ours", "HEAD", "Branch that moves to the result.")
THEIRS = flags.DEFINE_string("theirs", None, "Revision to merge into it.")
RULES = flags.DEFINE_multi_string(
    "rule", [], "GLOB=SIDE: take this side (ours, theirs, base) of conflicts at these leaf paths."
)
MESSAGE = flags.DEFINE_string("message", None, "Message of the merge commit.")

INPUTS = flags.DEFINE_list("inputs", None, "Checkpoints to merge, not revisions.")
BASE = flags.DEFINE_string("base", None, "Checkpoint that the inputs were fine-tuned from.")
OUTPUT = flags.DEFINE_string("output", None, "File of safetensors, or new folder, to write.")
DTYPE = flags.DEFINE_string("dtype", None, "Of the merged leaves; the first model's by default.")


def merge_revisions(
    url: str, theirs: str, method: merging.MergeMethod, weights: list[float] | None
) -> str:
    """Merges `theirs` into `--ours`; says what came of it."""
    commit = vcjax.Repository.open(url).merge(
        OURS.value,
        theirs,
        method=method,
        resolve=dict(rule.rsplit("=", 1) for rule in RULES.value),
        weights=weights,
        key=_key(method),
        progress=_tell,
        message=MESSAGE.value,
    )
    return f"{commit.digest[:8]} {commit.summary}"


def merge_files(
    inputs: list[str], output: str, method: merging.MergeMethod, weights: list[float] | None
) -> str:
    """Merges checkpoints leaf by leaf; says what came of it."""
    base = _model(BASE.value) if BASE.value else None
    merge = Merge(tuple(map(_model, inputs)), method, base, weights, _key(method), DTYPE.value)
    to_files(merge, Path(output), progress=_tell)
    return f"{output}: {method} of {len(inputs)} models"


def _model(name: str) -> models.Model:
    """A checkpoint file, a folder of safetensors, or a directory of Orbax."""
    path = Path(name)
    return of_orbax(path) if path.is_dir() and not is_folder(path) else models.of_file(path)


def _tell(done: int, total: int) -> None:
    """Logs progress with the time that is left."""
    passed = time.monotonic() - START
    left = passed * (total - done) / max(done, 1)
    logging.log_every_n_seconds(
        logging.INFO, "%d of %d MB read, %.0f s left", 5, done // 10**6, total // 10**6, left
    )


def _key(method: merging.MergeMethod) -> int | None:
    return SEED.value if method.random else None


def main(argv: list[str]) -> None:
    """Merges what the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config = CONFIG.value
    try:
        method = merging.from_config(config.name, config.parameters.to_dict())
        weights = [float(text) for text in WEIGHTS.value] if WEIGHTS.value else None
        if REPO.value and THEIRS.value and not INPUTS.value:
            print(merge_revisions(REPO.value, THEIRS.value, method, weights))
        elif INPUTS.value and OUTPUT.value and not REPO.value:
            print(merge_files(INPUTS.value, OUTPUT.value, method, weights))
        else:
            raise app.UsageError("give --repo, --ours and --theirs, or --inputs and --output")
    except vcjax.VcjaxError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)

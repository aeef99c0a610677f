"""Merges two revisions of a repository, or checkpoint files, by a method from a config.

    python scripts/merge.py --config=configs/merge/ties.py --repo=digits --ours=a --theirs=b
    python scripts/merge.py --config=configs/merge/ties.py --config.parameters.density=0.5 \\
        --inputs=a.safetensors,b.safetensors --base=base.safetensors --output=merged.safetensors

A config holds the `name` and the `parameters` of a method, as
`vcjax.merging.to_config` writes them down. Revisions are merged three-way: the
method settles the leaves that both sides changed. Files are merged whole.
"""

import sys

import jax
from absl import app, flags
from ml_collections import config_flags

import vcjax
from vcjax import formats, merging

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

INPUTS = flags.DEFINE_list("inputs", None, "Checkpoint files to merge, instead of revisions.")
BASE = flags.DEFINE_string("base", None, "Checkpoint file that the inputs were fine-tuned from.")
OUTPUT = flags.DEFINE_string("output", None, "Checkpoint file to write.")


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
        message=MESSAGE.value,
    )
    return f"{commit.digest[:8]} {commit.summary}"


def merge_files(
    inputs: list[str], output: str, method: merging.MergeMethod, weights: list[float] | None
) -> str:
    """Merges checkpoint files; says what came of it."""
    first, *rest = map(formats.read, inputs)
    merged = vcjax.merge(
        [first.tree, *(checkpoint.tree for checkpoint in rest)],
        method,
        base=formats.read(BASE.value).tree if BASE.value else None,
        weights=weights,
        key=_key(method),
    )
    formats.write(output, jax.device_get(merged), first.metadata)
    return f"{output}: {method} of {len(rest) + 1} models"


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

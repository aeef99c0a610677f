"""Which commit broke the model? Bisection over history, then the leaves that it changed.

    python examples/which_commit_broke_it.py

Any property of a state will do in the place of `is_broken`: a loss, an accuracy, a NaN. Of n
commits about log2(n) are restored, and of those only the leaves that the test looks at.
"""

import bisect
import tempfile

import jax.numpy as jnp
import numpy as np

import vcjax

STEPS, BUG = 24, 17


def train(repo: vcjax.Repository) -> None:
    """A model that learns, until a step of it goes wrong and nobody looks."""
    random = np.random.default_rng(0)
    tree = {"encoder": {"kernel": random.normal(size=(8, 8))}, "head": {"bias": np.zeros(8)}}
    for step in range(STEPS):
        tree["encoder"] = {"kernel": tree["encoder"]["kernel"] * 0.99}
        if step == BUG:
            tree["head"] = {"bias": np.full(8, 40.0)}
        repo.commit(tree, f"step {step}", metadata={"step": step})


def is_broken(tree: dict) -> bool:
    """The test: whether the head's outputs are out of all proportion."""
    return bool(jnp.abs(tree["head"]["bias"]).max() > 10)


def main() -> None:
    """Makes a history, and finds where it went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        repo = vcjax.Repository.init(folder)
        train(repo)
        commits = list(repo.log())[::-1]  # from the oldest on: good ones, then broken ones
        at = bisect.bisect_left(
            commits, True, key=lambda commit: is_broken(repo.restore(commit, paths="head/*"))
        )
        print(f"{commits[at].message} broke it")
        for change in repo.diff(commits[at - 1], commits[at]).changes:
            if change.stats is not None:
                print(f"  {change.path} went by {change.stats['max_abs']:.3g} at most")


if __name__ == "__main__":
    main()

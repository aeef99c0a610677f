"""`--suite=save`: saving and restoring, against Orbax's `CheckpointManager`.

Both write the same trees to the same disk, every save waited for until it is
on disk, in processes of their own that take turns.
"""

import logging
from pathlib import Path
from typing import Any, Protocol

import jax

from suites.measure import Measurement, measured, scratch
from suites.trees import gpt2_small, small, with_layer_changed

CONTENDERS = ("vcjax", "orbax")

CASES = {
    "first save": "498 MB, 148 leaves, nothing stored before",
    "unchanged save": "the same tree again",
    "one layer changed": "one of twelve layers changed",
    "ten saves, one layer each": "ten such saves in a row; disk counts the first save too",
    "restore, like=": "into an abstract tree with shardings",
    "restore": "without a target",
    "small save": "1 MB in 148 leaves; mean of fifty saves, all leaves changed",
}

TARGETS = {
    ("first save", "wall"): 0.5,
    ("one layer changed", "wall"): 0.15,
    ("restore, like=", "wall"): 0.6,
    ("restore", "wall"): 0.6,
    ("small save", "wall"): 0.1,
    ("ten saves, one layer each", "disk"): 0.18,
    ("first save", "peak"): 1.0,
    ("restore, like=", "peak"): 1.0,
}


class Contender(Protocol):
    """A checkpoint manager under test."""

    def save(self, step: int, tree: Any) -> None:
        """Saves and returns when the data are on disk."""
        ...

    def restore(self, step: int, like: Any) -> Any:
        """Restores; without a target if `like` is None."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class Vcjax:
    """`vcjax.CheckpointManager`, saving in the foreground."""

    def __init__(self, folder: Path):
        import vcjax

        options = vcjax.CheckpointManagerOptions(enable_async_checkpointing=False)
        self.manager = vcjax.CheckpointManager(folder, options)

    def save(self, step: int, tree: Any) -> None:
        """See `Contender`."""
        self.manager.save(step, tree)

    def restore(self, step: int, like: Any) -> Any:
        """See `Contender`."""
        return self.manager.restore(step, like)

    def close(self) -> None:
        """See `Contender`."""
        self.manager.close()


class Orbax:
    """Orbax's `CheckpointManager` with its defaults, each save waited for."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        logging.disable(logging.WARNING)
        self.args = ocp.args
        self.manager = ocp.CheckpointManager(folder)

    def save(self, step: int, tree: Any) -> None:
        """See `Contender`."""
        self.manager.save(step, args=self.args.StandardSave(tree))
        self.manager.wait_until_finished()

    def restore(self, step: int, like: Any) -> Any:
        """See `Contender`."""
        args = self.args.StandardRestore(like) if like is not None else self.args.StandardRestore()
        return self.manager.restore(step, args=args)

    def close(self) -> None:
        """See `Contender`."""
        self.manager.close()


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one contender, in this process."""
    make = {"vcjax": Vcjax, "orbax": Orbax}[contender]
    results: dict[str, Measurement] = {}
    tree = gpt2_small()
    with scratch(parent) as folder:
        _warm_up(make, folder / "warm")
        subject: Contender = make(folder / "large")
        results["first save"] = measured(lambda: subject.save(0, tree), folder)[0]
        results["unchanged save"] = measured(lambda: subject.save(1, tree), folder)[0]
        changed = with_layer_changed(tree, 5)
        results["one layer changed"] = measured(lambda: subject.save(2, changed), folder)[0]
        _restores(subject, changed, folder, results)
        subject.close()
    with scratch(parent) as folder:
        subject = make(folder / "ten")
        first = measured(lambda: subject.save(0, tree), folder)[0]
        trees = [tree]
        for layer in range(10):
            trees.append(with_layer_changed(trees[-1], layer))

        def ten() -> None:
            for step, version in enumerate(trees[1:], 1):
                subject.save(step, version)

        outcome = measured(ten, folder)[0]
        outcome.disk += first.disk
        results["ten saves, one layer each"] = outcome
        subject.close()
    with scratch(parent) as folder:
        results["small save"] = _small(make, folder)
    return {name: value.to_dict() for name, value in results.items()}


def _warm_up(make: Any, folder: Path) -> None:
    """Imports, thread pools and compilations are not what is measured."""
    subject = make(folder)
    tree = small(8)
    subject.save(0, tree)
    subject.restore(0, jax.tree.map(_abstract, tree))
    subject.close()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _restores(subject: Any, tree: Any, folder: Path, results: dict[str, Measurement]) -> None:
    like = jax.tree.map(_abstract, tree)
    for name, target in (("restore, like=", like), ("restore", None)):
        results[name], restored = measured(
            lambda target=target: jax.block_until_ready(subject.restore(2, target)), folder
        )
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), tree, restored)
        if not all(jax.tree.leaves(equal)):
            raise RuntimeError(f"{name} gave something else back")
        del restored


def _small(make: Any, folder: Path) -> Measurement:
    subject = make(folder / "small")
    count = 50
    versions = [small(seed=seed) for seed in range(count + 1)]
    subject.save(0, versions[0])

    def all_of_them() -> None:
        for step in range(1, count + 1):
            subject.save(step, versions[step])

    total = measured(all_of_them, folder)[0]
    subject.close()
    return Measurement(total.wall / count, total.cpu / count, total.peak, total.disk / count)

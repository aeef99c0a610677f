"""The same random runs on Orbax's manager and on ours, which must tell the same story.

Only where Orbax's way is a fault of its own (docs/guides/migrating-from-orbax.md) are calls left
out: steps saved out of order, and policies that let the latest step go.
"""

import random

import numpy as np
import orbax.checkpoint
import pytest

import vcjax.orbax


def chosen_options(rng):
    policies = orbax.checkpoint.checkpoint_managers
    latest = policies.LatestN(rng.choice([1, 3]))
    keeping = [
        {},
        {"max_to_keep": rng.choice([1, 2, 3])},
        {"max_to_keep": 2, "keep_period": 3},
        {"best_fn": lambda metrics: metrics["loss"], "best_mode": rng.choice(["min", "max"])},
        {"preservation_policy": latest},
        {
            "preservation_policy": policies.AnyPreservationPolicy(
                [latest, policies.CustomSteps([2, 4]), policies.EveryNSteps(5)]
            )
        },
    ]
    first, some = policies.InitialSavePolicy(), policies.SpecificStepsPolicy([4, 5, 9])
    saving = [
        {},
        {"save_interval_steps": rng.choice([2, 3])},
        {"save_interval_steps": 5, "save_on_steps": [3, 7]},
        {"save_decision_policy": policies.FixedIntervalPolicy(2)},
        {"save_decision_policy": policies.AnySavePolicy([first, some])},
        {"should_save_fn": lambda step, latest: step % 2 == 1},
    ]
    return rng.choice(keeping) | rng.choice(saving)


CALLS = {"save": 8, "delete": 1, "restore": 2, "should_save": 2, "reopen": 1, "reload": 1}
"""How often each is called, relative to the others."""


class Run:
    """A random run, the same on whatever manager.

    Attributes:
        told: of every call: (what, result, steps, latest, best).
    """

    def __init__(self, ocp, folder, seed):
        self._ocp, self._folder, self._rng = ocp, folder, random.Random(seed)
        self._given, self._step, self.told = chosen_options(self._rng), 0, []
        self._manager = self._opened()
        for what in self._rng.choices(list(CALLS), list(CALLS.values()), k=16):
            try:
                result = getattr(self, f"_{what}")()
            except (ValueError, FileNotFoundError) as error:
                kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
                result = kind.__name__
            manager = self._manager
            steps = list(manager.all_steps())
            self.told.append((what, result, steps, manager.latest_step(), manager.best_step()))
        self._manager.close()

    def _opened(self):
        options = {"enable_async_checkpointing": False, **self._given}
        return self._ocp.CheckpointManager(
            self._folder, options=self._ocp.CheckpointManagerOptions(**options)
        )

    def _any_step(self):
        return self._rng.randrange(self._step + 2)

    def _save(self):
        self._step += self._rng.choice([1, 1, 2])
        args = self._ocp.args.StandardSave({"w": np.full(2, self._step)})
        metrics = {"loss": self._rng.random()} if self._rng.random() < 0.8 else None
        force = self._rng.random() < 0.2
        return self._manager.save(self._step, args=args, metrics=metrics, force=force)

    def _delete(self):
        self._manager.delete(self._any_step())

    def _restore(self):
        steps = list(self._manager.all_steps())
        if not steps:  # Orbax's manager saves nothing more once it was asked for what is not there
            return None
        step = self._rng.choice([None, *steps])
        return self._manager.restore(step, args=self._ocp.args.StandardRestore())["w"].tolist()

    def _should_save(self):
        return self._manager.should_save(self._any_step())

    def _reload(self):
        self._manager.reload()

    def _reopen(self):
        self._manager.close()
        self._manager = self._opened()


@pytest.mark.parametrize("seed", range(12))
def test_a_random_run(tmp_path, seed):
    ours = Run(vcjax.orbax, tmp_path / "ours", seed)
    theirs = Run(orbax.checkpoint, tmp_path / "theirs", seed)
    for number, (mine, expected) in enumerate(zip(ours.told, theirs.told, strict=True)):
        assert mine == expected, f"call {number}"
    assert any(what == "save" and saved for what, saved, *_ in ours.told)

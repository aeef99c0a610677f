"""Policies of both families decide here what they decide in Orbax."""

import dataclasses
import datetime

import numpy as np
import pytest

from vcjax.orbax.manager.policies import Retention, describe


def run(ocp, folder, steps, metrics=None, **options):
    """The steps that were saved, and those that are left."""
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    saved = []
    with ocp.CheckpointManager(folder, options=options) as made:
        for step in steps:
            given = None if metrics is None else metrics(step)
            args = ocp.args.StandardSave({"w": np.full(2, step)})
            if made.save(step, args=args, metrics=given):
                saved.append(step)
        return saved, made.all_steps()


SAVING = {
    "interval": (lambda p: p.FixedIntervalPolicy(3), [0, 3, 6, 9]),
    "specific": (lambda p: p.SpecificStepsPolicy([2, 5]), [2, 5]),
    "initial": (lambda p: p.InitialSavePolicy(), [0]),
    "continuous": (lambda p: p.ContinuousCheckpointingPolicy(), list(range(10))),
    "seldom": (lambda p: p.ContinuousCheckpointingPolicy(minimum_interval_secs=99), [0]),
    "preempted": (lambda p: p.PreemptionCheckpointingPolicy(), []),
    "any": (
        lambda p: p.AnySavePolicy([p.FixedIntervalPolicy(4), p.SpecificStepsPolicy([5])]),
        [0, 4, 5, 8],
    ),
}


@pytest.mark.parametrize("name", SAVING)
def test_save_decision_policies(ocp, tmp_path, name):
    make, expected = SAVING[name]
    policy = make(ocp.checkpoint_managers)
    saved, _ = run(ocp, tmp_path, range(10), save_decision_policy=policy)
    assert saved == expected


def test_a_user_written_save_policy_sees_what_orbax_shows(ocp, tmp_path):
    seen = []

    class Mine:
        def should_save(self, step, previous_steps, *, context):
            seen.append((step.step, [info.step for info in previous_steps]))
            assert step.time.tzinfo is not None
            assert all(info.time <= step.time for info in previous_steps)
            assert not context.is_saving_in_progress
            assert not context.reached_preemption
            return step.step % 2 == 1

    saved, _ = run(ocp, tmp_path, range(5), save_decision_policy=Mine())
    assert saved == [1, 3]
    assert seen[-1] == (4, [1, 3])


def score(metrics):
    return metrics["score"]


# The latest step is among those kept by each, so that both managers agree.
PRESERVING = {
    "latest": (lambda p: p.LatestN(2), [8, 9]),
    "every": (lambda p: p.EveryNSteps(3), [0, 3, 6, 9]),
    "about every": (lambda p: p.EveryNSteps(3, exact_interval=False), [0, 3, 6, 9]),
    "closest": (lambda p: p.EveryNStepsClosest(4), [0, 4, 8, 9]),
    "custom": (lambda p: p.CustomSteps([1, 9]), [1, 9]),
    "seconds": (lambda p: p.AnyPreservationPolicy([p.EveryNSeconds(99), p.LatestN(1)]), [0, 9]),
    "duration": (lambda p: p.LatestDuration(datetime.timedelta(hours=1)), list(range(10))),
    "best": (lambda p: p.BestN(get_metric_fn=score, n=3), [5, 6, 9]),
    "worst": (lambda p: p.BestN(get_metric_fn=score, n=2, reverse=True), [0, 9]),
    "any": (lambda p: p.AnyPreservationPolicy([p.EveryNSteps(4), p.LatestN(1)]), [0, 4, 8, 9]),
}


@pytest.mark.parametrize("name", PRESERVING)
def test_preservation_policies(ocp, tmp_path, name):
    make, expected = PRESERVING[name]
    scores = [0, 1, 2, 3, 4, 8, 7, 6, 5, 9] if name != "worst" else [1, 9, 8, 7, 6, 5, 4, 3, 2, 0]
    policy = make(ocp.checkpoint_managers)
    _, left = run(
        ocp,
        tmp_path,
        range(10),
        metrics=lambda step: {"score": scores[step]},
        best_fn=score,
        preservation_policy=policy,
    )
    assert left == expected


def test_a_user_written_preservation_policy(ocp, tmp_path):
    class Mine:
        def should_preserve(self, checkpoints, *, context):
            assert [info.step for info in checkpoints] == sorted(i.step for i in checkpoints)
            return [info.step in (2, 4) or info is checkpoints[-1] for info in checkpoints]

    _, left = run(ocp, tmp_path, range(6), preservation_policy=Mine())
    assert left == [2, 4, 5]


OLDER = {
    "max_to_keep": ({"max_to_keep": 3}, [7, 8, 9]),
    "all": ({}, list(range(10))),
    "keep_period": ({"max_to_keep": 1, "keep_period": 4}, [0, 4, 8, 9]),
    "time": ({"max_to_keep": 1, "keep_time_interval": datetime.timedelta(hours=1)}, [0, 9]),
    "interval": ({"max_to_keep": 2, "save_interval_steps": 3}, [6, 9]),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_options(ocp, tmp_path, name):
    options, expected = OLDER[name]
    assert run(ocp, tmp_path, range(10), **options)[1] == expected


def test_latest_is_kept_whatever_the_policy_says(ours, tmp_path):
    policy = ours.checkpoint_managers.EveryNSteps(100)
    assert run(ours, tmp_path, range(1, 4), preservation_policy=policy)[1] == [3]


def test_policies_in_words(ours):
    policies = ours.checkpoint_managers

    @dataclasses.dataclass
    class Mine:
        every: int

    class Plain:
        pass

    assert describe(policies.LatestN(2)) == "max_to_keep=2"
    both = policies.AnyPreservationPolicy([policies.EveryNSteps(5), policies.LatestN(1)])
    assert describe(both) == (
        "EveryNSteps(interval_steps=5, exact_interval=True, max_to_keep=None) or max_to_keep=1"
    )
    assert describe(policies.CustomSteps([3])) == "CustomSteps(steps_set={3})"
    assert "get_metric_fn=score" in describe(policies.BestN(get_metric_fn=score, n=1))
    assert describe(Mine(3)).endswith("Mine(every=3)")
    assert describe(Plain()).endswith("Plain")
    options = ours.CheckpointManagerOptions(max_to_keep=2, best_fn=score, best_mode="min")
    assert str(Retention(options)) == "max_to_keep=2 by best_fn (min)"

"""The checkpoint manager in programs of two and of four processes, as MaxText uses it."""

from pathlib import Path

import numpy as np
import pytest

import vcjax
import vcjax.orbax as ocp

TIMEOUT = 2.0
"""How long a process may be silent, seconds."""


def alike(answers):
    """What all processes answer."""
    assert all(answer == answers[0] for answer in answers), answers
    return answers[0]


def test_a_training_run_and_its_continuation_by_others(groups, group, url):
    """Async saves at an interval; two best and the latest kept; restored by other processes."""
    shape, losses = group.shape, [5.0, 0, 1.0, 0, 2.0, 0, 3.0, 0, 4.0]
    options = {"save_interval_steps": 2, "max_to_keep": 2, "best": "loss"}
    assert alike(group.call("manage", url=url, **options)) == [[], None, None, {}, []]
    found = alike(group.call("train", url=url, shape=shape, steps=list(range(9)), losses=losses))
    kept = {"2": {"loss": 1.0}, "4": {"loss": 2.0}, "8": {"loss": 4.0}}  # process 0's
    assert found == [[True, False] * 4 + [True], [2, 4, 8], 8, 2, kept, [0, 6]]
    repo = vcjax.Repository.open(url)
    assert [commit.step for commit in repo.log()] == [8, 6, 4, 2, 0]
    assert set(repo.prunings.all()) == {repo.resolve(f"step:{step}").digest for step in (0, 6)}
    assert repo.fsck().ok
    assert not list(Path(url).glob(".vcjax-item*"))

    for process, answer in enumerate(group.call("others", url=url, step=8)):
        # Process 0's, but for handlers that write a file for each.
        assert answer == [{"process": 0, "only_0": [1, 2]}, 0, f"position 8 of {process}"]
    [size, devices, spec] = alike(group.call("described", url=url, step=4))
    assert (size, devices, spec) == ([512, 256], 4, ["x"])

    other = groups[6 - group.count]
    assert alike(other.call("manage", url=url, **options))[:3] == [[2, 4, 8], 8, 2]
    for step, how, dtype in [(None, "pytree", "float32"), (2, "standard", "float16")]:
        place = {"url": url, "shape": other.shape, "how": how, "dtype": dtype}
        for answer in other.call("restored", step=step, **place):
            assert (answer["wrong"], answer["placed"], answer["rest"]) == ([], True, True)
    found = alike(other.call("train", url=url, shape=other.shape, steps=[10], losses=[0.5] * 11))
    assert found[1] == [2, 10]
    # The first ones have not seen that, until they ask for it, save, or are told to look.
    assert alike(group.call("known", url=url))[0] == [2, 4, 8]
    [size, *_] = alike(group.call("described", url=url, step=10))
    assert size == [512, 256]
    assert alike(group.call("known", url=url))[0] == [2, 4, 8]
    for answer in group.call("restored", url=url, shape=shape, step=10):
        assert (answer["wrong"], answer["placed"]) == ([], True)
    assert alike(group.call("known", url=url))[0] == [2, 4, 8, 10]  # what pruned, only pruned
    assert alike(group.call("reload", url=url))[:3] == [[2, 10], 10, 10]

    with ocp.CheckpointManager(url) as alone:  # one process
        assert alone.all_steps() == [2, 10]
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        assert alone.restore(10, args=args)["state"]["step"] == 10


def test_restoring_what_one_process_saved(pair, url):
    pair.call("manage", url=url)
    with ocp.CheckpointManager(url) as alone:
        alone.save(0, args=ocp.args.Composite(state=ocp.args.StandardSave(content(0))))
    pair.call("reload", url=url)
    for how in ("pytree", "standard"):
        for answer in pair.call("restored", url=url, shape=[4, 1], how=how):
            assert (answer["wrong"], answer["placed"], answer["rest"]) == ([], True, True)


def content(step):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    import managing

    return managing.content(step)


def test_process_0_decides(group, url):
    """Policies and metrics that differ between processes, and a save that takes long."""
    group.call("manage", url=url, own_policy=True, best="loss", max_to_keep=3)
    losses = [float(step) for step in range(6)]
    found = alike(
        group.call("train", url=url, shape=group.shape, steps=[0, 1, 2, 3, 4, 5], losses=losses)
    )
    assert found[:4] == [[True, False] * 3, [0, 2, 4], 4, 0]
    slow = f"{url}-slow"
    group.call("manage", url=slow, own_policy=True)
    found = group.call("many_refused", url=slow, shape=group.shape, steps=[1, 3, 5, 7, 9, 11])
    assert alike(found) == [[True] + [False] * 6, True]
    assert alike(group.call("go_on", url=slow)) == [0]


def test_errors_of_one_are_errors_of_all(group, url):
    last = group.count - 1
    group.call("manage", url=url, best="loss")
    train = {"url": url, "shape": group.shape, "losses": [1.0] * 9}
    group.call("train", steps=[0], **train)
    kinds = {kind for kind, _ in group.fail("train", steps=[0], force=True, **train)}
    assert kinds == {"StepAlreadyExistsError"}
    errors = group.fail("wrong_args", url=url, process=last)
    assert [kind for kind, _ in errors] == ["ProcessError"] * last + ["ValueError"]
    assert "Must provide `args` of type `Composite`" in errors[0][1]
    for process in (0, last):  # of a step that is not saved nobody looks at them
        refused = {"url": url, "process": process, "step": 0, "force": False}
        assert group.call("wrong_args", **refused) == [False] * group.count
    errors = group.fail("wrong_args", url=url, process=0)
    assert [kind for kind, _ in errors] == ["ValueError"] + ["ProcessError"] * last
    for process in (last, 0):
        errors = group.fail("wrong_item", url=url, process=process)
        assert errors[process][0] == "TypeError"
        assert {kind for kind, _ in errors} == {"TypeError", "ProcessError"}
    for kind, message in group.fail("other_steps", url=url):
        assert kind == "ProcessError"
        assert "process 1 saves step 101, and process 0 step 100" in message
    for kind, message in group.fail("no_loss", url=url):
        assert kind == "VcjaxError"
        assert "best_fn cannot rate step 100" in message
    assert alike(group.call("train", steps=[1], **train))[:2] == [[True], [0, 1]]
    assert vcjax.Repository.open(url).fsck().ok


def test_a_save_in_the_background_fails_on_one_process(pair, url):
    """It is listed nowhere, and the next one works."""
    pair.call("manage", url=url)
    pair.call("train", url=url, shape=pair.shape, steps=[0], losses=[1.0])
    first, second = pair.call("hit_by_a_full_disk", url=url, shape=pair.shape, process=1, step=1)
    assert first == [["ProcessError", [0]], True, [0, 1]]
    assert second == [["StorageError", [0]], True, [0, 1]]
    assert vcjax.Repository.open(url).fsck().ok


def test_deleting_and_others_on_the_branch(pair, url):
    pair.call("manage", url=url, enable_async_checkpointing=False, max_to_keep=3)
    for step in range(4):
        assert pair.call("plain", url=url, step=step) == [True, True]
    repo = vcjax.Repository.open(url)
    repo.tag("keep", "step:1")
    repo.refresh()
    repo.commit({"w": 5, "mine": 0}, metadata={"step": 9})
    assert alike(pair.call("known", url=url))[0] == [1, 2, 3]
    # Another's commit is noticed; step 1 is to go, and a tag spares it.
    assert pair.call("plain", url=url, step=10) == [True, True]
    assert pair.call("plain", url=url, step=11) == [True, True]
    assert alike(pair.call("known", url=url))[0] == [1, 9, 10, 11]
    assert alike(pair.call("delete", url=url, step=11))[0] == [1, 9, 10]
    assert repo.resolve("main").step == 10
    assert {kind for kind, _ in pair.fail("delete", url=url, step=1)} == {"VcjaxError"}
    assert {kind for kind, _ in pair.fail("delete", url=url, step=7)} == {"FileNotFoundError"}
    assert pair.call("plain", url=url, step=10, overwrite=True) == [True, True]
    assert pair.call("plain", url=url, step=12) == [True, True]
    assert alike(pair.call("known", url=url))[:2] == [[1, 9, 10, 12], 12]


def test_a_repository_for_each_process(group, url):
    group.call("manage", url=url, local=True, max_to_keep=1)
    for step in (0, 1):
        assert group.call("plain", url=url, step=step, local=True) == [True] * group.count
    assert alike(group.call("known", url=url, local=True))[0] == [1]
    for process in range(group.count):
        own = vcjax.Repository.open(f"{url}/{process}")
        assert own.restore("step:1")["mine"] == process


def test_a_missing_repository_is_missing_everywhere(pair, url):
    errors = pair.fail("manage", url=url, create=False)
    assert {kind for kind, _ in errors} == {"RepositoryNotFoundError"}
    waiting = [[], None, None, {}, []]
    assert alike(pair.call("manage", url=url, read_only=True)) == waiting
    with ocp.CheckpointManager(url) as alone:
        alone.save(3, {"w": np.arange(3)})
    assert alike(pair.call("known", url=url)) == waiting
    assert alike(pair.call("reload", url=url))[0] == [3]


def test_the_metadata_of_a_run_are_process_0s(pair, url):
    """Known to everybody before there is a step; what came first stands."""
    for words in ("first", "second"):
        pair.call("manage", url=url, metadata=words)
        assert alike(pair.call("run_metadata", url=url)) == {"of": "first 0"}
    with ocp.CheckpointManager(url) as alone:
        assert alone.metadata().custom_metadata == {"of": "first 0"}


@pytest.mark.parametrize("kind", ["standard", "pytree", "async", "composite"])
def test_checkpointers(pair, url, kind):
    """A path for all processes: saved, refused without force, saved again, restored."""
    call = {"url": url, "shape": pair.shape, "kind": kind}
    for step in (0, 1):
        for process, answer in enumerate(
            pair.call("checkpoint", step=step, force=step > 0, **call)
        ):
            data = f"position {step} of {process}" if kind == "composite" else None
            assert answer == [[], step, data]
        errors = pair.fail("checkpoint", step=2, **call)
        assert {kind for kind, _ in errors} == {"ValueError"}
        assert all("already exists" in message for _, message in errors)
    for process in (0, 1):
        errors = pair.fail("checkpoint_wrong_json", url=url, process=process)
        assert errors[process][0] == "TypeError"
        assert errors[1 - process][0] == "ProcessError"
    repo = vcjax.Repository.open(url)
    assert len(list(repo.log())) == 2
    assert repo.fsck().ok
    found = repo.restore()
    found = found["state"] if kind == "composite" else found
    np.testing.assert_array_equal(found["params"]["v"], content(1)["params"]["v"])


def test_a_process_is_killed_during_a_save_in_the_background(start, groups, url):
    """The others say so in time; the step is not listed; all, started afresh, go on."""
    doomed = start(2)
    shape = doomed.shape
    doomed.call("manage", url=url, timeout=TIMEOUT)
    doomed.call("train", url=url, shape=shape, steps=[0], losses=[1.0])
    doomed.start("kill_manager", url=url, shape=shape, victim=1, step=1)
    answer, nothing = doomed.answers()
    assert nothing is None
    found = answer["result"]
    assert found["kind"] in ("ProcessTimeoutError", "ProcessError"), found
    assert "step 1, saved in the background, failed: process 1 of 2" in found["message"]
    assert "restart all" in found["hint"]
    assert found["steps"] == [0]
    check_goes_on(url, groups[4])


@pytest.mark.parametrize("where", ["publish", pytest.param("write", marks=pytest.mark.slow)])
def test_process_0_is_killed_during_a_save_in_the_background(start, groups, url, where):
    """JAX's coordination service dies with it, and JAX ends the other, if not our error."""
    doomed = start(2)
    shape = doomed.shape
    doomed.call("manage", url=url, timeout=TIMEOUT)
    doomed.call("train", url=url, shape=shape, steps=[0], losses=[1.0])
    doomed.start("kill_manager", url=url, shape=shape, victim=0, step=1, where=where)
    nothing, answer = doomed.answers()
    assert nothing is None
    assert answer is None or answer["result"]["kind"] == "ProcessError", answer
    check_goes_on(url, groups[4])


def check_goes_on(url, fresh):
    """Step 0 is whole and step 1 is not there; other processes go on from there."""
    repo = vcjax.Repository.open(url)
    assert repo.resolve("HEAD").step == 0
    assert repo.fsck().ok
    assert alike(fresh.call("manage", url=url))[0] == [0]
    place = {"url": url, "shape": fresh.shape}
    for answer in fresh.call("restored", **place):
        assert (answer["wrong"], answer["placed"], answer["rest"]) == ([], True, True)
    assert alike(fresh.call("train", steps=[1], losses=[1.0, 0.5], **place))[:2] == [[True], [0, 1]]

"""Every name that callers import from Orbax is here, and where storage is touched it is ours."""

import ast
from pathlib import Path

import orbax.checkpoint
import pytest

import vcjax
import vcjax.orbax

OURS = {
    "AsyncCheckpointer",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "Checkpointer",
    "PyTreeCheckpointer",
    "StandardCheckpointer",
    "checkpoint_manager",
    "checkpoint_managers",
    "checkpointers",
}
THEIRS = {name for name in dir(orbax.checkpoint) if not name.startswith("_")}


def test_every_public_name_of_orbax_is_listed():
    assert set(dir(vcjax.orbax)) >= THEIRS
    assert len(THEIRS) > 60
    assert vcjax.orbax.__version__ == orbax.checkpoint.__version__


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_a_name_is_orbaxs_object_or_ours(name):
    here, there = getattr(vcjax.orbax, name), getattr(orbax.checkpoint, name)
    assert (here is not there) == (name in OURS)


MANAGERS = {"CheckpointManager", "CheckpointManagerOptions"}
SUBMODULES = {
    "checkpoint_manager": MANAGERS,
    "checkpoint_managers": MANAGERS,
    "checkpointers": {n for n in OURS if n.endswith("Checkpointer")},
}


@pytest.mark.parametrize("module", SUBMODULES)
def test_submodules_with_classes_of_ours_have_all_names(module):
    here, there = getattr(vcjax.orbax, module), getattr(orbax.checkpoint, module)
    public = {name for name in dir(there) if not name.startswith("_")}
    differ = {name for name in public if getattr(here, name) is not getattr(there, name)}
    assert differ == SUBMODULES[module]
    for name in differ:
        assert getattr(here, name) is getattr(vcjax.orbax, name)


def test_names_that_are_nowhere():
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(vcjax.orbax, "no_such_name")  # noqa: B009  which no checker of types knows
    from vcjax.orbax import args, checkpoint_utils

    assert args.StandardSave is orbax.checkpoint.args.StandardSave
    assert checkpoint_utils.construct_restore_args


def test_importing_it_imports_neither_orbax_nor_jax(processes):
    code = "import sys, vcjax.orbax as ocp; print({'jax', 'orbax', 'numpy'} & set(sys.modules))"
    assert processes.python(code).finish()[0] == "set()\n"


ASSIGNED = """
import sys, tempfile
import orbax.checkpoint
import vcjax.orbax
orbax.checkpoint.CheckpointManager = vcjax.orbax.CheckpointManager
orbax.checkpoint.CheckpointManagerOptions = vcjax.orbax.CheckpointManagerOptions

# Code of others, imported now.
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

with CheckpointManager(tempfile.mkdtemp(), options=CheckpointManagerOptions(max_to_keep=2)) as m:
    assert isinstance(m, ocp.CheckpointManager)
    for step in range(3):
        m.save(step, args=ocp.args.StandardSave({"w": np.full(2, step)}))
    m.wait_until_finished()
    print(m.all_steps(), [commit.step for commit in m.repo.log()])
"""


def test_it_can_be_assigned_in_the_place_of_orbaxs_class(processes):
    assert processes.python(ASSIGNED).finish()[0] == "[1, 2] [2, 1, 0]\n"


def test_orbaxs_own_options_are_accepted(tmp_path):
    options = orbax.checkpoint.CheckpointManagerOptions(max_to_keep=1)
    with vcjax.orbax.CheckpointManager(tmp_path, options) as manager:
        manager.save(1, {"w": 1})
        manager.save(2, {"w": 2})
        assert manager.all_steps() == [2]
        assert manager.options is options
    fields = set(vars(orbax.checkpoint.CheckpointManagerOptions()))
    assert set(vars(vcjax.orbax.CheckpointManagerOptions())) - fields == {
        "overwrite",
        "process_timeout_s",
        "step_folders",
    }


def test_the_stub_lists_the_names_that_are_ours():
    stub = ast.parse(Path(vcjax.orbax.__file__).with_name("__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.level]
    listed = {alias.asname for node in imports for alias in node.names}
    assert listed == OURS == {*vcjax.orbax.__all__, *SUBMODULES}

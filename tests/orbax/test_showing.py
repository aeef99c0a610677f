"""What `vcjax show` prints of the steps of a manager."""

import json

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vcjax.cli import main


def spread(value, names, *spec):
    devices = np.array(jax.devices()[: 2 ** len(names)]).reshape([2] * len(names))
    return jax.device_put(value, NamedSharding(Mesh(devices, names), PartitionSpec(*spec)))


def test_a_line_for_each_sharding(ours, tmp_path, capsys):
    tree = {name: spread(np.ones((4, 2)), ("x",), "x") for name in ("a", "b", "d")}
    tree["c"] = spread(np.ones(4), ("x", "y"))
    tree["e"] = spread(np.ones(4), ("x", "y"), ("x", "y"))
    options = ours.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ours.CheckpointManager(tmp_path, options=options, metadata={"of": "me"}) as made:
        state = ours.args.PyTreeSave(tree, custom_metadata={"v": 2})
        made.save(0, args=ours.args.Composite(state=state, config=ours.args.JsonSave([1])))
    assert main(["show", f"--repo={tmp_path}"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith("Item config:"))
    assert [" ".join(line.split()) for line in lines[at:]] == [
        "Item config: json by JsonCheckpointHandler",
        "Item state: tree by PyTreeCheckpointHandler",
        '3 leaves split by ["x"] over 2 devices, x=2',
        "1 leaf replicated over 4 devices, x=2 y=2",
        '1 leaf split by [["x", "y"]] over 4 devices, x=2 y=2',
        'custom_metadata: {"v": 2}',
        'root_metadata: {"of": "me"}',
    ]
    assert main(["show", f"--repo={tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["commit"]["metadata"]["orbax"]
    assert len(found["items"]["state"]["shardings"]) == 3
    made.repo.commit({"w": 1}, metadata={"orbax": {"item": "anybody's"}})
    assert main(["show", f"--repo={tmp_path}"]) == 0
    assert """{"item": "anybody's"}""" in capsys.readouterr().out

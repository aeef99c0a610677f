"""`scripts/sweep_merge.py` on networks like the demo's."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vcjax
from vcjax import merging
from vcjax.cli.commands import demo_training

ROOT = Path(__file__).resolve().parent.parent.parent


def loaded(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_tested", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_script_draws_what_merges_reach(tmp_path: Path) -> None:
    script = loaded("scripts/sweep_merge.py")
    config = loaded("configs/sweep.py").get_config()
    known = {name: method.to_dict() for name, method in config.methods.items()}
    for name, parameters in known.items():
        assert merging.from_config(name, parameters).needs_base
    config.number, config.adamerging_steps, config.adamerging_batch = 3, 2, 8
    config.methods = ConfigDict({"task_arithmetic": {}})

    repo = vcjax.Repository.init(tmp_path / "repo")
    plain = jax.device_get(demo_training.create_state(0).params)
    repo.commit({"params": plain}, "plain")
    repo.tag("base")
    random = np.random.default_rng(0)
    for name in config.models:
        tuned = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype("f"), plain)
        repo.branch(name, at="base")
        repo.commit({"params": tuned}, name, branch=name)
    base, models = script.load(config, repo.url)
    jax.tree.map(np.testing.assert_array_equal, base, plain)

    digits = demo_training.load_digits(0)
    small = {
        name: demo_training.Digits(view.train, (view.test[0][:20], view.test[1][:20]))
        for name, view in digits.items()
    }
    curves = script.sweep_methods(config, base, models, small)
    assert list(curves) == ["task_arithmetic"]
    merged = vcjax.merge(models, merging.task_arithmetic(0.75), base)
    for view in config.models:
        expected = float(script.accuracy(merged, small[view]))
        # one image of twenty may be on the edge between two digits
        assert float(curves["task_arithmetic"][view][1]) == pytest.approx(expected, abs=0.051)
    learned = script.learn(config, base, models, small)
    assert set(learned) == {"faded", "tilted"}
    picture = tmp_path / "sweep.png"
    script.draw(config, curves, learned, str(picture))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

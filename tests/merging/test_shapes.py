"""The shapes in signatures are those that arrays have, of every method, rank by rank."""

import pytest

from ..subprocesses import ROOT, Processes

CHECKED = """
    import sys
    from jaxtyping import install_import_hook

    packages = [f"vcjax.merging.{name}" for name in ("kernels", "steps", "recipes", "run")]
    with install_import_hook(packages, "beartype.beartype"):
        from vcjax import merging
        merging.methods()

    import jax
    from tests.merging.table import RANKS, TABLE, models, tree

    jax.config.update("jax_disable_most_optimizations", True)
    if sys.argv[1] == "wrong":
        merging.chain(merging.task_vectors()).transforms[0].apply(3, ())
    for row in TABLE:
        for shape in ((6, 8), *RANKS):
            given = [tree(seed, shape=shape) for seed in range(row.few)]
            merging.merge(given, row.method(), **row.inputs(shape=shape))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["right", "wrong"])
def test_signatures_hold_at_run_time(mode: str, processes: Processes) -> None:
    pytest.importorskip("beartype")
    right = mode == "right"
    _, problems = processes.python(CHECKED, mode, cwd=ROOT).finish(0 if right else 1)
    assert right or "TypeCheckError" in problems

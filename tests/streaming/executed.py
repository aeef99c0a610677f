"""What the executor makes of trees in memory."""

import numpy as np

from vcjax.streaming import model as models
from vcjax.streaming.executor import execute
from vcjax.streaming.merge import Merge


def merged(method, trees, base=None, weights=None, key=None, dtype=None, **given):
    """What the executor makes of trees in memory."""
    sources = tuple(models.of_tree(x) for x in trees)
    merge = Merge(
        sources, method, base and models.of_tree(base), weights, key, dtype and np.dtype(dtype).name
    )
    plan = merge.jobs()
    found = {job.path: np.zeros(job.size, job.spec.dtype) for job in plan}
    for piece in execute(plan, key=key, **given):
        found[piece.job.path][piece.start : piece.start + piece.values.size] = piece.values
    return {job.path: found[job.path].reshape(job.spec.shape) for job in plan}

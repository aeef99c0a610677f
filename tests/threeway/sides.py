"""Two sides that conflict in four leaves: three of numbers, one of structure."""

import numpy as np

W = np.array([1, 2, 3, 4], np.float32)
BASE = {"p": {"a": W, "b": W, "c": W}, "q": W, "n": 1}
OURS = {"p": {"a": W + 1, "b": W + 1, "c": W}, "q": W + 1, "n": 2}
THEIRS = {"p": {"a": W + 3, "b": W + 3, "c": W + 3}, "q": W[:2], "n": 5}

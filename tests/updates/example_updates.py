"""Updates of a user's own, as a package has them; tests install it (`conftest.py`)."""

import numpy as np

from vcjax.updates import FIRST, ArrayContent, Parts

reads = []
"""(how many elements were read of a base or part, of how many), as it happens."""


def read(content, index):
    array = content.read(index)
    reads.append((array.size, int(np.prod(content.shape, dtype=int))))
    return array


def bits(array):
    """The bytes of each element along a further axis."""
    flat = np.ascontiguousarray(array).view(np.uint8)
    return flat.reshape(*np.shape(array), np.asarray(array).itemsize)


def middle(first, second):
    """The mean of real floats, rounded once; of other kinds that of their bytes."""
    if first.dtype in (np.float32, np.float16):
        with np.errstate(all="ignore"):
            mean = (first.astype(np.float64) + second.astype(np.float64)) / 2
            return bits(mean.astype(first.dtype))
    return bits(first) // 2 + bits(second) // 2


class Average:
    """A leaf near the mean of two others: what is left is an exact residual of the bytes."""

    name = "average"
    by_regions = True

    def encode(self, bases, new):
        first, second = (base.read() for base in bases)
        [leaf] = new
        return Parts({"residual": ArrayContent(bits(leaf.read()) - middle(first, second))})

    def apply(self, bases, parts, region=FIRST):
        first, second = (read(base, region.index) for base in bases)
        residual = parts.arrays["residual"]
        index = region.index
        within = None if index is None else (*index, slice(0, residual.shape[-1]))
        found = bits_of(residual.read(within) + middle(first, second), first.dtype)
        return found.reshape(first.shape)


def bits_of(data, dtype):
    return np.ascontiguousarray(data).view(dtype)


class Pair:
    """Two leaves of integers as their sum and the second."""

    name = "pair"
    by_regions = True

    def encode(self, bases, new):
        first, second = (leaf.read() for leaf in new)
        return Parts({"sum": ArrayContent(first + second), "second": ArrayContent(second)})

    def apply(self, bases, parts, region=FIRST):
        second = read(parts.arrays["second"], region.index)
        return second if region.leaf else read(parts.arrays["sum"], region.index) - second


class Stack:
    """Leaves of one shape as one stacked array, their order reversed; asked for whole."""

    name = "stack"
    by_regions = False

    def encode(self, bases, new):
        stacked = np.stack([leaf.read() for leaf in reversed(new)])
        return Parts({"stack": ArrayContent(stacked)}, {"leaves": len(new)})

    def apply(self, bases, parts, region=FIRST):
        assert region.index is None
        stack = parts.arrays["stack"]
        row = parts.parameters["leaves"] - 1 - region.leaf
        whole = tuple(slice(0, length) for length in stack.shape[1:])
        return read(stack, (slice(row, row + 1), *whole))[0]


class Copy:
    """What tests bend: a leaf that is its base, or a part."""

    name = "copy"
    by_regions = True
    bent = None

    def encode(self, bases, new):
        if self.bent == "encode":
            raise KeyError("no such thing")
        if self.bent == "parameters":
            return Parts({}, {"rate": float("nan")})
        if self.bent == "name":
            return Parts({"../part": ArrayContent(np.zeros(1))})
        if self.bent == "parts":
            return {"part": new[0].read()}
        return Parts({} if bases else {"part": ArrayContent(new[0].read())})

    def apply(self, bases, parts, region=FIRST):
        content = bases[0] if bases else parts.arrays["part"]
        array = content.read(region.index)
        if self.bent == "apply":
            raise ZeroDivisionError("out of luck")
        if self.bent == "dtype":
            return array.astype(np.float64)
        if self.bent == "value":
            return array + 1
        return array


AVERAGE, PAIR, STACK, COPY = Average(), Pair(), Stack(), Copy()

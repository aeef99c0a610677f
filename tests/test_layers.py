"""The folder listing, the docstring, README and the import contract say the same."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import vcjax

PACKAGE = Path(vcjax.__file__).parent
ROOT = PACKAGE.parent


def words(text):
    return set(re.findall(r"[a-z]+", text))


def diagram(text):
    """The lines of the first indented or fenced block that ends with `tree` and `errors`."""
    lines = [line.strip() for line in text.splitlines()]
    last = next(i for i, line in enumerate(lines) if line == "errors" and lines[i - 1] == "tree")
    first = last
    while lines[first - 1] and not lines[first - 1].startswith("```"):
        first -= 1
    return lines[first : last + 1]


def packages():
    """What is in the folder: packages, and errors.py."""
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return found | {"errors"}


def contract():
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return next(c for c in contracts if c["type"] == "layers")["layers"]


def planned():
    """What the contract has in parentheses and the folder has not: later issues bring it."""
    return set(re.findall(r"\(([a-z]+)\)", " ".join(contract()))) - packages()


def test_the_docstring_lists_the_folder():
    assert words(" ".join(diagram(vcjax.__doc__))) - planned() == packages()


def test_the_import_contract_has_the_same_layers():
    drawn = [words(line) - planned() for line in diagram(vcjax.__doc__)]
    assert [words(layer) - planned() for layer in contract()] == drawn


def test_readme_draws_the_same_diagram():
    readme = ROOT / "README.md"
    assert readme.exists()
    assert diagram(readme.read_text()) == diagram(vcjax.__doc__)


def test_imports_keep_the_contract(processes):
    command = processes.start(Path(sys.executable).parent / "lint-imports", "--no-cache", cwd=ROOT)
    command.finish()


LIGHT = """
import sys
import vcjax
import vcjax.errors
from vcjax.history import Commit, History, Manifest, Refs, Resolver
from vcjax.storage import open_store
repo = vcjax.Repository.open(sys.argv[1])
commits = list(repo.log())
assert [commit.message for commit in commits] == ["two", "one"]
assert repo.resolve("best:loss").message == "two"
assert list(repo.manifest().leaves) == ["w"]
repo.branch("side"), repo.tag("v1"), repo.switch("side"), repo.undo()
heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "zarr"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""


def test_reading_history_imports_no_jax(repo, processes):
    repo.commit({"w": 1}, "one", metrics={"loss": 2})
    repo.commit({"w": 2}, "two", metrics={"loss": 1})
    assert processes.python(LIGHT, repo.url).finish()[0] == "heavy: []\n"


def test_importing_vcjax_imports_next_to_nothing(processes):
    code = "import sys, vcjax; print({'jax', 'numpy', 'tensorstore'} & set(sys.modules))"
    assert processes.python(code).finish()[0] == "set()\n"


PUBLIC = {
    "CheckpointManager",
    "CheckpointManagerOptions",
    "Commit",
    "ConflictError",
    "CorruptionError",
    "LeafChange",
    "Manifest",
    "MergePlan",
    "Ref",
    "Repository",
    "TreeDiff",
    "VcjaxError",
    "__version__",
    "diff",
    "merge",
    "merging",
}


def test_the_public_names_are_pinned():
    assert set(vcjax.__all__) == PUBLIC
    assert set(dir(vcjax)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there(name):
    assert getattr(vcjax, name) is not None


def test_every_error_is_in_the_drawn_tree():
    """The tree in the docstring of vcjax.errors is the tree of classes."""
    from vcjax import errors

    drawn = {}
    stack = []
    for line in str(errors.__doc__).splitlines():
        match = re.match(r"\s{4}([│ ├└─]*)([A-Z]\w+Error)", line)
        if match:
            depth = len(match[1]) // 4
            stack[depth:] = [match[2]]
            drawn[match[2]] = stack[depth - 1] if depth else None
    defined = {
        name: cls
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.VcjaxError)
    }
    assert set(drawn) == set(defined)
    for name, parent in drawn.items():
        if parent:
            assert defined[name].__bases__[0].__name__ == parent

"""Trees that stand for folders of files: dicts are folders, arrays the bytes of files."""

from collections.abc import Iterator

from vcjax.formats.files import name_problem
from vcjax.history import LeafEntry
from vcjax.tree import Node, join


def file_problems(root: Node | LeafEntry, path: str | None = None) -> Iterator[str]:
    """What keeps a tree from being written as files and folders, a line for each.

    Args:
        root: of the tree, whose leaves are stored ones.
        path: its leaf path.
    """
    if not isinstance(root, Node) or root.kind != "dict":
        yield f"{path or 'the item'}: it is no folder of files"
        return
    for key, child in zip(root.keys, root.children, strict=True):
        name, below = str(key), join(path, key)
        if problem := name_problem(name):
            yield f"{name[:80]!r} cannot be the name of a file: {problem}"
        elif isinstance(child, Node):
            yield from file_problems(child, below)
        elif child.spec.is_value:
            yield f"{below}: a Python {child.spec.dtype}, and not the bytes of a file"

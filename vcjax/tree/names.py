"""Names of classes, and the way back that never imports or runs anything."""

import sys
from types import ModuleType


def qualified_name(cls: type) -> str:
    """The name "module:Qualified.Name" of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def find_class(name: str) -> type | None:
    """The class called `name` if its module is already imported, else None.

    Looks only into the dictionaries of modules and classes, so neither an
    import nor a module's `__getattr__` (which may import) can be triggered by
    a name that was read from a repository.

    Args:
        name: as `qualified_name` gives it.
    """
    module_name, _, qualname = name.partition(":")
    found: object = sys.modules.get(module_name)
    for part in qualname.split("."):
        if isinstance(found, ModuleType):
            # Not vars(): that would load a module which importlib.util.LazyLoader put off.
            found = object.__getattribute__(found, "__dict__").get(part)
        elif isinstance(found, type):
            found = vars(found).get(part)
        else:
            return None
    return found if isinstance(found, type) else None

"""What the metadata of a commit say of the items of a step, in lines that can be read.

`vcjax.orbax.items.record` says them: kinds, handlers and, as text of Orbax's, shardings.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


def item_fields(orbax: Any) -> list[tuple[str, str]]:
    """[(label, text)] of the map "orbax" in the metadata of a commit.

    Anybody may put anything there: what is not understood is shown as it is.
    """
    try:
        return list(_fields(orbax))
    except (ValueError, LookupError, TypeError, AttributeError):
        return [("orbax:", json.dumps(orbax))]


def _fields(orbax: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rest = dict(orbax)
    items = {"Item:": rest.pop("item")} if "item" in rest else {}
    items |= {f"Item {name}:": record for name, record in rest.pop("items", {}).items()}
    for label, record in items.items():
        yield from _item(label, dict(record))
    for name, value in rest.items():
        yield f"{name}:", json.dumps(value)


def _item(label: str, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    handler = record.pop("handler", "").rpartition(".")[2]
    shardings = record.pop("shardings", [])
    yield label, f"{record.pop('kind')} by {handler}" if handler else record.pop("kind")
    for text, ranges in shardings:
        count = sum(stop - start for start, stop in ranges)
        yield "", f"  {count:,} {'leaf' if count == 1 else 'leaves'} {_sharding(json.loads(text))}"
    for name, value in record.items():
        yield "", f"  {name}: {json.dumps(value)}"


def _sharding(found: Mapping[str, Any]) -> str:
    """Such as: split by ("data", None) over 8 devices, data=4 model=2."""
    sizes = zip(found["axis_names"], found["shape"], strict=True)
    mesh = " ".join(f"{name}={size}" for name, size in sizes)
    spec = found["partition_spec"]
    how = f"split by {json.dumps(spec)}" if any(spec) else "replicated"
    return f"{how} over {math.prod(found['shape'])} devices, {mesh}"

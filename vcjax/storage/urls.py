"""URLs of stores and the TensorStore key-value specs they stand for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote_to_bytes, urlsplit

from vcjax.errors import StorageError

SCHEMES = ("file", "memory", "s3", "gs")


@dataclass(frozen=True)
class Location:
    """Where a store is.

    Attributes:
        url: canonical URL, as shown to the user.
        spec: TensorStore key-value store spec.
        folder: the folder on this machine, for local stores.
        timeout_s: how long a bucket may take for one answer, seconds; None for any time.
    """

    url: str
    spec: dict[str, Any]
    folder: Path | None = None
    timeout_s: float | None = None


def parse_url(url: str | os.PathLike[str]) -> Location:
    """What a path or URL stands for.

    `PATH`, `file:///PATH`, `memory://NAME`, `gs://BUCKET/PREFIX` and
    `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`; an S3 endpoint may also come
    from the standard variables AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL. Buckets take
    `?timeout=SECONDS` for one answer, 30 by default.

    Raises:
        StorageError: unknown scheme, no bucket in the URL, or a path that cannot be one.
    """
    text = _checked_text(url)
    if "://" not in text:
        return _local(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise StorageError(f"{text!r} is no URL: {error}") from error
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StorageError(
                f"{text!r} names another host", hint=f"write file:///{parts.netloc}{parts.path}"
            )
        # Bytes that are no text are percent-encoded, too. The query and fragment of a path are a
        # part of it: `file:///runs/a?b#c` names what a shell calls /runs/a?b#c.
        path = unquote_to_bytes(os.fsencode(text.partition("://")[2].removeprefix(parts.netloc)))
        return _local(os.fsdecode(path), expand=False)
    path = "/".join(filter(None, parts.path.split("/")))
    if parts.scheme == "memory":
        name = "/".join(filter(None, (parts.netloc, path)))
        return Location(f"memory://{name}", {"driver": "memory", "path": f"{name}/"})
    if parts.scheme not in SCHEMES:
        raise StorageError(
            f"unknown scheme {parts.scheme!r} in {text!r}",
            hint="use a path, file://, memory://, s3:// or gs://",
        )
    return _bucket(text, parts, path)


def _checked_text(url: str | os.PathLike[str]) -> str:
    text = os.fsdecode(url)
    if "\0" in text:
        raise StorageError(f"{text!r} holds a NUL, which no place has in its name")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise StorageError(f"{text!r} is not valid Unicode: {error}") from error
    if text.startswith("file:/") and not text.startswith("file://"):
        return text.replace("file:", "file://", 1)  # RFC 8089 has both
    return text


def _bucket(text: str, parts: SplitResult, path: str) -> Location:
    if not parts.netloc:
        raise StorageError(f"no bucket in {text!r}", hint=f"write {parts.scheme}://BUCKET/PREFIX")
    options = _options(text, parts.scheme, parts.query, parts.fragment)
    spec: dict[str, Any] = {"bucket": parts.netloc, "path": f"{path}/" if path else ""}
    canonical = f"{parts.scheme}://{parts.netloc}/{path}".rstrip("/")
    if parts.query:  # what opens the store again
        canonical += f"?{parts.query}"
    timeout_s = _timeout(text, options)
    if parts.scheme == "gs":
        return Location(canonical, {"driver": "gcs", **spec}, timeout_s=timeout_s)
    spec = {"driver": "s3", **spec, **_s3_options(options)}
    return Location(canonical, spec, timeout_s=timeout_s)


TIMEOUT_S = 30.0
"""How long a bucket that is out of reach is waited for, unless its URL says otherwise."""

_OPTIONS = {"s3": ("endpoint", "region", "timeout"), "gs": ("timeout",)}


def _options(url: str, scheme: str, query: str, fragment: str) -> dict[str, list[str]]:
    """What follows the `?` of a bucket's URL; what is not known is a slip."""
    options = parse_qs(query, keep_blank_values=True)
    known = _OPTIONS[scheme]
    unknown = [f"?{name}=" for name in options if name not in known]
    if fragment or unknown:
        raise StorageError(
            f"{url!r} has {unknown[0] if unknown else '#'}, which means nothing there",
            hint=f"{scheme}:// URLs take {', '.join(known)}",
        )
    return options


def _timeout(url: str, options: dict[str, list[str]]) -> float:
    text = options.get("timeout", [str(TIMEOUT_S)])[0]
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise StorageError(f"{url!r}: {text!r} are no seconds", hint="write ?timeout=60")
    return seconds


def _s3_options(query: dict[str, list[str]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    endpoint = query.get("endpoint", [""])[0] or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")
    )
    if endpoint:
        options["endpoint"] = endpoint
    region = query.get("region", [""])[0] or os.environ.get(
        "AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "")
    )
    if region:
        options["aws_region"] = region
    if {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= os.environ.keys():
        # They come first in any case; but the library would print of each file that is not there.
        options["aws_credentials"] = {"type": "environment"}
    return options


def _local(text: str, expand: bool = True) -> Location:
    """A folder: of a path relative to the current one, with `~` and `..` resolved.

    `..` after a symbolic link is the folder above what that leads to, as in `cd -P` and `open`.
    """
    if not text:
        raise StorageError("the path is empty", hint="write `.` for the current folder")
    try:
        path = Path(text).expanduser() if expand else Path(text)
    except RuntimeError as error:  # no such user
        raise StorageError(
            f"the home folder of {text!r} is not known: {error}",
            hint=f"write ./{text} for a folder of that name, or the path in full",
        ) from error
    folder = path.absolute()
    if ".." in folder.parts:
        folder = Path(os.path.realpath(folder))
    problem = _unsupported(folder)
    if problem:
        raise StorageError(f"{str(folder)!r} cannot hold a repository: {problem}", hint=_RENAME)
    return Location(str(folder), {"driver": "file", "path": f"{folder}/"}, folder)


_RENAME = "rename the folder, or reach it by a symbolic link of another name"


def _unsupported(folder: Path) -> str | None:
    """What TensorStore would take for another path."""
    if "\0" in str(folder):
        return "it has a NUL in its name"
    if os.sep != "\\" and "\\" in str(folder):
        return "it has a backslash in its name"
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return None

"""URLs of stores and the TensorStore key-value specs they stand for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vcjax.errors import StorageError

SCHEMES = ("file", "memory", "s3", "gs")


@dataclass(frozen=True)
class Location:
    """Where a store is.

    Attributes:
        url: canonical URL, as shown to the user.
        spec: TensorStore key-value store spec.
        folder: the folder on this machine, for local stores.
    """

    url: str
    spec: dict[str, Any]
    folder: Path | None = None


def parse_url(url: str | os.PathLike[str]) -> Location:
    """What a path or URL stands for.

    `PATH`, `file:///PATH`, `memory://NAME`, `gs://BUCKET/PREFIX` and
    `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`; an S3 endpoint may also come
    from the standard variables AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL.

    Raises:
        StorageError: unknown scheme, or no bucket in the URL.
    """
    text = os.fspath(url)
    if "://" not in text:
        return _local(Path(text))
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise StorageError(f"{text!r} is no URL: {error}") from error
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StorageError(
                f"{text!r} names another host", hint=f"write file:///{parts.netloc}{parts.path}"
            )
        return _local(Path(unquote(parts.path)))
    path = "/".join(filter(None, parts.path.split("/")))
    prefix = f"{path}/" if path else ""
    if parts.scheme == "memory":
        name = "/".join(filter(None, (parts.netloc, path)))
        return Location(f"memory://{name}", {"driver": "memory", "path": f"{name}/"})
    if parts.scheme not in SCHEMES:
        raise StorageError(
            f"unknown scheme {parts.scheme!r} in {text!r}",
            hint="use a path, file://, memory://, s3:// or gs://",
        )
    if not parts.netloc:
        raise StorageError(f"no bucket in {text!r}", hint=f"write {parts.scheme}://BUCKET/PREFIX")
    spec: dict[str, Any] = {"bucket": parts.netloc, "path": prefix}
    canonical = f"{parts.scheme}://{parts.netloc}/{path}".rstrip("/")
    if parts.scheme == "gs":
        return Location(canonical, {"driver": "gcs", **spec})
    if parts.query:  # what opens the store again
        canonical += f"?{parts.query}"
    return Location(canonical, {"driver": "s3", **spec, **_s3_options(parse_qs(parts.query))})


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
    return options


def _local(path: Path) -> Location:
    folder = path.expanduser().absolute()
    return Location(str(folder), {"driver": "file", "path": f"{folder}/"}, folder)

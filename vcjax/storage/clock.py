"""The clock of a bucket's service, which its answers carry."""

import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime

from vcjax.errors import StorageError
from vcjax.storage.urls import Location

TIMEOUT_SECONDS = 20.0
"""How long the service may take to say what time it is."""


def endpoint_of(location: Location) -> str:
    """The address of the service that a bucket is at."""
    if location.spec["driver"] == "gcs":
        return "https://storage.googleapis.com"
    if "endpoint" in location.spec:
        return str(location.spec["endpoint"])
    region = location.spec.get("aws_region")
    return f"https://s3.{region}.amazonaws.com" if region else "https://s3.amazonaws.com"


def offset(location: Location) -> float:
    """How far the clock of a bucket's service is ahead of this machine's, seconds.

    Any answer has a `Date` (RFC 9110, section 6.6.1), one that refuses too, so the
    question needs no credentials.

    Raises:
        StorageError: the service does not answer, or does not say.
    """
    url = endpoint_of(location)
    request = urllib.request.Request(url, method="HEAD")
    before = time.time()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refused:
        date = refused.headers.get("Date")
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot ask {url} what time it is: {error}",
            hint="check that it can be reached; what is garbage is told by its clock alone",
        ) from error
    if date is None:
        raise StorageError(
            f"{url} does not say what time it is (no Date in its answer)",
            hint="collect from another service's copy of the repository",
        )
    return parsedate_to_datetime(date).timestamp() - before

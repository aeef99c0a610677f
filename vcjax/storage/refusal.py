"""What disks and buckets refuse, and TensorStore says in errors of its own, as errors of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from vcjax.errors import StorageError, VcjaxError
from vcjax.storage.tensorstore_internals import is_full, is_held, is_refused


@contextmanager
def storage_errors(action: str, url: str, key: str) -> Iterator[None]:
    """Turns TensorStore's errors (ValueError, OSError…) into `StorageError` with a hint."""
    try:
        yield
    except VcjaxError:
        raise
    except TimeoutError as error:
        raise StorageError(
            f"cannot {action} {key!r} in {url}: there is no answer",
            hint="check the network, the name of the bucket, its region and endpoint, and your "
            "credentials; ?timeout=SECONDS in its URL waits longer",
        ) from error
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        hint = "check that the place exists and that you may read and write it"
        if is_full(error):
            hint = "the disk is full: free space and try again; nothing committed before is touched"
        elif is_refused(error):
            hint = "this place is not writable for you"
        elif is_held(error):
            hint = "somebody writes it just now, or was killed doing so: then delete that file"
        raise StorageError(f"cannot {action} {key!r} in {url}: {error}", hint=hint) from error

"""Objects of S3, or of whatever speaks its protocol: looked at, then read in parts that are all of one version.

Credentials, region and endpoint are found as AWS's own tools find them, in AWS_ variables among others.
The only obstore.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shared.errors import ConfigError, SourceUnavailable

if TYPE_CHECKING:
    from obstore.store import S3Store

PART_BYTES = 8 << 20
_RETRIES = 3
_RETRY_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
# A part may be slow, as long as it moves.
_PART_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Object:
    """One version of an object: its size in bytes, and the ETag that no other version has."""

    bucket: str
    key: str
    size: int
    etag: str


class S3:
    """The objects at `endpoint`, or AWS_ENDPOINT_URL, or Amazon. Of any thread.

    Each call raises FileNotFoundError or PermissionError for what is not there or may not be read, SourceUnavailable
    where there is no answer after a few attempts.
    """

    def __init__(self, endpoint: str | None = None, *, stall_seconds: float = 30.0) -> None:
        """`stall_seconds` is how long no byte may come. Raises ConfigError where what it takes is not installed."""
        if find_spec("obstore") is None:
            raise ConfigError("S3 takes the extra `s3`: pip install 'replicast[s3]'", param="lora_s3")
        self._endpoint, self._stall_seconds = endpoint, stall_seconds

    def look(self, bucket: str, key: str) -> Object:
        """The object as it is now."""
        with _told():
            import obstore

            meta = obstore.head(self._bucket(bucket), key)
        if not meta["e_tag"]:
            raise SourceUnavailable("S3 does not say which version of the object it has.")
        return Object(bucket, key, meta["size"], meta["e_tag"])

    def read(self, found: Object) -> Iterator[bytes]:
        """Its bytes, in order. Raises SourceUnavailable if it changes meanwhile."""
        with _told():
            import obstore

            bucket = self._bucket(found.bucket)
            for begin in range(0, found.size, PART_BYTES):
                end = min(begin + PART_BYTES, found.size)
                got = obstore.get(bucket, found.key, options={"if_match": found.etag, "range": (begin, end)})
                piece = bytes(got.bytes())
                # Not every server takes notice of the condition.
                if got.meta["e_tag"] != found.etag or got.meta["size"] != found.size or len(piece) != end - begin:
                    raise _changed()
                yield piece

    def _bucket(self, name: str) -> S3Store:
        from obstore.store import S3Store

        client: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=self._stall_seconds),
            "timeout": timedelta(seconds=_PART_SECONDS),
        }
        config: dict[str, Any] = {}
        if self._endpoint:
            config["endpoint"] = self._endpoint
            client["allow_http"] = self._endpoint.startswith("http://")
        retry: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
        return S3Store(name, config=config, client_options=client, retry_config=retry)  # type: ignore[arg-type]


@contextmanager
def _told() -> Iterator[None]:
    """What obstore raises, in our words: its own tell of addresses and of how it tried."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError("S3 does not let us read it") from error
    except exceptions.PreconditionError as error:
        raise _changed() from error
    except (FileNotFoundError, ValueError) as error:
        raise FileNotFoundError("S3 has no such object") from error
    except exceptions.BaseError as error:
        raise SourceUnavailable("S3 does not answer as it should; try again later.", retry_after_seconds=10) from error


def _changed() -> SourceUnavailable:
    return SourceUnavailable("The object changed while it was fetched; try again.", retry_after_seconds=1)

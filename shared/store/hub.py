"""Files of the Hugging Face Hub, or of a mirror: looked at, then read as they are in one commit.

Token, mirror and whether to be offline are found as its own tools find them: HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
The only huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from shared.errors import ConfigError, SourceUnavailable

_CHUNK_BYTES = 4 << 20
_ASK_SECONDS = 10.0
_STALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a commit; `sha256` is empty for small files, of which the hub keeps none."""

    repository: str
    commit: str
    name: str
    size: int
    sha256: str


class Hub:
    """The hub at `endpoint`, or at HF_ENDPOINT, or the public one. Of any thread.

    Each call raises FileNotFoundError or PermissionError for what is not there or may not be read, SourceUnavailable
    where there is no answer, or being offline was asked for.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        """Raises ConfigError where what it takes is not installed."""
        if find_spec("huggingface_hub") is None:
            raise ConfigError("the hub takes the extra `hub`: pip install 'replicast[hub]'", param="hub")
        self._endpoint = endpoint

    def files(self, repository: str) -> list[HubFile]:
        """All files of a repository `owner/name`, as they are now."""
        with _told():
            from huggingface_hub import HfApi

            info = HfApi(endpoint=self._endpoint).model_info(repository, files_metadata=True, timeout=_ASK_SECONDS)
        if not info.sha:
            raise SourceUnavailable("The hub does not say which commit it has.")
        return [
            HubFile(repository, info.sha, each.rfilename, each.size, each.lfs.sha256 if each.lfs else "")
            for each in info.siblings or ()
            if each.size is not None
        ]

    def read(self, file: HubFile) -> Iterator[bytes]:
        """Its bytes, in order."""
        with _told():
            from httpx2 import Timeout
            from huggingface_hub import hf_hub_url
            from huggingface_hub.utils import (  # type: ignore[attr-defined]
                build_hf_headers,
                get_session,
                hf_raise_for_status,
            )

            url = hf_hub_url(file.repository, file.name, revision=file.commit, endpoint=self._endpoint)
            timeout = Timeout(_ASK_SECONDS, read=_STALL_SECONDS)
            # A model's bytes do not get smaller, and what was packed could become anything.
            headers = build_hf_headers() | {"accept-encoding": "identity"}
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
                hf_raise_for_status(response)
                yield from response.iter_raw(_CHUNK_BYTES)


@contextmanager
def _told() -> Iterator[None]:
    """What its library raises, in our words: its own have addresses in them, and advice for whoever runs it."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError("the hub does not let us read it") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise FileNotFoundError("the hub has no such file") from error
    except (errors.HFValidationError, errors.DisabledRepoError) as error:
        raise FileNotFoundError("no repository of the hub") from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceUnavailable("The hub is not asked: HF_HUB_OFFLINE says so.") from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError("the hub does not let us read it") from error
        raise SourceUnavailable(
            "The hub does not answer as it should; try again later.", retry_after_seconds=10
        ) from error
    except (HTTPError, OSError) as error:
        raise SourceUnavailable("The hub cannot be reached.", retry_after_seconds=10) from error

"""One frozen Settings, read once: flag over REPLICAST_* variable over configuration file over default.

Nobody else reads the configuration or a REPLICAST_ variable. An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from shared import sources
from shared.errors import ConfigError
from shared.logs import Format, Level
from shared.messages import WantedModel

_PREFIX = "REPLICAST_"
# Said to a worker, read below, or a client's: not settings of the gateway.
_NOT_OURS = ("REPLICAST_WORKER_", "REPLICAST_CONFIG", "REPLICAST_API_KEY")
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_-][a-z0-9._-]*")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_USUAL = {"http": ":80", "https": ":443"}


def _words(value: object) -> object:
    """A list from a variable is words separated by spaces or commas."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "replicast"


def _hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    lower = tuple(host.lower().rstrip(".") for host in hosts)
    if wrong := [host for host in lower if not _HOST.fullmatch(host)]:
        raise ValueError(f"{wrong[0]!r} is no name of a host: write it without scheme and port, or *.name, or *")
    return lower


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_origin, origins))


def _origin(text: str) -> str:
    """As a browser writes it: in lower case, and with the port only where it is not the usual one."""
    found = _ORIGIN.fullmatch(text.lower().removesuffix("/"))
    if found is None:
        raise ValueError(f"{text!r} is no origin: write scheme://host or scheme://host:port")
    scheme, host, port = found.groups(default="")
    return f"{scheme}://{host}{port if port != _USUAL.get(scheme) else ''}"


def _url(url: str) -> str:
    parsed = urlsplit(url)
    more = parsed.username or parsed.query or parsed.fragment
    if parsed.scheme not in _USUAL or more or not re.fullmatch(r"[\w.~/-]*", parsed.path, re.ASCII):
        raise ValueError("expected http:// or https://, a host, and at most a port and a path after it")
    return _origin(f"{parsed.scheme}://{parsed.netloc}") + parsed.path.rstrip("/")


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]


class Settings(BaseSettings):
    """All that an operator can set. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=_PREFIX, nested_model_default_partial_update=False
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_url: Annotated[str, AfterValidator(_url)] | None = Field(None, description="where clients reach this server")
    allowed_hosts: Annotated[Words, AfterValidator(_hosts)] = Field((), description="further names to answer to")
    allowed_origins: Annotated[Words, AfterValidator(_origins)] = Field((), description="sites whose pages may ask")
    allow_anonymous: bool = Field(False, description="let in who has no key, from wherever this can be reached")
    key_max_requests: int | None = Field(None, ge=1, description="requests that a key may have in flight")
    key_images_per_minute: int | None = Field(None, ge=1, description="images that a key may ask for in a minute")
    model: Words = Field(
        ("shapes",), description="model to serve: an embedded name, stub, or a Diffusers folder; repeatable"
    )
    alias: Words = Field(
        ("dall-e-*", "gpt-image-*", "chatgpt-image-*"),
        description="NAME=MODEL, or NAME for the first model; a name may have * in it",
    )
    num_gpus: int | None = Field(None, ge=1, le=1024, description="GPUs to use in all; without GPUs, replicas to start")
    gpus_per_model: int = Field(1, ge=1, le=64, description="GPUs of one replica")
    gpus: Words = Field((), description="GPUs to use, by index or UUID, separated by commas")
    device: str = Field(
        "auto", pattern=r"^(auto|cuda|cpu|mps|stub(:[1-9]\d{0,2})?)$", description="auto, cuda, cpu, mps, or stub[:N]"
    )
    data_dir: Path = Field(default_factory=_data_dir, description="folder for all that is kept")
    log_level: Level = Field("info", description="debug, info, warning or error")
    log_format: Format = Field("text", description="text or json")
    max_queue: int = Field(1000, ge=1, le=1_000_000, description="waiting images per model before 429")
    max_queue_seconds: float = Field(
        0.0, ge=0, le=10_000_000, description="waiting work per model in seconds of one device before 429; 0: any"
    )
    max_queue_seconds_per_key: float = Field(
        0.0, ge=0, le=10_000_000, description="waiting work per key in seconds of one device before 429; 0: any"
    )
    max_queue_per_key: int = Field(
        0, ge=0, le=1_000_000, description="waiting images per key before 429; 0 sets no limit of its own"
    )
    max_batch: int = Field(
        1, ge=1, le=64, description="pictures that one call of a pipeline may make, where that is quicker; 1 makes none"
    )
    max_attempts: int = Field(3, ge=1, le=10, description="workers that may die of one request before it fails")
    max_body_bytes: int = Field(
        256 << 10, ge=1024, le=1 << 30, description="largest JSON body, in bytes, the pictures in it not counted"
    )
    max_upload_bytes: int = Field(64 << 20, ge=1024, le=1 << 30, description="pictures of one request, in bytes")
    max_image_bytes: int = Field(50_000_000, ge=1024, le=1 << 30, description="one picture, in bytes")
    max_image_pixels: int = Field(
        4096 * 4096, ge=64, le=1 << 26, description="pixels of a picture to work from, when decoded"
    )
    max_bytes_in_flight: int = Field(
        1 << 30, ge=1 << 20, le=1 << 40, description="request bodies in memory, all together, in bytes"
    )
    max_connections: int = Field(4096, ge=16, le=1_000_000, description="open connections; one more is answered 503")
    enable_sdapi: bool = Field(False, description="answer AUTOMATIC1111's API too, under /sdapi/v1")
    png_parameters: bool = Field(True, description="write into a PNG what it was made from")
    result_seconds: float = Field(
        3600.0, ge=1, le=2_678_400, description="how long the picture of a url result is kept"
    )
    results_max_bytes: int = Field(2 << 30, ge=1 << 20, le=1 << 50, description="most bytes of pictures kept so")
    fetch_urls: bool = Field(False, description="fetch images that a request names by an https:// URL")
    fetch_hosts: Words = Field((), description="hosts to fetch from, .domain for all below it; none: any public one")
    lora_root: Path | None = Field(None, description="folder of LoRA files that clients may name, by their place in it")
    lora_max_bytes: int = Field(4 << 30, ge=1024, le=1 << 40, description="one LoRA file, in bytes")
    lora_shelf_bytes: int = Field(
        50 << 30, ge=1 << 20, le=1 << 50, description="copies of LoRA files for the workers, all together, in bytes"
    )
    lora_prepare_seconds: float = Field(
        30.0, ge=0.1, le=3600, description="a replica that has not said by then whether it could take a LoRA has no say"
    )
    lora_answer_seconds: float = Field(
        30.0, ge=0, le=3600, description="a change of LoRAs is answered 202 if not all replicas follow in this time"
    )
    lora_revert_seconds: float = Field(
        60.0, ge=0.1, le=86_400, description="a change of LoRAs that nobody could follow by then is taken back"
    )
    lora_s3: Words = Field((), description="places of S3 whose LoRA files clients may name, as bucket or bucket/prefix")
    s3_endpoint: Annotated[str, AfterValidator(_url)] | None = Field(None, description="the S3 server to ask")
    hub: Words = Field((), description="whose files of the hub may be named: owner, owner/name, or * for anybody's")
    request_timeout_seconds: float = Field(
        600.0, gt=0, le=86_400, description="longest a request may take, waiting included"
    )
    heartbeat_seconds: float = Field(
        10.0, ge=0.01, le=3600, description="between two signs of life in a stream that has nothing else to say"
    )
    drain_seconds: float = Field(30.0, ge=0, le=3600, description="time to finish running requests at shutdown")
    ping_seconds: float = Field(1.0, ge=0.02, le=60, description="between two pings of a worker")
    suspect_after_pings: int = Field(2, ge=1, le=1000, description="missed pings before a worker gets no new work")
    gone_after_pings: int = Field(4, ge=2, le=10_000, description="missed pings before a worker is given up")
    hello_seconds: float = Field(60.0, gt=0, le=3600, description="longest a worker may take to introduce itself")
    stuck_seconds: float = Field(
        30.0, gt=0, le=86_400, description="least time without a step before a worker is stuck"
    )
    load_seconds: float = Field(900.0, gt=0, le=86_400, description="longest a worker may take to load its models")
    restart_backoff_seconds: float = Field(
        1.0, ge=0, le=60, description="second restart's delay; it doubles from there"
    )
    restart_limit: int = Field(5, ge=2, le=100, description="starts within the window that make a crash loop")
    restart_window_seconds: float = Field(60.0, gt=0, le=86_400, description="window in which starts are counted")
    quarantine_seconds: float = Field(
        300.0, gt=0, le=86_400, description="before a crash-looping worker is tried again"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _File(settings_cls)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.suspect_after_pings > self.gone_after_pings:
            raise ValueError("suspect_after_pings must not be larger than gone_after_pings")
        if not self.model:
            raise ValueError("no model is named")
        return self

    def aliases(self) -> tuple[tuple[str, str], ...]:
        """Other names of models: each a pattern with the model's id, empty for the first. Raises ConfigError."""
        pairs = tuple((name, model) for name, _, model in (alias.partition("=") for alias in self.alias))
        known = {model.id for model in self.models()}
        for name, model in pairs:
            if not name or (model and model not in known):
                raise ConfigError(f"--alias {name}={model}: no model is called {model!r}", param="alias")
        return pairs

    def models(self) -> tuple[WantedModel, ...]:
        """What to serve. Raises ConfigError for a source that is none, or two models under one id."""
        models = tuple(sources.parse(text) for text in self.model)
        for model in models:
            if sum(other.id == model.id for other in models) > 1:
                raise ConfigError(f"two models are called {model.id!r}: write name=source", param="model")
        if self.device.startswith("stub"):
            # On pretended devices nothing real can run: every model is played by the stub.
            models = tuple(model.model_copy(update={"backend": "stub"}) for model in models)
        return models


class _File(PydanticBaseSettingsSource):
    """The configuration file that `load` has read."""

    content: Mapping[str, Any] = {}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.content.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.content)


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from these flags (None: not given), the environment, and this file. Raises ConfigError."""
    path = config or (Path(named) if (named := os.environ.get("REPLICAST_CONFIG")) else None)
    _File.content = _read(path) if path else {}
    _known(_File.content, f"in {path}")
    ours = [name for name in os.environ if name.startswith(_PREFIX) and not name.startswith(_NOT_OURS)]
    _known([name.removeprefix(_PREFIX).lower() for name in ours], f"in the environment, after {_PREFIX},")
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = "_".join(str(step) for step in first["loc"][:1])
        flag = f"--{place.replace('_', '-')}: " if place else ""
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch":
            said = f"expected {Settings.model_fields[place].description}"
        raise ConfigError(flag + said, param=place or None) from error


def api_key() -> str | None:
    """The key that a client of ours shows, from REPLICAST_API_KEY. Raises ConfigError if what is there can be none."""
    key = os.environ.get("REPLICAST_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError("REPLICAST_API_KEY does not hold a key")
    return key or None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: {path} cannot be read: {error.strerror}", param="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}", param="config") from error


def _known(names: Mapping[str, Any] | list[str], where: str) -> None:
    for name in names:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{name!r} {where} is no setting{hint}", param=name)

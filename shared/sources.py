"""Where a model comes from, as an operator writes it, and the id it is served under.

shapes                      an embedded model, by name
stub                        the stub, with options: stub?step_seconds=0.05
/models/flux2-klein         a Diffusers folder
portraits=/models/sdxl-1    the same, served under another id
shapes?max_adapter_bytes=0  a pipeline with one of the bounds of PIPELINE_OPTIONS
"""

from __future__ import annotations

import difflib
from pathlib import Path
from urllib.parse import parse_qsl

from shared.errors import ConfigError
from shared.messages import Option, WantedModel

# Kept in step with the folders under worker/embedded by a house test.
EMBEDDED = ("shapes",)
STUB = "stub"
# Of LoRAs: what they take on the device, in host memory, and what of weights is kept aside while they are merged.
PIPELINE_OPTIONS = ("max_adapter_bytes", "max_host_bytes", "max_pristine_bytes")
_MOST = 2**53


def parse(text: str) -> WantedModel:
    """The model that `text` (forms above) asks for. Raises ConfigError for what cannot be one."""
    head, _, query = text.partition("?")
    name, separator, source = head.partition("=")
    if not separator:
        name, source = "", head
    if not source:
        raise ConfigError(f"model {text!r} names no source", param="model")
    return wanted(source, model_id=name or None, options=dict(_options(query, text)))


def wanted(source: str, *, model_id: str | None = None, options: dict[str, Option] | None = None) -> WantedModel:
    """The wanted state of a model from its source. Raises ConfigError if the source is nothing that can be served."""
    options = options or {}
    if source == STUB:
        return WantedModel(id=model_id or STUB, source=STUB, backend="stub", options=options)
    for name, value in options.items():
        if name not in PIPELINE_OPTIONS:
            raise ConfigError(f"{source} takes {', '.join(PIPELINE_OPTIONS)}, and no {name!r}", param="model")
        if type(value) is not int or value < 0:
            raise ConfigError(f"{name} is a number of bytes", param="model")
    if source in EMBEDDED:
        return WantedModel(id=model_id or source, source=source, backend="diffusion", options=options)
    folder = Path(source).expanduser()
    if (folder / "model_index.json").is_file():
        return WantedModel(
            id=model_id or folder.resolve().name, source=str(folder.resolve()), backend="diffusion", options=options
        )
    raise ConfigError(_unknown(source, folder), param="model")


def _unknown(source: str, folder: Path) -> str:
    if folder.is_dir():
        return f"{source} is not a Diffusers folder: it has no model_index.json"
    near = difflib.get_close_matches(source, (*EMBEDDED, STUB), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"model {source!r} is neither an embedded model ({', '.join(EMBEDDED)}), nor {STUB!r}, nor a folder{hint}"


def _options(query: str, text: str) -> list[tuple[str, Option]]:
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query), keep_blank_values=True)
    except ValueError as error:
        raise ConfigError(f"model {text!r}: options are written name=value&name=value", param="model") from error
    return [(name, _value(value)) for name, value in pairs]


def _value(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if not abs(value) < _MOST:
            raise ConfigError(f"the option value {text[:40]} is out of bounds", param="model")
        return value
    return text

"""The models that come with the package: where they lie and what their manifests say. Imports no torch."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

EMBEDDED = {"shapes": "shapes"}
MANIFEST = "replicast.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Frozen):
    """One file of the model, by its path inside the folder."""

    path: str
    bytes: int
    sha256: str


class Defaults(_Frozen):
    """What the pipeline is called with unless the caller says otherwise."""

    steps: int
    guidance: float
    max_sequence_length: int
    text_encoder_out_layers: tuple[int, ...]


class Sizes(_Frozen):
    """The sizes it draws, and how larger ones are made: each pixel is repeated, so only whole multiples are exact."""

    native: tuple[tuple[int, int], ...]
    multiples: tuple[int, ...]
    resample: str


class Preview(_Frozen):
    """A linear map from an unpacked, denormalised latent [channels, height, width] to RGB in 0..1."""

    latent: str
    matrix: tuple[tuple[float, ...], ...]
    offset: tuple[float, float, float]
    r2: float


class Vocabulary(_Frozen):
    """The words it was taught; `unsaid` is what a prompt means that does not say it."""

    shapes: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]
    positions: tuple[str, ...]
    sizes: tuple[str, ...]
    edits: tuple[str, ...]
    unsaid: dict[str, str]


class Manifest(_Frozen):
    """`replicast.json`: how to call the model, what it knows, how it was made and how well it does."""

    name: str
    pipeline: str
    licence: str
    cpu_dtype: str
    defaults: Defaults
    sizes: Sizes
    preview: Preview
    vocabulary: Vocabulary
    training: dict[str, Any]
    figures: dict[str, Any]
    files: tuple[File, ...]


def folder(name: str) -> Path:
    """The folder of an embedded model. KeyError for a name that is none."""
    return Path(__file__).parent / EMBEDDED[name]


def manifest(name: str) -> Manifest:
    """What an embedded model says of itself; FileNotFoundError where it has not been trained yet."""
    return Manifest.model_validate_json((folder(name) / MANIFEST).read_bytes())

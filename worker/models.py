"""From a model's source to a local folder that is safe to load, and what the folder says of itself.

Nothing is fetched and nothing in a folder is ever run: weights are safetensors, and code beside them is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import LoadFailed
from shared.messages import WantedModel
from shared.sources import EMBEDDED
from worker import embedded
from worker.embedded import MANIFEST, Manifest

INDEX = "model_index.json"
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
_REVISION_DIGITS = 16


def locate(model: WantedModel) -> Path:
    """The folder of `model`, verified, an embedded one by its hashes. Raises LoadFailed saying what is wrong."""
    if model.source in EMBEDDED:
        folder = embedded.folder(model.source)
        verify_hashes(folder)
    else:
        folder = Path(model.source)
    _verify_safe(folder)
    return folder


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json. Raises LoadFailed if there is none to be read."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{folder.name}: {INDEX} cannot be read: {type(error).__name__}") from error
    if not isinstance(index, dict):
        raise LoadFailed(f"{folder.name}: {INDEX} is not an object")
    return index


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, which an ordinary folder has not. Raises LoadFailed if it is wrong."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, problem["loc"])) or problem["msg"] for problem in error.errors())
        raise LoadFailed(f"{folder.name}: {MANIFEST} is wrong in {wrong}") from error


def verify_hashes(folder: Path) -> None:
    """Raises LoadFailed naming the first file that is not as the folder's manifest says."""
    said = read_manifest(folder)
    if said is None:
        raise LoadFailed(f"{folder.name}: {MANIFEST} is missing")
    for file in said.files:
        try:
            with (folder / file.path).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise LoadFailed(f"{folder.name}: {file.path} cannot be read: {type(error).__name__}") from error
        if found != file.sha256:
            raise LoadFailed(f"{folder.name}: {file.path} is damaged: its sha256 is not the manifest's")


def revision(folder: Path) -> str:
    """A short hash that changes with the model: of the manifest, which lists hashes, else of all names and sizes."""
    manifest = folder / MANIFEST
    if manifest.exists():
        return _short(manifest.read_bytes())
    lines = [
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in folder.rglob("*") if path.is_file()
    ]
    return _short((folder / INDEX).read_bytes() + "\n".join(sorted(lines)).encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_REVISION_DIGITS]


def _verify_safe(folder: Path) -> None:
    components = {name: entry for name, entry in read_index(folder).items() if isinstance(entry, list)}
    for name, entry in components.items():
        if entry and entry[0] is not None and (folder / name / f"{entry[0]}.py").exists():
            raise LoadFailed(f"{folder.name}: {name} brings its own code, which is never run here")
        if any((folder / name).glob("*.safetensors")):
            continue
        pickled = sorted(path.name for kind in _PICKLES for path in (folder / name).glob(kind))
        if pickled:
            raise LoadFailed(f"{folder.name}: {name}/{pickled[0]} is a pickle: only safetensors are loaded here")

"""The families' records are sane, and a folder is taken for what it is or refused with the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LoadFailed
from shared.messages import WantedModel
from tests import tiny
from worker import models
from worker.backends.families import FAMILIES, Family, family_of
from worker.embedded import MANIFEST, File

KLEIN = {"_class_name": "Flux2KleinPipeline", "vae": ["diffusers", "AutoencoderKLFlux2"]}


def folder(path: Path, index: dict[str, Any] = KLEIN, **files: str) -> Path:
    """A model's folder; a double underscore in a file's name stands for a slash, a single one for a dot."""
    (path / "vae").mkdir(parents=True, exist_ok=True)
    (path / "model_index.json").write_text(json.dumps(index))
    for name, text in files.items():
        (path / name.replace("__", "/").replace("_", ".")).write_text(text)
    return path


def locate(path: Path) -> Path:
    return models.locate(WantedModel(id="m", source=str(path), backend="diffusion"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_family_holds_its_own_defaults(family: Family) -> None:
    assert family.sizes.fits(family.sizes.default)
    assert family.sizes.min_side % family.sizes.multiple == 0
    assert family.sizes.max_side % family.sizes.multiple == 0
    assert 1 <= family.steps <= family.max_steps
    assert 0 <= family.guidance <= family.max_guidance
    assert family.distilled_steps is None or 1 <= family.distilled_steps <= family.steps


@pytest.mark.model
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_family_names_a_class_and_arguments_that_exist(family: Family) -> None:
    import inspect

    import diffusers

    arguments = inspect.signature(getattr(diffusers, family.pipeline).__call__).parameters
    assert family.guidance_argument in arguments
    named = {"argument": "negative_prompt", "embeddings": "negative_prompt_embeds"}.get(family.negative_prompt)
    assert named is None or named in arguments
    assert named is not None or "negative_prompt" not in arguments


def test_a_folder_is_of_the_family_of_its_class(tmp_path: Path) -> None:
    assert family_of(folder(tmp_path)) is FAMILIES["Flux2KleinPipeline"]


def test_a_distilled_folder_has_its_own_defaults(tmp_path: Path) -> None:
    family = family_of(folder(tmp_path, {**KLEIN, "is_distilled": True}))
    assert (family.steps, family.guidance) == (4, 1.0)


@pytest.mark.parametrize("name", ["ZebraPipeline", ["pipeline", "Mine"], None])
def test_an_unknown_class_is_refused_with_the_known(tmp_path: Path, name: object) -> None:
    with pytest.raises(LoadFailed, match="known are Flux2KleinPipeline"):
        family_of(folder(tmp_path, {"_class_name": name}))


def test_a_folder_of_safetensors_is_taken(tmp_path: Path) -> None:
    made = folder(tmp_path, vae__model_safetensors="", vae__model_bin="")
    assert locate(made) == made


@pytest.mark.parametrize("name", ["vae__model_bin", "vae__model_ckpt", "vae__model_pt", "vae__model_pth"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoadFailed, match="is a pickle"):
        locate(folder(tmp_path, **{name: ""}))


def test_code_beside_the_weights_is_refused(tmp_path: Path) -> None:
    index = {**KLEIN, "vae": ["mine", "Mine"]}
    with pytest.raises(LoadFailed, match="brings its own code"):
        locate(folder(tmp_path, index, vae__mine_py="", vae__model_safetensors=""))


@pytest.mark.parametrize("text", [None, "{", "[]"], ids=["none", "broken", "list"])
def test_a_folder_without_an_index_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(LoadFailed, match=r"model_index\.json"):
        locate(tmp_path)


def test_an_ordinary_folder_has_no_manifest(tmp_path: Path) -> None:
    assert models.read_manifest(folder(tmp_path)) is None


def test_a_wrong_manifest_is_refused_by_name(tmp_path: Path) -> None:
    said = {**tiny.manifest(multiples=(1,)).model_dump(mode="json"), "sizes": {"native": [[64]], "multiples": [1]}}
    with pytest.raises(LoadFailed, match=r"replicast\.json is wrong in sizes\.native\.0\.1, sizes\.resample"):
        models.read_manifest(folder(tmp_path, replicast_json=json.dumps(said)))


def test_the_revision_follows_the_files(tmp_path: Path) -> None:
    before = models.revision(folder(tmp_path))
    assert before == models.revision(folder(tmp_path))
    assert before != models.revision(folder(tmp_path, vae__model_safetensors="abc"))


def test_the_revision_follows_the_manifest(tmp_path: Path) -> None:
    first, second = (
        models.revision(folder(tmp_path, replicast_json=tiny.manifest(multiples=many).model_dump_json()))
        for many in ((1,), (1, 2))
    )
    assert first != second


def test_a_file_that_is_not_as_the_manifest_says_is_found(tmp_path: Path) -> None:
    weights = File(path="vae/model.safetensors", bytes=7, sha256=hashlib.sha256(b"weights").hexdigest())
    said = tiny.manifest(multiples=(1,), files=(weights,)).model_dump_json()
    made = folder(tmp_path, vae__model_safetensors="weights", replicast_json=said)
    models.verify_hashes(made)
    (made / weights.path).write_text("Weights")
    with pytest.raises(LoadFailed, match=r"vae/model\.safetensors is damaged"):
        models.verify_hashes(made)
    (made / weights.path).unlink()
    with pytest.raises(LoadFailed, match=r"vae/model\.safetensors cannot be read"):
        models.verify_hashes(made)
    (made / MANIFEST).unlink()
    with pytest.raises(LoadFailed, match=r"replicast\.json is missing"):
        models.verify_hashes(made)

"""The catalogue's routes: list, inspect, import, delete; what they take, what they refuse, and whom they name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shared.errors import UnknownAdapter
from shared.loras import Adapter, LoraState
from tests.http.conftest import Gateway, running
from tests.loras import lora, sha256, write

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = [
    f"transformer.single_transformer_blocks.{block}.attn.to_qkv_mlp_proj.lora_{side}.weight"
    for block in range(2)
    for side in "AB"
]
INK = lora("ink", keys=KEYS, metadata={"trigger_words": "ink, wash"})
ABOUT: dict[str, Any] = {"source_path": "styles/ink.safetensors", "name": "Ink", "family": "free"}
ABOUT["compatible_models"] = ["first"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(root: Path) -> AsyncIterator[Gateway]:
    write(root / "files" / "styles" / "ink.safetensors", INK)
    write(root / "files" / "bad.safetensors", b"nonsense" * 10)
    write(root / "outside.safetensors", INK)
    async with running(root / "data", lora_root=root / "files", lora_max_bytes=1 << 20) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def emptied(gateway: Gateway) -> AsyncIterator[None]:
    yield
    for record in gateway.state.catalogue.records:
        await gateway.state.catalogue.delete(record)


async def post(gateway: Gateway, route: str, **body: Any) -> httpx2.Response:
    return await gateway.http.post(f"/v1/admin/loras/{route}", json=body)


def refused(answer: httpx2.Response, status: int, code: str, param: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    return str(error["message"])


async def test_a_file_is_inspected(gateway: Gateway, root: Path) -> None:
    answer = await post(gateway, "inspect", source_path="styles/ink.safetensors")
    assert answer.status_code == 200
    assert answer.json() == {
        "filename": "ink.safetensors",
        "source_path": "styles/ink.safetensors",
        "sha256": sha256(INK),
        "size_bytes": len(INK),
        "metadata": {"trigger_words": "ink, wash"},
        "key_count": 4,
        "rank": 4,
        "targets": ["to_qkv_mlp_proj"],
        "detected_modules": ["transformer"],
        "family_guess": "flux2-klein",
        "confidence": 0.9,
        "trigger_words": ["ink", "wash"],
        "default_strength_suggestion": 1.0,
        "compatible_model_suggestions": [],
        "model_options": [
            {"id": "first", "family": "free", "backend": "stub", "supports_lora": True},
            {"id": "org/second", "family": "strict", "backend": "stub", "supports_lora": True},
            {"id": "third", "family": "", "backend": "stub", "supports_lora": True},
        ],
        "warnings": [],
    }
    whole = await post(gateway, "inspect", source_path=str(root / "files/styles/ink.safetensors"))
    assert whole.json()["sha256"] == sha256(INK)
    assert gateway.state.catalogue.records == []


async def test_a_file_is_imported_listed_found_and_deleted(gateway: Gateway, root: Path) -> None:
    more = {"trigger_words": ["ink"], "default_strength": 0.8, "description": "x", "source_url": "https://a.example/b"}
    answer = await post(gateway, "import", **ABOUT, **more, trained_on_model_id="first")
    assert answer.status_code == 200, answer.text
    record = answer.json()["lora"]
    assert record.pop("imported_at") > 1_700_000_000
    path = root / "data/loras/imported/ink/adapter.safetensors"
    assert record == {
        "id": "imported/ink",
        "object": "lora",
        "name": "Ink",
        "family": "free",
        "source_type": "imported",
        "artifact_type": "adapter",
        "kind": "imported",
        "run_id": "",
        "dataset": "",
        "trained_on_model_id": "first",
        "model": "first",
        "compatible_models": ["first"],
        "trigger_words": ["ink"],
        "trigger_word": "ink",
        "default_strength": 0.8,
        "description": "x",
        "source_url": "https://a.example/b",
        "path": str(path),
        "display_path": "imported/ink/adapter.safetensors",
        "size_bytes": len(INK),
        "sha256": sha256(INK),
        "rank": 4,
        "targets": ["to_qkv_mlp_proj"],
        "checkpoint_id": "",
        "checkpoint_step": None,
    }
    assert path.read_bytes() == INK
    listed = (await gateway.http.get("/v1/admin/loras")).json()
    assert (listed["object"], listed["first_id"], listed["has_more"]) == ("list", "imported/ink", False)
    assert [row["sha256"] for row in listed["data"]] == [sha256(INK)]
    for text in ("imported/ink", "Ink", str(path)):
        assert (await gateway.state.find_lora(text, "lora_path")).sha256 == sha256(INK)

    gone = await gateway.http.delete("http://127.0.0.1:8000/v1/admin/loras/imported%2Fink")
    assert gone.json() == {"id": "imported/ink", "object": "lora", "deleted": True}
    assert (await gateway.http.get("/v1/admin/loras")).json()["data"] == []
    refused(await gateway.http.delete("/v1/admin/loras/imported/ink"), 404, "lora_not_found", "id")
    with pytest.raises(UnknownAdapter):
        await gateway.state.find_lora("imported/ink", "lora_path")


async def test_what_is_active_is_not_deleted(gateway: Gateway) -> None:
    await post(gateway, "import", **ABOUT)
    active = LoraState(adapters=(Adapter(name="x", sha256=sha256(INK)),))
    pool = gateway.state.serving.pool
    before = pool.wanted
    models = tuple(m.model_copy(update={"loras": active}) if m.id == "first" else m for m in before.models)
    pool.wanted = before.model_copy(update={"models": models})
    try:
        message = refused(await gateway.http.delete("/v1/admin/loras/imported/ink"), 409, "lora_in_use", "id")
        assert "active on first" in message
    finally:
        pool.wanted = before
    assert (await gateway.http.delete("/v1/admin/loras/imported/ink")).status_code == 200


@pytest.mark.parametrize("route", ["inspect", "import"])
@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "{}/outside.safetensors", "{}/none.safetensors", "/etc/passwd"]
)
async def test_what_lies_elsewhere_is_unknown_whether_it_is_there_or_not(
    gateway: Gateway, root: Path, route: str, path: str
) -> None:
    said = ABOUT | {"source_path": path.format(root)}
    answer = await post(gateway, route, **(said if route == "import" else {"source_path": said["source_path"]}))
    message = refused(answer, 404, "lora_not_found", "source_path")
    assert message.endswith("There is no such LoRA file below the folder of LoRAs (lora_root).")


@pytest.mark.parametrize("route", ["inspect", "import"])
async def test_a_file_that_is_none_is_told(gateway: Gateway, root: Path, route: str) -> None:
    write(root / "files" / "large.safetensors", lora(filler=1 << 20))
    for name, said in (("bad", "header claims"), ("large", "lora_max_bytes")):
        body = (ABOUT if route == "import" else {}) | {"source_path": f"{name}.safetensors"}
        assert said in refused(await post(gateway, route, **body), 400, "invalid_adapter", "source_path")


@pytest.mark.parametrize(
    ("changed", "param", "said"),
    [
        ({"compatible_models": []}, "compatible_models", ""),
        ({"compatible_models": ["nonsense"]}, "compatible_models", "Unknown compatible model: nonsense"),
        ({"compatible_models": ["first", "org/second"]}, "compatible_models", "org/second is not in LoRA family free"),
        ({"compatible_models": [3]}, "compatible_models.0", "string"),
        ({"name": ""}, "name", ""),
        ({"name": " "}, "name", ""),
        ({"name": "a\nb"}, "name", ""),
        ({"name": None}, "name", "string"),
        ({"default_strength": 2.1}, "default_strength", "at most 2"),
        ({"default_strength": "1"}, "default_strength", "number"),
        ({"source_url": "javascript:alert(1)"}, "source_url", ""),
        ({"description": "x" * 5000}, "description", "at most 4000"),
        ({"trigger_words": "ink"}, "trigger_words", "array"),
        ({"nonsense": 1}, "nonsense", ""),
        ({"source_path": ""}, "source_path", ""),
        ({"source_path": "a\0b"}, "source_path", ""),
    ],
)
async def test_a_wrong_value_is_named(gateway: Gateway, changed: dict[str, Any], param: str, said: str) -> None:
    answer = await post(gateway, "import", **{**ABOUT, **changed})
    error = answer.json()["error"]
    assert (answer.status_code in (400, 404), error["param"]) == (True, param)
    assert said in error["message"]
    assert gateway.state.catalogue.records == []


async def test_a_model_that_no_replica_has_loaded_may_be_named(gateway: Gateway) -> None:
    answer = await post(gateway, "import", **ABOUT | {"compatible_models": ["third"]})
    assert answer.status_code == 200


async def test_without_a_folder_of_files_none_is_taken(root: Path) -> None:
    async with running(root / "other", ready=False, workers=0) as gateway:
        for route in ("inspect", "import"):
            body = {**ABOUT, "compatible_models": ["third"]} if route == "import" else {"source_path": "x"}
            assert "lora_root" in refused(await post(gateway, route, **body), 400, "invalid_value", "source_path")


async def test_a_full_catalogue_is_told(root: Path) -> None:
    write(root / "files" / "half.safetensors", lora(filler=600_000))
    async with running(root / "small", workers=1, lora_root=root / "files", lora_shelf_bytes=1 << 20) as gateway:
        body = ABOUT | {"source_path": "half.safetensors"}
        assert (await post(gateway, "import", **body)).status_code == 200
        assert "lora_shelf_bytes" in refused(await post(gateway, "import", **body), 507, "storage_full", "source_path")
    assert len(os.listdir(root / "small/loras/imported")) == 1

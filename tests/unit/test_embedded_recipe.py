"""The recipe of the embedded model, piece by piece: what it is taught, and that the lean pass is the real model."""

import hashlib
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import scorer
from worker import embedded
from worker.embedded import checkpoint, data, dit, evaluate, export, text, vae

HELD_OUT = data.held_out()


def test_scenes_never_show_a_held_out_triple_but_everything_else() -> None:
    seen = Counter(scene.triple for scene in islice(data.scenes(random.Random(0), HELD_OUT), 20_000))
    assert not HELD_OUT & seen.keys()
    assert len(seen) == 4 * 10 * 9 - len(HELD_OUT)


def test_edits_change_one_thing_and_never_show_a_held_out_triple() -> None:
    for edit in islice(data.edits(random.Random(0), HELD_OUT), 3000):
        assert not HELD_OUT & {edit.before.triple, edit.after.triple}
        pairs = zip(edit.before.indices(), edit.after.indices(), strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_every_scene_is_seen_as_what_it_is_by_the_independent_scorer() -> None:
    for k, scene in enumerate(islice(data.scenes(random.Random(1), frozenset()), 150)):
        seen = scorer.look(data.picture(scene, variant=k % len(data.VARIANTS)))
        assert (seen.shape, seen.colour, seen.background) == scene.triple
        assert (seen.position, seen.size) == (scene.position, scene.size)


def test_captions_say_what_the_scene_shows() -> None:
    rng = random.Random(3)
    synonyms = {"circle": ("circle", "disc", "disk")}
    for scene in islice(data.scenes(rng, frozenset()), 2000):
        said = data.caption(rng, scene).replace("grey", "gray")
        assert any(word in said for word in synonyms.get(scene.shape, (scene.shape,))), said
        assert scene.colour in said
        assert scene.background in said or scene.background == data.default_background(scene.colour), said
        assert all(word in said for word in scene.position.split() if word in ("left", "right")), said


@pytest.fixture(scope="module")
def tokenizer() -> text.Qwen2Tokenizer:
    return text.build_tokenizer()


def test_every_word_of_the_vocabulary_is_one_token(tokenizer: text.Qwen2Tokenizer) -> None:
    words = {
        *data.SHAPES,
        *data.COLOURS,
        *data.SIZES,
        *" ".join(data.POSITIONS).split(),
        "grey",
        "background",
        "corner",
    }
    assert [word for word in sorted(words) if len(tokenizer.tokenize(" " + word)) != 1] == []


def test_the_chat_template_is_what_training_sees(tokenizer: text.Qwen2Tokenizer) -> None:
    for prompt in ("A RED Circle", "  grey star.\n", "", "ein roter Kreis ünd 日本"):
        message = [{"role": "user", "content": prompt}]
        templated = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert templated == text.sentence(prompt)
        ids, attention = text.tokenize(tokenizer, [prompt])
        assert ids.shape == (1, text.LENGTH)
        assert attention.sum() >= 2  # never a row in which everything is masked


def test_labels_of_an_edit_say_only_what_changes() -> None:
    before = data.Scene("circle", "red", "white")
    after = data.Scene("circle", "blue", "white")
    shape, size, position, colour, background = text.HEADS
    assert text.labels(data.Edit("make it blue", before, after)) == (shape, size, position, 2, background)
    assert text.labels(after) == after.indices()
    assert colour == len(data.COLOURS)


@pytest.mark.parametrize("references", [0, 1])
def test_the_lean_forward_pass_is_the_real_one(references: int) -> None:
    torch.manual_seed(0)
    model = dit.build()
    tokens = torch.randn(2, 64 * (1 + references), 4 * vae.CHANNELS)
    words, sigma = torch.randn(2, text.LENGTH, 3 * text.WIDTH), torch.tensor([0.3, 0.8])
    numbers = dit.positions(references)
    with torch.no_grad():
        real = model(
            hidden_states=tokens,
            encoder_hidden_states=words,
            timestep=sigma,
            img_ids=numbers[text.LENGTH :],
            txt_ids=numbers[: text.LENGTH],
            return_dict=False,
        )[0]
        lean = dit.velocity(model, tokens, words, sigma, dit.rotary(model, references))
    torch.testing.assert_close(lean, real, atol=1e-5, rtol=1e-5)


def test_the_positions_are_those_of_the_pipeline() -> None:
    from diffusers import Flux2KleinPipeline

    latent = torch.zeros(1, 4 * vae.CHANNELS, vae.GRID, vae.GRID)
    wanted = [
        Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, text.LENGTH, 1))[0],
        Flux2KleinPipeline._prepare_latent_ids(latent)[0],
        Flux2KleinPipeline._prepare_image_ids([latent])[0],
    ]
    assert torch.equal(dit.positions(1), torch.cat(wanted))


def test_packing_is_that_of_the_pipeline() -> None:
    from diffusers import Flux2KleinPipeline

    torch.manual_seed(0)
    autoencoder = vae.build()
    autoencoder.bn.running_mean.normal_()
    latents = torch.randn(2, vae.CHANNELS, 16, 16)
    packed = Flux2KleinPipeline._patchify_latents(latents)
    assert torch.equal(vae.patchify(latents), packed)
    mean = autoencoder.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(autoencoder.bn.running_var.view(1, -1, 1, 1) + autoencoder.config.batch_norm_eps)
    assert torch.equal(
        vae.normalise(autoencoder, packed), Flux2KleinPipeline._pack_latents((packed - mean) / deviation)
    )


def test_the_autoencoder_starts_as_a_picture_of_its_input() -> None:
    torch.manual_seed(0)
    images = vae.pictures(64, 0, HELD_OUT)
    autoencoder = vae.build()
    assert vae.psnr(autoencoder, images) < 12
    vae.start_linear(autoencoder, images)
    assert vae.psnr(autoencoder, images) > 20


def corpus() -> dit.Corpus:
    words = torch.randn(8, text.LENGTH, 3 * text.WIDTH).bfloat16()
    scenes = torch.zeros(8, 5, dtype=torch.long)
    return dit.Corpus(
        latents=torch.randn(4, 1, 1, 1, 1, 1, 64, 4 * vae.CHANNELS).half(),
        weights=torch.rand(4, 1, 1, 1, 64),
        words=words,
        scenes=scenes,
        edit_words=words,
        before=scenes,
        after=scenes,
        silence=words[:1],
    )


def test_a_training_continues_from_its_checkpoint(tmp_path: Path) -> None:
    drawn = corpus()
    one = dit.Training(drawn, "cpu", seed=0, rate=1e-3, batch=2, compiled=False)
    for _ in range(dit.EDIT_EVERY + 1):  # an edit among them
        one.step()
    one.save(tmp_path / "dit.safetensors")
    other = dit.Training(drawn, "cpu", seed=5, rate=1e-3, batch=2, compiled=False)
    other.load(tmp_path / "dit.safetensors")
    assert other.progress == one.progress
    one.generator.manual_seed(1), other.generator.manual_seed(1)
    one.step(), other.step()
    for left, right in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_checkpoint_keeps_tensors_and_note(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.zeros(0)}
    checkpoint.write(tmp_path / "x.safetensors", tensors, {"samples": 3})
    found, note = checkpoint.read(tmp_path / "x.safetensors")
    assert note == {"samples": 3}
    assert all(torch.equal(found[k], v) for k, v in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_object_weights_are_where_the_object_is() -> None:
    weights = vae.object_weights()[0, 1, 1, list(data.POSITIONS).index("top left")].view(vae.GRID, vae.GRID)
    assert weights[:3, :3].mean() > 0.5
    assert weights[5:, 5:].sum() == 0
    assert np.isclose(float(weights.max()), 1.0)


@pytest.mark.parametrize("name", embedded.EMBEDDED)
def test_the_shipped_files_are_those_of_the_manifest_and_small(name: str) -> None:
    folder, said = embedded.folder(name), embedded.manifest(name)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {embedded.MANIFEST}
    assert there == {file.path for file in said.files}
    for file in said.files:
        content = (folder / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256), file.path
    assert sum(file.bytes for file in said.files) < export.LARGEST_BYTES
    assert said.licence == "Apache-2.0"
    assert said.vocabulary.colours == data.PALETTE
    assert said.defaults.max_sequence_length == text.LENGTH


@pytest.mark.parametrize("name", embedded.EMBEDDED)
def test_the_manifest_of_the_shipped_model_claims_what_the_gate_asks_for(name: str) -> None:
    found = embedded.manifest(name).figures["held_out"]
    assert min(found["colour"], found["background"], found["position"]) >= 0.98
    assert found["shape"] >= 0.90


@pytest.mark.model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_model_draws_combinations_it_has_never_seen(dtype: torch.dtype) -> None:
    pipeline = export.load(embedded.folder("shapes"), dtype)
    found = evaluate.figures(pipeline, count=40, seed=7, enlarge=8)
    assert min(found["colour"], found["background"], found["position"]) >= 0.97, found
    assert found["shape"] >= 0.90, found


@pytest.mark.model
def test_the_preview_map_gives_the_picture_in_small() -> None:
    said = embedded.manifest("shapes").preview
    autoencoder = export.load(embedded.folder("shapes"), torch.float32).vae
    image = torch.from_numpy(np.array(data.picture(data.Scene("square", "red", "green")))).permute(2, 0, 1) / 255.0
    with torch.no_grad():
        latent = autoencoder.encode(image[None] * 2 - 1).latent_dist.mode()[0]
    rgb = torch.einsum("chw,cd->dhw", latent, torch.tensor(said.matrix)) + torch.tensor(said.offset)[:, None, None]
    small = torch.nn.functional.avg_pool2d(image[None], 4)[0]
    assert (rgb - small).abs().mean() < 0.05

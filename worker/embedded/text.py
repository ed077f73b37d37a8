"""The text tower: a byte-level tokenizer of our captions and a small Qwen3 that is taught to say what they ask for."""

import json
import random
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from worker.embedded import data

LENGTH = 24  # tokens; the pipeline's max_sequence_length
OUT_LAYERS = (2, 3, 4)  # the pipeline's text_encoder_out_layers; the last one is after the final norm
WIDTH = 64
START, PAD = "<|im_start|>", "<|endoftext|>"
TEMPLATE = START + "{% for message in messages %}{{ ' ' + (message['content'] | trim | lower) }}{% endfor %}"
# What a caption says of each; the last class of every head is "nothing said".
HEADS = (len(data.SHAPES), len(data.SIZES), len(data.POSITIONS), len(data.COLOURS), len(data.COLOURS))
_FILLERS = (
    "nice",
    "simple",
    "very",
    "beautiful",
    "cool",
    "just",
    "some",
    "really",
    "flat",
    "clean",
    "minimalist",
    "my",
    "this",
    "tiny bit",
    "2d",
    "vector",
    "style",
    "high quality",
    "hello",
    "ok",
    "now",
    "single",
    "lovely",
    "cute",
    "geometric",
    "xyz",
    "8k",
    "etc",
)


def sentence(content: str) -> str:
    """What the chat template makes of a prompt."""
    return f"{START} {content.strip().lower()}"


def scene_captions(seed: int, forbidden: frozenset[tuple[str, str, str]]) -> Iterator[tuple[str, data.Scene]]:
    """Endless captions and their scenes."""
    rng = random.Random(seed)
    for scene in data.scenes(rng, forbidden):
        yield _disturbed(rng, data.caption(rng, scene)), scene


def edit_captions(seed: int, forbidden: frozenset[tuple[str, str, str]]) -> Iterator[tuple[str, data.Edit]]:
    """Endless instructions and their edits."""
    rng = random.Random(seed)
    for edit in data.edits(rng, forbidden):
        yield _disturbed(rng, edit.instruction), edit


def _disturbed(rng: random.Random, caption: str) -> str:
    # Words we never heard of must not turn the picture upside down.
    words = caption.split(" ")
    while rng.random() < 0.08:
        words.insert(rng.randrange(len(words) + 1), rng.choice(_FILLERS))
    return " ".join(words)


def labels(said: data.Scene | data.Edit) -> tuple[int, ...]:
    """The class of each head: everything for a scene, only what changes for an edit."""
    nothing = HEADS
    if isinstance(said, data.Scene):
        return said.indices()
    before, after = said.before.indices(), said.after.indices()
    return tuple(a if a != b else n for a, b, n in zip(after, before, nothing, strict=True))


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE in which every frequent word of our captions, with its leading space, is one token."""
    none: frozenset[tuple[str, str, str]] = frozenset()
    captions, instructions = scene_captions(1, none), edit_captions(2, none)
    corpus = [sentence(next(captions)[0])[len(START) :] for _ in range(40_000)]
    corpus += [sentence(next(instructions)[0])[len(START) :] for _ in range(10_000)]
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=[PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(corpus, trainer)
    state = json.loads(inner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(m) for m in state["merges"]],
        additional_special_tokens=[START],
        padding_side="right",
        model_max_length=LENGTH,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tokenize(tokenizer: Qwen2Tokenizer, contents: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, both [B, LENGTH], exactly as Flux2KleinPipeline makes them."""
    batch = tokenizer(
        [sentence(c) for c in contents], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


def build(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    """An untrained tower of 4 layers."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=WIDTH // 4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def features(tower: Qwen3ForCausalLM, ids: Tensor, attention: Tensor) -> Tensor:
    """[B, LENGTH, 3 * WIDTH]: the out layers side by side, as the pipeline stacks them."""
    states = tower.model(
        input_ids=ids, attention_mask=attention, output_hidden_states=True, use_cache=False
    ).hidden_states
    return torch.cat([states[k] for k in OUT_LAYERS], dim=-1)


def _batches(
    seed: int, forbidden: frozenset[tuple[str, str, str]], tokenizer: Qwen2Tokenizer, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    captions, instructions = scene_captions(seed, forbidden), edit_captions(seed + 1, forbidden)
    while True:
        rows = [next(captions) for _ in range(size * 3 // 4)] + [
            next(instructions) for _ in range(size - 1 - size * 3 // 4)
        ]
        ids, attention = tokenize(tokenizer, [""] + [text for text, _ in rows])
        yield ids, attention, torch.tensor([HEADS] + [labels(said) for _, said in rows])


def train(
    tower: Qwen3ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    minutes: float,
    seed: int,
    forbidden: frozenset[tuple[str, str, str]],
    log: Callable[[str], None],
    batch: int = 192,
) -> dict[str, float]:
    """Trains in place; gives the share of unseen captions understood, per attribute.

    Every position from the last word on must know all: the pads behind it see the whole caption (causal attention),
    so the image model finds the answer at any of them.
    """
    torch.manual_seed(seed)
    device = tower.device
    heads = nn.ModuleList(nn.Linear(3 * WIDTH, count + 1) for count in HEADS).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    begun, smooth = time.monotonic(), 3.0
    for step, (ids, attention, wanted) in enumerate(_batches(seed + 10, forbidden, tokenizer, batch)):
        share = (time.monotonic() - begun) / (60 * minutes)
        if share >= 1:
            break
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * min(1.0, (1 - share) / 0.4)
        states = features(tower, ids.to(device), attention.to(device))
        knowing = _knowing(attention).to(device)
        loss = states.new_zeros(())
        for k, head in enumerate(heads):
            logits = head(states).transpose(1, 2)
            each = F.cross_entropy(logits, wanted[:, k, None].expand(-1, LENGTH).to(device), reduction="none")
            loss = loss + (each * knowing).sum() / knowing.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        smooth = 0.97 * smooth + 0.03 * loss.item()
        if step % 100 == 0:
            log(f"text step {step} loss {smooth:.4f} at {share:.0%}")
    return _understood(tower, heads, tokenizer, seed + 99)


def _knowing(attention: Tensor) -> Tensor:
    """[B, LENGTH]: 1 at the last word and behind it."""
    last = attention.sum(1, keepdim=True) - 1
    return (torch.arange(LENGTH)[None] >= last).float()


@torch.no_grad()
def _understood(
    tower: Qwen3ForCausalLM, heads: nn.ModuleList, tokenizer: Qwen2Tokenizer, seed: int
) -> dict[str, float]:
    names = ("shape", "size", "position", "colour", "background")
    ids, attention, wanted = next(_batches(seed, frozenset(), tokenizer, 2000))
    states = features(tower, ids.to(tower.device), attention.to(tower.device))[:, -1]
    right = [(head(states).argmax(-1).cpu() == wanted[:, k]).float().mean().item() for k, head in enumerate(heads)]
    return dict(zip(names, right, strict=True))


@torch.no_grad()
def encode(tower: Qwen3ForCausalLM, tokenizer: Qwen2Tokenizer, contents: list[str]) -> Tensor:
    """[len(contents), LENGTH, 3 * WIDTH], bfloat16, on the CPU."""
    out = []
    for start in range(0, len(contents), 512):
        ids, attention = tokenize(tokenizer, contents[start : start + 512])
        out.append(features(tower, ids.to(tower.device), attention.to(tower.device)).to("cpu", torch.bfloat16))
    return torch.cat(out)


def weights(tower: Qwen3ForCausalLM) -> dict[str, Tensor]:
    """The tower's own tensors; the output matrix is the embedding again."""
    return {name: value for name, value in tower.state_dict().items() if not name.startswith("lm_head")}

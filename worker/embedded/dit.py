"""The image model: its shape, a lean forward pass for training, and the flow-matching training itself."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import Tensor, distributed, nn

from worker.embedded import checkpoint, text
from worker.embedded.vae import CHANNELS, GRID

SHIFT = 2.0  # of the noise levels, in training and in the exported scheduler
EDIT_EVERY = 2  # every second batch is of edits: they learn slowest
_REFERENCE_TIME = 10  # the T coordinate that Flux2KleinPipeline gives the first reference image


def build() -> Flux2Transformer2DModel:
    """An untrained image model: 128 wide, 1 double and 4 single blocks, over `GRID`^2 image tokens."""
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=len(text.OUT_LAYERS) * text.WIDTH,
        timestep_guidance_channels=64,
        mlp_ratio=3.0,
        axes_dims_rope=(4, 12, 12, 4),
        rope_theta=100,
        guidance_embeds=False,
    )


def positions(references: int) -> Tensor:
    """[LENGTH + 64 * (1 + references), 4]: T, H, W, L of text, image and reference tokens, as in the pipeline."""
    words = [(0, 0, 0, k) for k in range(text.LENGTH)]
    images = [
        (0 if r == 0 else _REFERENCE_TIME * r, h, w, 0)
        for r in range(1 + references)
        for h in range(GRID)
        for w in range(GRID)
    ]
    return torch.tensor(words + images)


def rotary(model: Flux2Transformer2DModel, references: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, both [tokens, 1, head]."""
    cosines, sines = model.pos_embed(positions(references).to(model.device))
    return cosines[:, None].float(), sines[:, None].float()


def velocity(
    model: Flux2Transformer2DModel, tokens: Tensor, words: Tensor, sigma: Tensor, turn: tuple[Tensor, Tensor]
) -> Tensor:
    """The same function as `model.forward`, in few operations: tokens [B, N, 4C], words [B, L, 3W], sigma [B] in 0..1.

    Torch's fused attention is slow backwards on a CPU at these lengths, and diffusers' processors cost as much in
    bookkeeping as the matrices cost in arithmetic; `test_embedded_recipe` holds the two equal.
    """
    time_embedding = model.time_guidance_embed(sigma * 1000, None)
    length = words.shape[1]
    image, context = model.x_embedder(tokens).float(), model.context_embedder(words).float()
    mod_image = model.double_stream_modulation_img(time_embedding)[:, None].chunk(6, -1)
    mod_text = model.double_stream_modulation_txt(time_embedding)[:, None].chunk(6, -1)
    for block in model.transformer_blocks:
        attn = block.attn
        here = _modulated(image, mod_image[0], mod_image[1])
        there = _modulated(context, mod_text[0], mod_text[1])
        q = torch.cat([_heads(attn.norm_added_q, attn.add_q_proj(there)), _heads(attn.norm_q, attn.to_q(here))], 1)
        k = torch.cat([_heads(attn.norm_added_k, attn.add_k_proj(there)), _heads(attn.norm_k, attn.to_k(here))], 1)
        v = torch.cat([attn.add_v_proj(there), attn.to_v(here)], 1)
        mixed = _attend(q, k, v, turn)
        image = image + mod_image[2] * attn.to_out[0](mixed[:, length:])
        context = context + mod_text[2] * attn.to_add_out(mixed[:, :length])
        image = image + mod_image[5] * block.ff(_modulated(image, mod_image[3], mod_image[4]))
        context = context + mod_text[5] * block.ff_context(_modulated(context, mod_text[3], mod_text[4]))
    state = torch.cat([context, image], 1)
    shift, scale, gate = model.single_stream_modulation(time_embedding)[:, None].chunk(3, -1)
    for block in model.single_transformer_blocks:
        attn = block.attn
        wide = attn.to_qkv_mlp_proj(_modulated(state, shift, scale))
        q, k, v, first, second = wide.split([attn.inner_dim] * 3 + [attn.mlp_hidden_dim] * 2, -1)
        mixed = _attend(_heads(attn.norm_q, q), _heads(attn.norm_k, k), v, turn)
        state = state + gate * attn.to_out(torch.cat([mixed, F.silu(first) * second], -1))
    scale, shift = model.norm_out.linear(F.silu(time_embedding))[:, None].chunk(2, -1)
    return model.proj_out(_modulated(state[:, length:], shift, scale)).float()


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _heads(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.unflatten(-1, (-1, norm.weight.shape[0])).float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * norm.weight


def _attend(q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    q, k = (_turned(x, *turn).to(v.dtype).transpose(1, 2) for x in (q, k))
    values = v.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
    scores = (q @ k.transpose(-1, -2)).float() * (q.shape[-1] ** -0.5)
    return (scores.softmax(-1).to(v.dtype) @ values).transpose(1, 2).flatten(2)


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    crossed = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
    return x * cosines + crossed * sines


@dataclass
class Corpus:
    """Everything a batch is drawn from, on the CPU."""

    latents: Tensor  # as `vae.scene_latents` gives it
    weights: Tensor  # as `vae.object_weights` gives it
    words: Tensor  # [captions, LENGTH, 3W]
    scenes: Tensor  # [captions, 5]: shape, size, position, colour, background
    edit_words: Tensor
    before: Tensor
    after: Tensor
    silence: Tensor  # [1, LENGTH, 3W]: the empty prompt

    def batch(self, size: int, edit: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Words, clean tokens, loss weights [size, 64] and, for edits, reference tokens."""
        words, scenes = (self.edit_words, self.after) if edit else (self.words, self.scenes)
        rows = torch.randint(len(words), (size,), generator=generator)
        variant = torch.randint(len(self.latents), (size,), generator=generator)
        chosen = words[rows].float()
        dropped = torch.rand(size, generator=generator) < 0.1
        chosen[dropped] = self.silence.float()
        shape, place, where, colour, ground = scenes[rows].T
        clean = self.latents[variant, shape, place, where, colour, ground].float()
        weights = 1 + 3 * self.weights[variant, shape, place, where]
        reference = None
        if edit:
            shape, place, where, colour, ground = self.before[rows].T
            reference = self.latents[variant, shape, place, where, colour, ground].float()
            reference = reference + 0.05 * torch.randn(reference.shape, generator=generator)
        return chosen, clean, weights, reference


@dataclass
class Progress:
    """What a continued run needs to know; kept in the checkpoint."""

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    edit_loss: float = float("nan")
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A model, its moving average, its optimizer and its progress: all that a checkpoint holds."""

    def __init__(self, corpus: Corpus, device: str, seed: int, rate: float, batch: int, compiled: bool) -> None:
        torch.manual_seed(seed)
        self.corpus, self.device, self.rate, self.size = corpus, device, rate, batch
        self.ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.model = build().to(device)
        _start(self.model)
        self.average = build().to(device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
        self.progress = Progress()
        self.generator = torch.Generator().manual_seed(seed + 1 + 1_000_003 * self.rank)
        self.begun, self.spent = time.monotonic(), 0.0
        self.turns = [rotary(self.model, references) for references in (0, 1)]
        self.loss: Callable[..., Tensor] = torch.compile(self._loss, dynamic=False) if compiled else self._loss

    def _loss(
        self,
        noisy: Tensor,
        words: Tensor,
        sigma: Tensor,
        wanted: Tensor,
        weights: Tensor,
        cosines: Tensor,
        sines: Tensor,
    ) -> Tensor:
        with torch.autocast(noisy.device.type, torch.bfloat16):
            given = velocity(self.model, noisy, words, sigma, (cosines, sines))[:, : GRID * GRID]
        return ((given - wanted).square().mean(-1) * weights).sum() / weights.sum()

    def step(self) -> None:
        """One batch, forwards and backwards."""
        edit = self.progress.steps % EDIT_EVERY == EDIT_EVERY - 1
        size = self.size // 2 if edit else self.size  # twice the tokens
        words, clean, weights, reference = self.corpus.batch(size, edit, self.generator)
        uniform = torch.sigmoid(torch.randn(size, generator=self.generator))
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noise = torch.randn(clean.shape, generator=self.generator)
        noisy = clean + sigma[:, None, None] * (noise - clean)
        if reference is not None:
            noisy = torch.cat([noisy, reference], 1)
        inputs = (x.to(self.device) for x in (noisy, words, sigma, noise - clean, weights))
        loss = self.loss(*inputs, *self.turns[edit])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        shared = self._shared(loss.item())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.progress.steps += 1
        self.progress.samples += size * self.ranks
        self._follow(edit, shared)

    def _shared(self, loss: float) -> float:
        """Averages gradients, loss and clock over all ranks, so that every rank takes the very same step."""
        self.progress.seconds = self.spent + time.monotonic() - self.begun
        if self.ranks == 1:
            return loss
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        figures = torch.tensor([loss, self.progress.seconds], device=self.device)
        flat = torch.cat([*(g.flatten() for g in gradients), figures])
        distributed.all_reduce(flat)
        flat /= self.ranks
        for gradient, mean in zip(gradients, flat.split([*(g.numel() for g in gradients), 2]), strict=False):
            gradient.copy_(mean.view_as(gradient))
        self.progress.seconds = float(flat[-1])
        return float(flat[-2])

    def _follow(self, edit: bool, loss: float) -> None:
        name = "edit_loss" if edit else "loss"
        old = getattr(self.progress, name)
        setattr(self.progress, name, loss if math.isnan(old) else 0.99 * old + 0.01 * loss)
        decay = min(0.999, self.progress.steps / (20 + self.progress.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def run(
        self,
        seconds: float,
        decay_share: float,
        every: float,
        log: Callable[[str], None],
        report: Callable[["Training"], None],
    ) -> None:
        """Trains until `seconds` (over all runs) are spent; the rate falls to 0 over the last `decay_share`.

        `report` is called on rank 0 every `every` seconds and at the end, and may save or evaluate; its time counts.
        """
        self.begun, self.spent = time.monotonic(), self.progress.seconds
        reported = logged = self.begun
        while (now := self.progress.seconds) < seconds:
            warm = min(1.0, (self.progress.steps + 1) / 150)
            falling = min(1.0, (1 - now / seconds) / decay_share)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * warm * max(falling, 0.0)
            self.step()
            if self.rank == 0 and time.monotonic() - logged > 20:
                p, logged = self.progress, time.monotonic()
                rate = p.samples / p.seconds
                log(f"dit {p.samples} samples {p.seconds:.0f} s {rate:.0f}/s loss {p.loss:.4f} edits {p.edit_loss:.4f}")
            if self.rank == 0 and time.monotonic() - reported > every:
                report(self)
                reported = time.monotonic()
        if self.rank == 0:
            report(self)

    def save(self, path: Path) -> None:
        """Writes the checkpoint atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        checkpoint.write(path, tensors | checkpoint.flat(self.optimizer, "optimizer."), vars(self.progress))

    def load(self, path: Path) -> None:
        """Continues from a checkpoint; the random stream starts anew from the number of samples."""
        tensors, progress = checkpoint.read(path, self.device)
        self.model.load_state_dict(checkpoint.part(tensors, "model."))
        self.average.load_state_dict(checkpoint.part(tensors, "average."))
        checkpoint.unflat(self.optimizer, tensors, "optimizer.")
        self.progress = Progress(**progress)
        self.generator.manual_seed(self.progress.samples + 1 + 1_000_003 * self.rank)


@torch.no_grad()
def _start(model: Flux2Transformer2DModel) -> None:
    # The usual start of diffusion transformers: gates and output at zero, so that every block begins as the identity.
    for linear in (
        model.double_stream_modulation_img.linear,
        model.double_stream_modulation_txt.linear,
        model.single_stream_modulation.linear,
        model.norm_out.linear,
        model.proj_out,
    ):
        linear.weight.zero_()

"""The f4 autoencoder: its shape, its start from principal components, its training, and the latents of all scenes."""

import itertools
import math
import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from torch import Tensor, nn

from worker.embedded import data

CHANNELS = 8
GRID = data.SIDE // 8  # the side of the packed latent: f4, then 2x2 patches
WIDTHS = (16, 32, 64)


def build() -> AutoencoderKLFlux2:
    """An untrained f4 autoencoder, 3.. channels of `WIDTHS`, one norm group (several groups erase absolute colour)."""
    return AutoencoderKLFlux2(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        sample_size=data.SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def pictures(count: int, seed: int, forbidden: frozenset[tuple[str, str, str]]) -> Tensor:
    """[count, 3, SIDE, SIDE] in -1..1: shapes anywhere, of any size, in colours near the palette's."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    out = np.empty((count, data.SIDE, data.SIDE, 3), dtype=np.float32)
    for row, scene in zip(range(count), data.scenes(rng, forbidden), strict=False):
        diameter = rng.uniform(0.28, 0.55) * data.SIDE
        x, y = (rng.uniform(diameter / 2, data.SIDE - diameter / 2) for _ in "xy")
        spread = 0.0 if rng.random() < 0.6 else 25.0
        colours = [
            np.clip(np.asarray(data.PALETTE[c]) + noise.normal(0, spread, 3), 0, 255)
            for c in (scene.colour, scene.background)
        ]
        cover = data.coverage(scene.shape, x, y, diameter)
        out[row] = data.paint(cover, colours[0].astype(np.float32), colours[1].astype(np.float32))
    return torch.from_numpy(out).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def start_linear(vae: AutoencoderKLFlux2, sample: Tensor) -> None:
    """Begins as a linear code: the encoder gives principal components of 4x4 patches, the decoder their mean colour.

    Residual branches begin at zero. The final norms would erase absolute values, so two channels of +-constant value
    set their scale, and every value travels as a pair (x, -x), from which silu gives x back exactly.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.bias.zero_()
        if hasattr(module, "conv2") and isinstance(module.conv2, nn.Conv2d):
            module.conv2.weight.zero_()
            if module.conv_shortcut is not None:
                _eye(module.conv_shortcut)
    patches = sample.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48)
    basis = (
        torch.linalg.svd((patches - patches.mean(0))[:200_000], full_matrices=False).Vh[:CHANNELS] / 4
    )  # [CHANNELS, 48]
    _start_encoder(vae.encoder, basis.view(CHANNELS, 3, 4, 4))
    mean_colour = torch.linalg.pinv(basis).view(3, 16, CHANNELS).mean(1)  # [3, CHANNELS]
    _start_decoder(vae.decoder, mean_colour)


def _eye(conv: nn.Conv2d) -> None:
    conv.weight.zero_()
    middle = conv.kernel_size[0] // 2
    for k in range(min(conv.weight.shape[:2])):
        conv.weight[k, k, middle, middle] = 1


def _start_encoder(encoder: nn.Module, basis: Tensor) -> None:
    _eye(encoder.conv_in)
    first, second = (encoder.down_blocks[k].downsamplers[0].conv for k in (0, 1))
    # Space to depth (3 -> 12), then the components (12 -> CHANNELS); the free channels keep their small random start.
    first.weight[:12].zero_()
    second.weight[: CHANNELS * 2].zero_()
    for colour, row, column in itertools.product(range(3), range(2), range(2)):
        first.weight[colour * 4 + row * 2 + column, colour, row, column] = 1
        second.weight[:CHANNELS, colour * 4 + row * 2 + column, :2, :2] = basis[:, colour, row::2, column::2]
    second.weight[CHANNELS : CHANNELS * 2] = -second.weight[:CHANNELS]
    _through_norm(encoder, torch.eye(CHANNELS), outputs=2 * CHANNELS)


def _start_decoder(decoder: nn.Module, mean_colour: Tensor) -> None:
    decoder.conv_in.weight[: CHANNELS * 2].zero_()
    for k in range(CHANNELS):
        decoder.conv_in.weight[k, k, 1, 1], decoder.conv_in.weight[CHANNELS + k, k, 1, 1] = 1, -1
    for block in decoder.up_blocks[:2]:
        conv = block.upsamplers[0].conv
        conv.weight[: CHANNELS * 2].zero_()
        # A binomial filter instead of the identity: smooth steps are nearer to the truth than blocks.
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        for k in range(CHANNELS * 2 if conv.weight.shape[0] >= CHANNELS * 2 else CHANNELS):
            conv.weight[k, k] = kernel
    # The last level is too narrow for pairs of all channels: its shortcut makes the colours, paired.
    shortcut = decoder.up_blocks[2].resnets[0].conv_shortcut
    shortcut.weight[: 2 * 3].zero_()
    shortcut.weight[:3, :CHANNELS, 0, 0] = mean_colour
    shortcut.weight[3:6, :CHANNELS, 0, 0] = -mean_colour
    _through_norm(decoder, torch.eye(3), outputs=3)


def _through_norm(part: nn.Module, matrix: Tensor, outputs: int) -> None:
    """Sets part's last norm and convolution so that inputs arriving as pairs in channels 0..2n leave times `matrix`."""
    constant, count = 8.0, matrix.shape[1]
    norm, conv = part.conv_norm_out, part.conv_out
    last = [m for m in part.modules() if hasattr(m, "conv2")][-1] if outputs == 3 else part.mid_block.resnets[-1]
    width = norm.weight.shape[0]
    last.conv2.bias[width - 2], last.conv2.bias[width - 1] = constant, -constant
    # The variance over all channels is about 2 * constant^2 / width, and the weight undoes it.
    norm.weight.fill_(constant * math.sqrt(2 / width))
    conv.weight.mul_(0.1)
    conv.weight[: matrix.shape[0]].zero_()
    conv.weight[: matrix.shape[0], :count, 1, 1] = matrix
    conv.weight[: matrix.shape[0], count : 2 * count, 1, 1] = -matrix
    if outputs != 3:
        conv.weight[count:].zero_()
        conv.bias[count:] = -10.0  # log-variances: the latents carry no noise


def train(
    vae: AutoencoderKLFlux2, pool: Tensor, minutes: float, seed: int, log: Callable[[str], None], batch: int = 32
) -> float:
    """Trains in place for so many minutes of wall clock; gives the PSNR in dB on pictures it has not seen."""
    torch.manual_seed(seed)
    device = next(vae.parameters()).device
    check, pool = pool[:256], pool[256:]
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=6e-4, betas=(0.9, 0.99), weight_decay=0.0)
    begun, step, smooth = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - begun) / (60 * minutes)) < 1:
        warm = min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = 6e-4 * warm * min(1.0, (1 - share) / 0.5)
        images = pool[torch.randint(len(pool), (batch,))].to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):  # twice as fast as float32 on a CPU with avx512_bf16
            latents = vae.encode(images).latent_dist.mode()
            # A little noise on the latents: the decoder must forgive what the diffusion model gets slightly wrong.
            scale = 0.05 * latents.detach().std()
            decoded = vae.decode(latents + scale * torch.randn_like(latents)).sample.float()
        loss = F.mse_loss(decoded, images) + 0.02 * F.l1_loss(decoded, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 0:
            log(f"vae step {step} loss {smooth:.5f} psnr {psnr(vae, check):.2f} dB at {share:.0%}")
        step += 1
    return psnr(vae, check)


@torch.no_grad()
def psnr(vae: AutoencoderKLFlux2, images: Tensor) -> float:
    """Peak signal to noise of a round trip in dB, for images in -1..1."""
    device = next(vae.parameters()).device
    images = images.to(device)
    decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / F.mse_loss(decoded, images)))


@torch.no_grad()
def settle_norm(vae: AutoencoderKLFlux2, pool: Tensor) -> None:
    """Sets the latent batch norm from data. Variances are floored at a share of the largest, so that a nearly
    empty channel is not blown up to the weight of the colours."""
    device = next(vae.parameters()).device
    latents = torch.cat([patchify(vae.encode(part.to(device)).latent_dist.mode()) for part in pool[:2048].split(128)])
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    vae.bn.running_mean.copy_(mean)
    vae.bn.running_var.copy_(variance.clamp_min(0.08 * float(variance.max())))


def patchify(latents: Tensor) -> Tensor:
    """[B, C, 16, 16] -> [B, 4C, 8, 8], as Flux2KleinPipeline packs."""
    count, channels, height, width = latents.shape
    split = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return split.reshape(count, channels * 4, height // 2, width // 2)


def normalise(vae: AutoencoderKLFlux2, packed: Tensor) -> Tensor:
    """[B, 4C, 8, 8] -> tokens [B, 64, 4C] with the latent norm applied, as the pipeline does for references."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return ((packed - mean) / deviation).flatten(2).transpose(1, 2)


@torch.no_grad()
def scene_latents(
    vae: AutoencoderKLFlux2, forbidden: frozenset[tuple[str, str, str]], log: Callable[[str], None]
) -> Tensor:
    """Tokens of every scene that may be trained on, float16, axes (variant, shape, size, position, colour,
    background, 64, 4C); zeros where colour equals background and for forbidden triples."""
    device = next(vae.parameters()).device
    vae.to(memory_format=torch.channels_last)
    colours = torch.tensor([data.PALETTE[c] for c in data.COLOURS], dtype=torch.float32) / 127.5 - 1
    kinds = (len(data.VARIANTS), len(data.SHAPES), len(data.SIZES), len(data.POSITIONS))
    pairs = len(data.COLOURS)
    out = torch.zeros(*kinds, pairs, pairs, GRID * GRID, 4 * CHANNELS, dtype=torch.float16)
    fronts, grounds = colours.view(pairs, 1, 3, 1, 1), colours.view(1, pairs, 3, 1, 1)
    begun = time.monotonic()
    for variant, shape, size, position in itertools.product(*(range(k) for k in kinds)):
        cover = torch.from_numpy(
            data.mask(data.SHAPES[shape], list(data.SIZES)[size], list(data.POSITIONS)[position], variant).copy()
        )
        images = (grounds + cover * (fronts - grounds)).flatten(0, 1)
        allowed = torch.tensor(
            [c != b and (data.SHAPES[shape], c, b) not in forbidden for c in data.COLOURS for b in data.COLOURS]
        )
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(images[allowed].to(device, memory_format=torch.channels_last)).latent_dist.mode()
        tokens = normalise(vae, patchify(latents.float().contiguous())).half().cpu()
        out[variant, shape, size, position].view(pairs * pairs, GRID * GRID, -1)[allowed] = tokens
    log(f"encoded {out[..., 0, 0].numel()} scenes in {time.monotonic() - begun:.0f} s")
    return out


def object_weights() -> Tensor:
    """[variant, shape, size, position, 64]: the share of each token's 8x8 pixels near the shape's outline or inside."""
    kinds = (len(data.VARIANTS), len(data.SHAPES), len(data.SIZES), len(data.POSITIONS))
    out = torch.zeros(*kinds, GRID * GRID)
    for variant, shape, size, position in itertools.product(*(range(k) for k in kinds)):
        cover = torch.from_numpy(
            data.mask(data.SHAPES[shape], list(data.SIZES)[size], list(data.POSITIONS)[position], variant).copy()
        )
        near = F.max_pool2d(cover[None, None], 5, 1, 2)
        out[variant, shape, size, position] = F.adaptive_avg_pool2d(near, GRID).flatten()
    return out

"""What a picture will be, seen from its latents: a linear map to colours, which costs next to nothing beside a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from shared.cards import Size
from worker.embedded import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_SAMPLES, _SAMPLE_SIDE, _PATCHES = 24, 128, 8


class Map:
    """Latents of (channels, height, width), as the decoder takes them, to colours: matrix (channels, 3), offset (3)."""

    def __init__(self, matrix: torch.Tensor, offset: torch.Tensor) -> None:
        self._matrix = matrix
        self._offset = offset

    @classmethod
    def of(cls, said: Manifest) -> Map | None:
        """The map in a model's manifest, if it has one."""
        if not said.preview.matrix:
            return None
        return cls(torch.tensor(said.preview.matrix), torch.tensor(said.preview.offset))

    @classmethod
    def fitted(cls, vae: Any) -> Map:
        """The map that fits this autoencoder best, by least squares over patchworks of random colours."""
        drawn = torch.Generator("cpu").manual_seed(0)
        patches = torch.rand(_SAMPLES, 3, _PATCHES, _PATCHES, generator=drawn)
        pictures = torch.nn.functional.interpolate(patches, size=(_SAMPLE_SIDE, _SAMPLE_SIDE), mode="bilinear")
        with torch.inference_mode():
            weight = next(vae.parameters())
            latents = vae.encode((pictures * 2 - 1).to(weight.device, weight.dtype)).latent_dist.mode().float().cpu()
        colours = torch.nn.functional.interpolate(pictures, size=latents.shape[-2:], mode="area")
        known = latents.permute(0, 2, 3, 1).flatten(0, 2)
        known = torch.cat((known, torch.ones(len(known), 1)), dim=1)
        # gelsd takes latents whose channels are not independent, as those of a small autoencoder may be.
        solved = torch.linalg.lstsq(known, colours.permute(0, 2, 3, 1).flatten(0, 2), driver="gelsd").solution
        return cls(solved[:-1], solved[-1])

    def colours(self, latents: torch.Tensor) -> Pixels:
        """The picture at the latents' own height and width, RGB."""
        shown = torch.einsum("chw,cd->hwd", latents.float(), self._matrix.to(latents.device))
        shown = (shown + self._offset.to(latents.device)).mul(255).round().clamp(0, 255).to(torch.uint8)
        pixels: Pixels = shown.cpu().numpy()
        return pixels


class Watched(FlowMatchEulerDiscreteScheduler):
    """The flow-matching scheduler, which remembers its last step.

    Of a sample x at noise level s the model says a velocity v; the clean picture as it sees it then is x - s v, far
    clearer than the latents themselves (Lipman et al. 2023, https://arxiv.org/abs/2210.02747).
    """

    _seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *more: Any, **named: Any) -> Any:
        self._seen = (sample, model_output)
        return super().step(model_output, timestep, sample, *more, **named)

    def clean(self) -> torch.Tensor:
        """The clean latents as the model saw them at the last step; there must have been one."""
        assert self._seen is not None
        sample, velocity = self._seen
        return sample - self.sigmas[self.step_index - 1].to(sample.device) * velocity


def _flux2(pipeline: Any, packed: torch.Tensor, size: Size) -> torch.Tensor:
    """(tokens, channels of 2x2 patches, normalised) to (channels, height, width) as the decoder takes them."""
    side = pipeline.vae_scale_factor * 2
    grid = packed.view(size.height // side, size.width // side, -1).permute(2, 0, 1)[None].float()
    norm = pipeline.vae.bn
    deviation = (norm.running_var.float() + pipeline.vae.config.batch_norm_eps).sqrt()
    grid = grid * deviation.view(1, -1, 1, 1).to(grid.device) + norm.running_mean.float().view(1, -1, 1, 1).to(
        grid.device
    )
    unpatched: torch.Tensor = pipeline._unpatchify_latents(grid)
    return unpatched[0]


# From the latents of one picture in a pipeline's loop to those that its autoencoder decodes, by the family's `latents`.
UNPACK: dict[str, Callable[[Any, torch.Tensor, Size], torch.Tensor]] = {"flux2": _flux2}

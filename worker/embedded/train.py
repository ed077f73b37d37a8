"""Trains the embedded model from nothing, in stages that a second run continues: vae, text, dit, export."""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from worker.embedded import checkpoint, data, dit, evaluate, export, text, vae

M = TypeVar("M", bound=torch.nn.Module)
_CAPTIONS, _INSTRUCTIONS = 80_000, 20_000


def main(arguments: list[str] | None = None) -> int:
    """The command line; every figure it prints is also in `--work`/log.txt."""
    parser = argparse.ArgumentParser(prog="python -m worker.embedded.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported pipeline")
    parser.add_argument(
        "--work", type=Path, default=Path(".train"), help="folder of checkpoints; a second run continues from it"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=70.0,
        help="of image model training, over all runs; the rate falls in the last part",
    )
    parser.add_argument("--vae-minutes", type=float, default=5.5)
    parser.add_argument("--text-minutes", type=float, default=2.5)
    parser.add_argument("--decay", type=float, default=0.25, help="the share of --minutes in which the rate falls to 0")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=48, help="samples of one step of one process")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile (no C++ compiler needed)")
    parser.add_argument("--ranks", type=int, help="processes that train in step; one on cuda, else two")
    parser.add_argument(
        "--report", type=float, default=10.0, help="minutes between checkpoints, each with a look at the figures"
    )
    options = parser.parse_args(arguments)
    options.ranks = options.ranks or (1 if options.device == "cuda" else 2)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    log = _log(options.work)
    forbidden = data.held_out()
    autoencoder = _vae_stage(options, forbidden, log)
    tower, tokenizer = _text_stage(options, forbidden, log)
    _corpus_stage(options, export.Parts(autoencoder, tower, tokenizer), forbidden, log)
    if options.ranks == 1:
        _image_stage(0, options)
    else:
        _image_stage_of_several(options)
    return 0


def _image_stage_of_several(options: argparse.Namespace) -> None:
    (options.work / "meeting").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the ranks below do not outlive us
    ranks = torch.multiprocessing.spawn(_image_stage, (options,), options.ranks, join=False)
    try:
        while not ranks.join():
            continue
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()


def _log(work: Path) -> Callable[[str], None]:
    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        with (work / "log.txt").open("a", encoding="utf-8") as file:
            print(stamped, file=file)
        print(stamped, file=sys.stderr, flush=True)

    return log


def _image_stage(rank: int, options: argparse.Namespace) -> None:
    """Trains the image model, with `options.ranks` processes in step, and exports it."""
    torch.set_num_threads(options.threads)
    if options.ranks > 1:
        meeting = f"file://{(options.work / 'meeting').absolute()}"
        backend = "nccl" if options.device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=options.ranks)
    log = _log(options.work)
    parts = export.Parts(_vae_stage(options, data.held_out(), log), *_text_stage(options, data.held_out(), log))
    corpus = dit.Corpus(
        **checkpoint.read(options.work / "latents.safetensors")[0],
        **checkpoint.read(options.work / "words.safetensors")[0],
    )
    training = dit.Training(corpus, options.device, options.seed, options.rate, options.batch, not options.no_compile)
    begun = options.work / "dit.safetensors"
    if begun.exists():
        training.load(begun)
        log(f"continuing after {training.progress.samples} samples")

    def report(now: dit.Training) -> None:
        pipeline = parts.pipeline(now.average)
        figures = evaluate.figures(pipeline, count=60, seed=1)
        now.progress.history.append({"samples": now.progress.samples, "loss": now.progress.loss, **figures})
        log(f"held out: {figures}")
        now.save(begun)
        evaluate.contact_sheet(pipeline, options.work / "sheet.png")

    training.run(60 * options.minutes, options.decay, 60 * options.report, log, report)
    if rank == 0:
        export.write(options.out, parts, training, options.seed, log)


def _vae_stage(
    options: argparse.Namespace, forbidden: frozenset[tuple[str, str, str]], log: Callable[[str], None]
) -> AutoencoderKLFlux2:
    torch.manual_seed(options.seed)
    path = options.work / "vae.safetensors"
    autoencoder = vae.build()
    if not path.exists():
        pool = vae.pictures(8000, options.seed, forbidden)
        vae.start_linear(autoencoder, pool)
        autoencoder.to(options.device)
        log(f"vae: {vae.train(autoencoder, pool, options.vae_minutes, options.seed, log):.2f} dB")
        vae.settle_norm(autoencoder, pool)
        checkpoint.write(path, autoencoder.state_dict())
    autoencoder.load_state_dict(checkpoint.read(path)[0])
    return _rounded(autoencoder).to(options.device)


def _text_stage(
    options: argparse.Namespace, forbidden: frozenset[tuple[str, str, str]], log: Callable[[str], None]
) -> tuple[Qwen3ForCausalLM, Qwen2Tokenizer]:
    torch.manual_seed(options.seed)
    path = options.work / "text.safetensors"
    if not path.exists():
        tokenizer = text.build_tokenizer()
        tower = text.build(tokenizer).to(options.device)
        log(f"text: {text.train(tower, tokenizer, options.text_minutes, options.seed, forbidden, log)}")
        tokenizer.save_pretrained(options.work / "tokenizer")
        checkpoint.write(path, text.weights(tower))
    tokenizer = Qwen2Tokenizer.from_pretrained(options.work / "tokenizer")
    tower = text.build(tokenizer)
    tower.load_state_dict(checkpoint.read(path)[0], strict=False)  # the tied output matrix is not stored twice
    tower.tie_weights()
    return _rounded(tower).to(options.device), tokenizer


def _rounded(module: M) -> M:
    # Rounded as they will be exported: what is trained on top of them sees what the exported pipeline computes.
    return module.bfloat16().float().eval().requires_grad_(False)


def _corpus_stage(
    options: argparse.Namespace,
    parts: export.Parts,
    forbidden: frozenset[tuple[str, str, str]],
    log: Callable[[str], None],
) -> None:
    latents, words = options.work / "latents.safetensors", options.work / "words.safetensors"
    if not latents.exists():
        checkpoint.write(
            latents, {"latents": vae.scene_latents(parts.vae, forbidden, log), "weights": vae.object_weights()}
        )
    if not words.exists():
        checkpoint.write(words, _words(options.seed, parts, forbidden, log))


def _words(
    seed: int, parts: export.Parts, forbidden: frozenset[tuple[str, str, str]], log: Callable[[str], None]
) -> dict[str, torch.Tensor]:
    captions = list(islice(text.scene_captions(seed + 1000, forbidden), _CAPTIONS))
    instructions = list(islice(text.edit_captions(seed + 2000, forbidden), _INSTRUCTIONS))
    words = text.encode(parts.tower, parts.tokenizer, [c for c, _ in captions])
    log(f"encoded {len(words)} captions")
    return {
        "words": words,
        "scenes": torch.tensor([scene.indices() for _, scene in captions]),
        "edit_words": text.encode(parts.tower, parts.tokenizer, [i for i, _ in instructions]),
        "before": torch.tensor([edit.before.indices() for _, edit in instructions]),
        "after": torch.tensor([edit.after.indices() for _, edit in instructions]),
        "silence": text.encode(parts.tower, parts.tokenizer, [""]),
    }


if __name__ == "__main__":
    sys.exit(main())

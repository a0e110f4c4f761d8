"""Trains the tiny text-to-shapes generator from nothing: `python -m flowfactory_tiny.pretrain --out DIR`.

The result is an ordinary diffusers StableDiffusion3Pipeline of about 2 million parameters which draws 32 x 32 pictures
of `scenes`, in the way of arXiv:2403.03206: a small autoencoder first, then a rectified flow on its latents, trained
together with two word-level CLIP text encoders, on captions that are true and then on some that are wrong. Two runs
with one seed and one number of threads give the same bytes.
"""

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flowfactory_tiny.scenes import (
    KINDS,
    Scene,
    enumerate_descriptions,
    render,
    sample_mistaken_scene,
    sample_scene,
    write_caption,
)
from flowfactory_tiny.untrained import MAX_TOKENS, SIZE, build_pipeline

VAE_BATCH = 8
VAE_STEPS = 5000
VAE_RATE = 2e-3
VAE_NOISE = 0.2
FLOW_BATCH = 32
TRUE_STEPS, TRUE_SCENES, TRUE_RATE = 20_000, 128_000, 2e-3
MISTAKEN_STEPS, MISTAKEN_SCENES, MISTAKEN_RATE = 6_000, 48_000, 1e-3
MISTAKEN = 0.5
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999


def train(
    out: Path, seed: int, vae_steps: int = VAE_STEPS, true_steps: int = TRUE_STEPS, mistaken_steps: int = MISTAKEN_STEPS
) -> StableDiffusion3Pipeline:
    """The trained pipeline, also saved in the new folder `out`, with a grid of samples in a png beside it.

    Raises FileExistsError if `out` is already there.
    """
    if out.exists():
        raise FileExistsError(f"{out} already exists, choose a new folder")
    pipeline = build_pipeline(seed)
    check_encoding(pipeline)
    train_vae(pipeline.vae, vae_steps, seed)
    learn_scenes(pipeline, true_steps, seed)
    learn_mistakes(pipeline, mistaken_steps, seed)
    save(pipeline, out)
    samples = sample(pipeline, example_captions(), steps=10, guidance=1.0, seed=seed)
    save_grid(samples, out.with_name(f"{out.name}.png"))
    return pipeline


def encode_captions(pipeline: StableDiffusion3Pipeline, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token embeddings [B, 13, 128] and pooled embeddings [B, 128], with gradients.

    Equal to `pipeline.encode_prompt(max_sequence_length=1)`: the last token is the zero that stands for T5.
    """
    options = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
    tokens = pipeline.tokenizer(list(captions), **options).input_ids
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    embeddings = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return F.pad(embeddings, (0, 0, 0, 1)), torch.cat([output.text_embeds for output in outputs], dim=-1)


def check_encoding(pipeline: StableDiffusion3Pipeline) -> None:
    """Raises RuntimeError if `encode_captions` differs from what the pipeline will compute when it samples."""
    captions = ["", *example_captions()]
    with torch.no_grad():
        mine = encode_captions(pipeline, captions)
        prompts = {"prompt": captions, "prompt_2": captions, "prompt_3": captions}
        theirs = pipeline.encode_prompt(**prompts, max_sequence_length=1, do_classifier_free_guidance=False)
    if not (torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[2])):
        raise RuntimeError("training and sampling would encode captions differently")


def train_vae(vae: AutoencoderTiny, steps: int, seed: int) -> None:
    """Trains `vae` in place to redraw scenes, then sets its shift and scale to whiten the latents.

    Noise on the latents makes the decoder draw clean shapes from the latents that a flow only nearly hits.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), VAE_RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    started = time.perf_counter()
    for step in range(1, steps + 1):
        pictures = render_pictures([sample_scene(rng) for _ in range(VAE_BATCH)]).contiguous(memory_format=torch.channels_last)
        latents = vae.encoder(pictures)
        noise = torch.randn(latents.shape, generator=generator)
        redrawn = vae.decoder(latents + VAE_NOISE * noise)
        loss = F.mse_loss(redrawn, pictures) + 0.2 * F.l1_loss(redrawn, pictures) + 1e-3 * latents.square().mean()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"vae step {step}/{steps} loss {loss.item():.4f} {seconds:.0f} s", flush=True)
    vae.requires_grad_(False).to(memory_format=torch.contiguous_format)
    pictures = render_pictures([sample_scene(rng) for _ in range(512)])
    latents = vae.encoder(pictures)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    error = F.mse_loss(vae.decoder(latents), pictures).item() / 4
    print(f"vae PSNR {-10 * math.log10(error):.1f} dB, latents {latents.mean():.3f} +- {latents.std():.3f}", flush=True)


def learn_scenes(pipeline: StableDiffusion3Pipeline, steps: int, seed: int) -> None:
    """Trains transformer and text encoders in place on captions that are true, so that shapes become crisp."""
    rng = random.Random(seed + 1)
    scenes = [sample_scene(rng) for _ in range(min(TRUE_SCENES, FLOW_BATCH * steps))]
    train_flow(pipeline, scenes, steps, TRUE_RATE, seed + 1)


def learn_mistakes(pipeline: StableDiffusion3Pipeline, steps: int, seed: int) -> None:
    """Trains on in place where `MISTAKEN` of the captions are wrong, as captions of real pictures are."""
    rng = random.Random(seed + 2)
    scenes = [sample_mistaken_scene(rng, MISTAKEN) for _ in range(min(MISTAKEN_SCENES, FLOW_BATCH * steps))]
    train_flow(pipeline, scenes, steps, MISTAKEN_RATE, seed + 2)


def train_flow(pipeline: StableDiffusion3Pipeline, scenes: Sequence[Scene], steps: int, rate: float, seed: int) -> None:
    """Trains transformer and text encoders in place by flow matching (arXiv:2210.02747), and keeps their average.

    The scenes are drawn and encoded once.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    latents = encode_pictures(pipeline.vae, scenes)
    modules = nn.ModuleList([pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]).train()
    parameters = list(modules.parameters())
    averages: list[Tensor] = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100, max(0.02, 2 * (1 - step / steps)))
    )
    losses = []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.randint(len(scenes), (FLOW_BATCH,), generator=generator)
        captions = ["" if rng.random() < CAPTION_DROPOUT else scenes[row].caption for row in rows.tolist()]
        loss = flow_loss(pipeline, latents[rows], captions, generator)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, [*parameters], 1 - min(EMA_DECAY, step / (step + 9)))
        losses.append(loss.item())
        if step % 200 == 0 or step == steps:
            mean, seconds = sum(losses[-200:]) / len(losses[-200:]), time.perf_counter() - started
            print(f"flow step {step}/{steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    modules.eval()


def encode_pictures(vae: AutoencoderTiny, scenes: Sequence[Scene], batch: int = 240) -> Tensor:
    """Whitened latents [B, 8, 8, 8] of rendered scenes."""
    pieces = []
    with torch.no_grad():
        for start in range(0, len(scenes), batch):
            latents = vae.encoder(render_pictures(scenes[start : start + batch]))
            pieces.append((latents - vae.config.shift_factor) * vae.config.scaling_factor)
    return torch.cat(pieces)


def flow_loss(
    pipeline: StableDiffusion3Pipeline, latents: Tensor, captions: Sequence[str], generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity [B, 8, 8, 8] at logit-normal times; the empty caption allows guidance."""
    embeddings, pooled = encode_captions(pipeline, captions)
    sigmas = torch.sigmoid(torch.randn(len(latents), generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
    velocity = pipeline.transformer(
        noisy,
        encoder_hidden_states=embeddings,
        pooled_projections=pooled,
        timestep=1000 * sigmas,
        return_dict=False,
    )[0]
    return F.mse_loss(velocity, noise - latents)


def render_pictures(scenes: Sequence[Scene]) -> Tensor:
    """Rendered scenes [B, 3, 32, 32] in [-1, 1]."""
    return render(scenes, SIZE) * 2 - 1


def sample(pipeline: StableDiffusion3Pipeline, captions: Sequence[str], steps: int, guidance: float, seed: int) -> Tensor:
    """Pictures [B, 3, 32, 32] in [0, 1], one a caption, by `steps` Euler steps; guidance 1 is off."""
    pictures = pipeline(
        list(captions),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=SIZE,
        width=SIZE,
        max_sequence_length=1,
        output_type="pt",
        generator=torch.Generator().manual_seed(seed),
    ).images
    assert isinstance(pictures, Tensor)
    return pictures


def example_captions() -> list[str]:
    """Sixteen captions of each kind, the same ones always."""
    rng = random.Random(0)
    return [write_caption(example) for kind in KINDS for example in rng.sample(list(enumerate_descriptions(kind)), 16)]


def save(pipeline: StableDiffusion3Pipeline, out: Path) -> None:
    """Writes the pipeline to `out`, which appears only when it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        pipeline.save_pretrained(unfinished, safe_serialization=True)
        drop_derived_options(unfinished / "vae" / "config.json")
        unfinished.chmod(0o755)
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def drop_derived_options(config: Path) -> None:
    """Removes from a saved AutoencoderTiny config what the class derives itself and warns of when it is loaded."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("block_out_channels", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_grid(pictures: Tensor, path: Path, columns: int = 8, zoom: int = 4) -> None:
    """Writes `pictures` [B, 3, H, W] in [0, 1] as one png, enlarged `zoom` times."""
    padded = F.pad(pictures.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3), (2, 2, 2, 2), value=0.25)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in torch.split(padded, columns)], dim=1)
    Image.fromarray((rows.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)


def main() -> None:
    """The command line of `python -m flowfactory_tiny.pretrain`."""
    parser = argparse.ArgumentParser(prog="python -m flowfactory_tiny.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--true-steps", type=int, default=TRUE_STEPS, help="on captions that are true")
    parser.add_argument("--mistaken-steps", type=int, default=MISTAKEN_STEPS, help="after them, on some that are wrong")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.seed, options.vae_steps, options.true_steps, options.mistaken_steps)


if __name__ == "__main__":
    main()

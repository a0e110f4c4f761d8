"""Trains the tiny text-to-shapes generator from nothing: `python -m flowfactory_tiny.pretrain --out DIR`.

The result is an ordinary diffusers StableDiffusion3Pipeline of about 2 million parameters which draws 32 x 32 pictures
of `scenes`, in the way of arXiv:2403.03206: a small autoencoder first, then a rectified flow on its latents, trained
together with two word-level CLIP text encoders. Two runs with one seed and one number of threads give the same bytes.
"""

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from PIL import Image
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from flowfactory_tiny.scenes import KINDS, WORDS, Scene, enumerate_descriptions, render, sample_scene, write_caption

SIZE = 32
LATENT_CHANNELS = 8
LATENT_SIZE = 8
MAX_TOKENS = 12
TEXT_WIDTH = 64
WIDTH = 128
HEAD_WIDTH = 32
LAYERS = 3
PATCH = 2

VAE_BATCH = 8
VAE_STEPS = 5000
VAE_RATE = 2e-3
VAE_NOISE = 0.1
SCENES = 48_000
FLOW_BATCH = 32
FLOW_STEPS = 7500
FLOW_RATE = 2e-3
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999


def train(out: Path, seed: int, vae_steps: int = VAE_STEPS, flow_steps: int = FLOW_STEPS) -> StableDiffusion3Pipeline:
    """The trained pipeline, also saved in the new folder `out`, with a grid of samples in a png beside it.

    Raises FileExistsError if `out` is already there.
    """
    if out.exists():
        raise FileExistsError(f"{out} already exists, choose a new folder")
    pipeline = build_pipeline(seed)
    check_encoding(pipeline)
    train_vae(pipeline.vae, vae_steps, seed)
    train_flow(pipeline, flow_steps, seed)
    save(pipeline, out)
    samples = sample(pipeline, example_captions(), steps=10, guidance=1.0, seed=seed)
    save_grid(samples, out.with_name(f"{out.name}.png"))
    return pipeline


def build_pipeline(seed: int) -> StableDiffusion3Pipeline:
    """An untrained pipeline; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(32, 32, 32),
            decoder_block_out_channels=(32, 32, 32),
            num_encoder_blocks=(0, 1, 1),
            num_decoder_blocks=(2, 2, 1),
            latent_channels=LATENT_CHANNELS,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
        first, second = build_text_encoder(len(build_tokenizer())), build_text_encoder(len(build_tokenizer()))
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            patch_size=PATCH,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=LAYERS,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=WIDTH // HEAD_WIDTH,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=LATENT_SIZE,
            qk_norm="rms_norm",
        )
        init_vae(vae)
    zero_init_modulation(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=first,
        tokenizer=build_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=build_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (vae, first, second, transformer):
        module.eval()
    return pipeline


def init_vae(vae: AutoencoderTiny) -> None:
    """Weights that keep the variance through rectifiers (arXiv:1502.01852); every residual block starts as none.

    With the default weights the colours take several times as many steps to appear.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            nn.init.zeros_(module.conv[-1].weight)
    for last in (vae.encoder.layers[-1], vae.decoder.layers[-1]):
        nn.init.xavier_normal_(last.weight, gain=0.5)


def zero_init_modulation(transformer: SD3Transformer2DModel) -> None:
    """Every block starts as the identity and the output as zero (adaLN-Zero, arXiv:2212.09748)."""
    for name, module in transformer.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def build_text_encoder(vocabulary: int) -> CLIPTextModelWithProjection:
    """A two-layer CLIP text encoder; the end token is the last of the vocabulary and pads too."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            hidden_act="gelu",
        )
    )


def build_tokenizer() -> CLIPTokenizer:
    """A tokenizer in which every word of the grammar is one token; any other text is spelled in letters."""
    vocabulary, merges = build_bpe(WORDS)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_bpe(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair encoding that joins each of `words` into one token.

    The trainer of `tokenizers` numbers its tokens in hash order, which changes from run to run.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merges = []
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        pair = max(pairs, key=lambda candidate: (pairs[candidate], candidate))
        merges.append(pair)
        vocabulary.setdefault("".join(pair), len(vocabulary))
        spelled = [merge_pair(word, pair) for word in spelled]
    return vocabulary, merges


def merge_pair(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """`word` with each occurrence of `pair` joined, from left to right."""
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


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


def train_flow(pipeline: StableDiffusion3Pipeline, steps: int, seed: int) -> None:
    """Trains transformer and text encoders in place by flow matching (arXiv:2210.02747), and keeps their average.

    The scenes are drawn and encoded once, more of them than there are steps to see each of them often.
    """
    rng, generator = random.Random(seed + 1), torch.Generator().manual_seed(seed + 1)
    scenes = [sample_scene(rng) for _ in range(min(SCENES, FLOW_BATCH * steps))]
    latents = encode_pictures(pipeline.vae, scenes)
    modules = nn.ModuleList([pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]).train()
    parameters = list(modules.parameters())
    averages: list[Tensor] = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, FLOW_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
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
    parser.add_argument("--flow-steps", type=int, default=FLOW_STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.seed, options.vae_steps, options.flow_steps)


if __name__ == "__main__":
    main()

import sys
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from flowfactory.testing.tiny_checkpoints import clip_text, clip_tokenizer, kl_vae, sd3_transformer, t5_text, t5_tokenizer
from transformers import CLIPTextModelWithProjection


def build(folder: Path) -> Path:
    # Change: your pipeline with parts of its own classes, as small as they can be
    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    StableDiffusion3Pipeline(
        transformer=sd3_transformer(16, 4, 2, (2, 16), 32, 32).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae((8, 16), 4, 0.0609, 1.5305, layers_per_block=1).eval(),
        text_encoder=clip_text(CLIPTextModelWithProjection, len(clip), 16),
        tokenizer=clip,
        text_encoder_2=clip_text(CLIPTextModelWithProjection, len(clip), 16),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(len(t5), 32),
        tokenizer_3=t5,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("checkpoint")))


if __name__ == "__main__":
    build(Path(sys.argv[1]))

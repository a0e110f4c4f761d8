"""Object detectors and a CLIP, so small that a test makes them in no time, with weights of a fixed seed, saved to folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    PreTrainedModel,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    SwinConfig,
)

from flowfactory.testing.tiny_checkpoints import byte_pairs

WORDS = ("a", "photo", "of", "red", "green", "blue", "object", "cat", "dog", "colored", "good", "bad", ".", "-")
LABELS = {0: "cat", 1: "dog", 2: "keyboard"}
_TRUNK = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TRANSFORMER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


def _saved(model: PreTrainedModel, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    return folder


def _bpe(length: int) -> CLIPTokenizer:
    vocabulary, merges = byte_pairs(WORDS, "</w>")
    for special in ("<|startoftext|>", "<|endoftext|>"):  # CLIP pools at the highest id
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP that looks at 32 x 32 pixels in patches of 8."""
    torch.manual_seed(seed)
    tokenizer = _bpe(16)
    trunk = {**_TRUNK, "initializer_factor": 8.0}  # so that it tells pictures apart
    text = {**trunk, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config={**trunk, "image_size": 32, "patch_size": 8}, projection_dim=16)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return _saved(CLIPModel(config), folder)


def owl(folder: Path, second: bool, seed: int = 0) -> Path:
    """An OWL-ViT, or if ``second`` an OWLv2, with 16 places where an object may be."""
    torch.manual_seed(seed)
    tokenizer = _bpe(16)
    text = {**_TRUNK, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    vision = {**_TRUNK, "image_size": 32, "patch_size": 8}
    config = (Owlv2Config if second else OwlViTConfig)(text_config=text, vision_config=vision, projection_dim=16)
    pictures = (Owlv2ImageProcessorPil if second else OwlViTImageProcessorPil)(size={"height": 32, "width": 32})
    (Owlv2Processor if second else OwlViTProcessor)(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return _saved((Owlv2ForObjectDetection if second else OwlViTForObjectDetection)(config), folder)


def grounding_dino(folder: Path, seed: int = 0) -> Path:
    """A Grounding DINO with 6 places where an object may be."""
    torch.manual_seed(seed)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate([*specials, *WORDS])}, model_max_length=32)
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin, text_config={**_TRUNK, "model_type": "bert", "vocab_size": len(tokenizer)},
        **{**_TRANSFORMER, "d_model": 32, "decoder_layers": 2}, num_queries=6, num_feature_levels=3,
        encoder_n_points=2, decoder_n_points=2, max_text_len=32,
        positional_embedding_temperature=20,
    )  # fmt: skip
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    GroundingDinoProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return _saved(GroundingDinoForObjectDetection(config), folder)


def rt_detr(folder: Path, seed: int = 0) -> Path:
    """An RT-DETR with LABELS and 6 places where an object may be."""
    torch.manual_seed(seed)
    trunk = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=trunk, **_TRANSFORMER, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[16, 16, 16], num_queries=6, num_denoising=0, decoder_n_points=2, id2label=LABELS,
    )  # fmt: skip
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return _saved(RTDetrForObjectDetection(config), folder)


def detr(folder: Path, certain: Sequence[float] | None = None, box: Sequence[float] = (0.5, 0.5, 0.5, 0.5)) -> Path:
    """A DETR with LABELS that finds three things.

    ``certain``: the logits of LABELS and of nothing that all three have, whatever the picture, at ``box``, centre and size.
    """
    torch.manual_seed(0)
    trunk = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=trunk, **_TRANSFORMER,
        num_queries=3, id2label=LABELS,
    )  # fmt: skip
    model = DetrForObjectDetection(config)
    if certain is not None:
        with torch.no_grad():
            for layer, values in (
                (model.class_labels_classifier, torch.tensor(certain)),
                (model.bbox_predictor.layers[-1], torch.tensor(box).logit()),
            ):
                layer.weight.zero_()
                layer.bias.copy_(values)
    DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return _saved(model, folder)

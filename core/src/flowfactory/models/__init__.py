"""What families of models over diffusers pipelines share."""

from flowfactory.data.pictures import read_picture
from flowfactory.data.videos import read_video
from flowfactory.models.checkpoint_files import check_file, check_files, check_settings, reading
from flowfactory.models.context_checks import check_text
from flowfactory.models.family import Entry, Family, Parts, extrapolated_guidance, linear_guidance
from flowfactory.models.family_config import FamilyConfig
from flowfactory.models.frames import decode_frame, encode_frame, frame_grid
from flowfactory.models.guidance import guide_until, norm_ratio
from flowfactory.models.image_conditions import number_images, stack_images
from flowfactory.models.latents import (
    channel_statistics,
    decode_normalized,
    decode_scaled,
    encode_normalized,
    encode_scaled,
    latent_shape,
    pack_latents,
    packed_grid,
    packed_positions,
    packed_shape,
    posterior_mean,
    unpack_latents,
)
from flowfactory.models.loading_report import load_module, refuse_gaps
from flowfactory.models.pretrained import Pretrained, checkpoint_identity
from flowfactory.models.resolution import Grid
from flowfactory.models.schedules import even_sigmas, resolution_shift, scheduler_sigmas, shifted_sigmas
from flowfactory.models.tokenizers import check_vocabulary, has_vocabulary, load_tokenizer

__all__ = [
    "Entry",
    "Family",
    "FamilyConfig",
    "Grid",
    "Parts",
    "Pretrained",
    "channel_statistics",
    "check_file",
    "check_files",
    "check_settings",
    "check_text",
    "check_vocabulary",
    "checkpoint_identity",
    "decode_frame",
    "decode_normalized",
    "decode_scaled",
    "encode_frame",
    "encode_normalized",
    "encode_scaled",
    "even_sigmas",
    "extrapolated_guidance",
    "frame_grid",
    "guide_until",
    "has_vocabulary",
    "latent_shape",
    "linear_guidance",
    "load_module",
    "load_tokenizer",
    "norm_ratio",
    "number_images",
    "pack_latents",
    "packed_grid",
    "packed_positions",
    "packed_shape",
    "posterior_mean",
    "read_picture",
    "read_video",
    "reading",
    "refuse_gaps",
    "resolution_shift",
    "scheduler_sigmas",
    "shifted_sigmas",
    "stack_images",
    "unpack_latents",
]

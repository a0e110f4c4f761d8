"""What families of models over diffusers pipelines share."""

from flowfactory.data.media import read_picture, read_video
from flowfactory.models.family import Entry, Family, FamilyConfig, Parts, linear_guidance
from flowfactory.models.image_conditions import number_images, stack_images
from flowfactory.models.latents import channel_statistics, decode_normalized, decode_scaled, latent_shape, packed_shape
from flowfactory.models.pretrained import Pretrained, checkpoint_identity
from flowfactory.models.resolution import Grid
from flowfactory.models.schedules import even_sigmas, resolution_shift, scheduler_sigmas, shifted_sigmas

__all__ = [
    "Entry",
    "Family",
    "FamilyConfig",
    "Grid",
    "Parts",
    "Pretrained",
    "channel_statistics",
    "checkpoint_identity",
    "decode_normalized",
    "decode_scaled",
    "even_sigmas",
    "latent_shape",
    "linear_guidance",
    "number_images",
    "packed_shape",
    "read_picture",
    "read_video",
    "resolution_shift",
    "scheduler_sigmas",
    "shifted_sigmas",
    "stack_images",
]

"""Rewards for flowfactory, one a file."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl

REWARDS = {
    "aesthetic": "aesthetic:AestheticConfig",
    "clip": "clip:ClipConfig",
    "geneval": "geneval:GenevalConfig",
    "group-rank": "group_rank:GroupRankConfig",
    "hpsv2": "hpsv2:HpsV2Config",
    "hpsv3": "hpsv3:HpsV3Config",
    "image-quality": "image_quality:ImageQualityConfig",
    "imagereward": "imagereward:ImageRewardConfig",
    "jpeg-size": "jpeg_size:JpegSizeConfig",
    "ocr": "ocr:OcrConfig",
    "pairwise": "pairwise:PairwiseConfig",
    "pickscore": "pickscore:PickScoreConfig",
    "remote": "remote:RemoteConfig",
    "siglip": "siglip:SiglipConfig",
    "video-consistency": "video_consistency:VideoConsistencyConfig",
    "video-motion": "video_motion:VideoMotionConfig",
    "vlm": "vlm:VlmConfig",
}


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the rewards, whose modules are imported when a config names them."""
    for name, config in REWARDS.items():
        register("reward", name, f"flowfactory_rewards.{config}")

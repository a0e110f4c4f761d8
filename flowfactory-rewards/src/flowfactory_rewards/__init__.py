"""Rewards for flowfactory, one a file."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the rewards, whose modules are imported when a config names them."""
    register("reward", "jpeg-size", "flowfactory_rewards.jpeg_size:JpegSizeConfig")
    register("reward", "geneval", "flowfactory_rewards.geneval:GenevalConfig")
    register("reward", "image-quality", "flowfactory_rewards.image_quality:ImageQualityConfig")
    register("reward", "ocr", "flowfactory_rewards.ocr:OcrConfig")
    register("reward", "video-consistency", "flowfactory_rewards.video_consistency:VideoConsistencyConfig")
    register("reward", "video-motion", "flowfactory_rewards.video_motion:VideoMotionConfig")
    register("reward", "aesthetic", "flowfactory_rewards.aesthetic:AestheticConfig")
    register("reward", "clip", "flowfactory_rewards.clip:ClipConfig")
    register("reward", "hpsv2", "flowfactory_rewards.hpsv2:HpsV2Config")
    register("reward", "hpsv3", "flowfactory_rewards.hpsv3:HpsV3Config")
    register("reward", "imagereward", "flowfactory_rewards.imagereward:ImageRewardConfig")
    register("reward", "pickscore", "flowfactory_rewards.pickscore:PickScoreConfig")
    register("reward", "group-rank", "flowfactory_rewards.group_rank:GroupRankConfig")
    register("reward", "siglip", "flowfactory_rewards.siglip:SiglipConfig")
    register("reward", "pairwise", "flowfactory_rewards.pairwise:PairwiseConfig")
    register("reward", "remote", "flowfactory_rewards.remote:RemoteConfig")
    register("reward", "vlm", "flowfactory_rewards.vlm:VlmConfig")

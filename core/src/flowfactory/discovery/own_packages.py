"""Which package of this project brings a component that is not installed, so that a message can name it."""

from __future__ import annotations

from flowfactory.discovery.installed_version import installed_version

OWN_PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {
        "flowfactory-chroma": ("chroma",),
        "flowfactory-flux": ("flux1", "flux1-kontext", "flux2", "flux2-klein"),
        "flowfactory-hunyuan-video": ("hunyuan-video-1.5", "hunyuan-video-1.5-i2v"),
        "flowfactory-krea": ("krea2",),
        "flowfactory-lumina2": ("lumina2",),
        "flowfactory-qwen-image": ("qwen-image", "qwen-image-edit", "qwen-image-2.1", "qwen-image-2.1-edit"),
        "flowfactory-sana": ("sana",),
        "flowfactory-sd3": ("sd3",),
        "flowfactory-tiny": ("tiny",),
        "flowfactory-wan": ("wan-t2v", "wan-i2v", "wan-flf2v", "wan-v2v"),
        "flowfactory-z-image": ("z-image",),
    },
    "algorithm": {
        "flowfactory-awm": ("awm", "ram", "rvm"),
        "flowfactory-crd": ("crd",),
        "flowfactory-distill": ("dmd2", "opd", "tdm", "tdm-r1"),
        "flowfactory-dpo": ("dpo", "offline-dpo", "dgpo"),
        "flowfactory-grpo": ("grpo", "grpo-guard", "dppo", "flash-grpo"),
        "flowfactory-nft": ("nft", "v-grpo"),
        "flowfactory-sft": ("sft",),
    },
    "reward": {
        "flowfactory-rewards": (
            *("aesthetic", "clip", "geneval", "group-rank", "hpsv2", "hpsv3", "image-quality", "imagereward", "jpeg-size"),
            *("ocr", "pairwise", "pickscore", "remote", "siglip", "video-consistency", "video-motion", "vlm"),
        ),
        "flowfactory-tiny": ("scene", "color-share"),
    },
}


def missing_package(kind: str, name: str) -> str | None:
    """The package of this project that has the component ``name``; None where none has, or it is installed."""
    packages = OWN_PACKAGES.get(kind, {})
    return next((package for package, names in packages.items() if name in names and not installed_version(package)), None)

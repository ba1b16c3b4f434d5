"""A run of segmentation from its scenes to its page: the metrics, the table of classes, and the
masks in one picture."""

import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import DigitScenes, MaskData
from bigmodel_jax.models import UNetConfig
from bigmodel_jax.objectives import Segmentation
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.page import build_report
from bigmodel_jax.training.run import train


@pytest.mark.slow
def test_a_run_ends_with_masks_on_its_page(tmp_path):
    config = Config(
        model=UNetConfig(image_shape=(32, 32, 1), num_classes=11, channels=(4, 8)),
        objective=Segmentation(dice=1.0, pictures=3),
        data=MaskData(source=DigitScenes(train=32, validation=6, side=32), max_shift=2, cache_dir=str(tmp_path / "c")),
        train=TrainConfig(steps=3, batch_size=8),
    )
    found = train(config, tmp_path / "run")
    assert 0 <= found["eval/mean_iou"] <= found["eval/pixel_accuracy"] <= 1
    run = load_run(tmp_path / "run")
    assert [name for name, _ in run.pictures] == ["00000003.png"]
    assert len(run.last("eval/overlap")) == 11
    page = build_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    for text in ("Mean intersection over union", "<th>IoU</th>", "<th>ground</th>", "Pixels"):
        assert text in page, text


def test_an_ignored_label_of_the_data_alone_is_refused():
    config = Config(
        model=UNetConfig.tiny(), objective=Segmentation(ignore_label=254), data=MaskData(), train=TrainConfig(steps=1)
    )
    with pytest.raises(ValueError, match=r"objective\.ignore_label = 254, and data\.ignore_label = 255"):
        config.objective.validate(config)

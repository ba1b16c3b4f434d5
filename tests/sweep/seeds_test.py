import dataclasses
import json
import math
from pathlib import Path

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import replaced
from bigmodel_jax.sweep import seeds

CONFIG = config_file.load(Path(__file__).with_name("small_sweep.py"))
# Extra sleep (hours) of ten patients under two drugs: Student, Biometrika 6 (1908), with t =
# 4.0621, p = 0.00283.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_the_paired_t_test_is_students():
    found = seeds.paired(FIRST, SECOND)
    assert found["difference"] == pytest.approx(1.58)
    assert found["p_t"] == pytest.approx(0.00283289, rel=1e-5)
    assert found["interval"] == pytest.approx([0.7001142, 2.4598858], rel=1e-6)


def test_the_permutation_test_counts_every_way_of_signs():
    assert seeds.paired([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])["p_permutation"] == 2 / 2**5
    signs = [1.0, 2.0, 3.0, -4.0]
    means = [sum(s * (1 if i >> n & 1 else -1) for n, s in enumerate(map(abs, signs))) for i in range(16)]
    expected = sum(abs(mean) >= abs(sum(signs)) for mean in means) / 16
    assert seeds.paired([0.0] * 4, signs)["p_permutation"] == expected


def test_a_seed_that_failed_with_one_config_is_in_no_pair():
    found = seeds.paired([1.0, None, 3.0, 5.0], [2.0, 2.0, None, 7.0])
    assert (found["count"], found["difference"]) == (2, 1.5)
    assert seeds.paired([1.0, None], [None, 2.0]) == {}
    assert seeds.summary("a", [1.0, None, 3.0]) == {
        "name": "a",
        "values": [1.0, None, 3.0],
        "mean": 2.0,
        "std": math.sqrt(2),
    }


def test_equal_runs_have_no_t_test():
    found = seeds.paired([1.0, 2.0], [1.0, 2.0])
    assert (found["p_t"], found["interval"], found["p_permutation"]) == (None, None, 1.0)


def test_each_config_trains_with_the_same_seeds(tmp_path, monkeypatch):
    seen = []

    def trained(config, folder, metric, programs):
        seen.append((folder.name, config.train.seed, config.optim.lr))
        return (None, "out of memory") if folder.name == "B-2" else (config.train.seed + config.optim.lr, "")

    monkeypatch.setattr(seeds, "trained", trained)
    other = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, lr=0.5))
    said = []
    found = seeds.compare({"A": CONFIG, "B": other}, 3, "eval/loss", "minimize", tmp_path, said.append)
    assert seen == [(f"{name}-{i}", i, lr) for i in range(3) for name, lr in (("A", 0.01), ("B", 0.5))]
    assert json.loads((tmp_path / "seeds.json").read_text()) == found
    assert found["reasons"] == {"B-2": "out of memory"}
    assert "B-2  failed: out of memory" in said
    assert seeds.lines(found)[0] == "A: eval/loss 1.01 ± 1 (3 seeds)"
    assert seeds.lines(found)[2].startswith("B - A: 0.49;")
    (folder := tmp_path / "seeds/B-1").mkdir(parents=True)
    config_file.save(replaced(other, "train.seed", 7), folder / "config.json")
    seen.clear()
    with pytest.raises(ValueError, match=r"B-1' holds a run of another config: train.seed was 7, now 1"):
        seeds.compare({"A": CONFIG, "B": other}, 3, "eval/loss", "minimize", tmp_path, print)
    assert not seen, "nothing is trained, and the record stays"


def test_a_comparison_without_one_good_run_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "trained", lambda *args: (None, "out of memory"))
    with pytest.raises(ValueError, match="none of the 4 runs completed; the first failure: out of memory"):
        seeds.compare({"A": CONFIG, "B": CONFIG}, 2, "eval/loss", "minimize", tmp_path, print)

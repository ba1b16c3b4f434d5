"""The page of a pruned run: every sparsity with its figure, before and after healing."""

import pytest

from bigmodel_jax.report.prune_page import build_prune_page


def record(kind, **more):
    def point(asked, loss, **about):
        scalars = {"eval/loss": loss, "eval/accuracy": 0.5}
        return {
            "asked": asked,
            "parameters": 1000 - 400 * bool(about),
            "zeros": 0,
            "share": asked,
            "scalars": scalars,
        } | about

    about = {"gone": [1], "influence": [0.5, 0.125, 0.25], "num_layers": 2} if kind == "structured_layers" else {}
    found = {
        "run": "runs/<a>",
        "step": 7,
        "kind": kind,
        "pattern": "",
        "heal": 0,
        "metric": "eval/loss",
        "better": "less",
    }
    return found | {"dense": point(0.0, 1.5), "points": [point(0.25, 1.75, **about), point(0.5, 2.125, **about)]} | more


def page(tmp_path, found):
    return build_prune_page(found, tmp_path / "prune.html").read_text()


@pytest.mark.parametrize("kind", ["magnitude", "wanda", "structured_layers", "mlp_channels"])
def test_every_kind_has_its_points(tmp_path, kind):
    text = page(tmp_path, record(kind))
    for shown in ("runs/&lt;a&gt;", "1.5", "1.75", "2.125", "figure over sparsity"):
        assert shown in text, shown
    assert ("block influence" in text.replace("Plot: block influence", "")) == (kind == "structured_layers")
    assert ("Zeros are stored like other numbers" in text) == (kind in ("magnitude", "wanda"))
    assert "Healed" not in text


def test_healing_is_shown_beside_and_what_is_not_finite_is_said(tmp_path):
    found = record("magnitude", heal=50)
    for point, loss in zip(found["points"], (1.625, None), strict=True):
        point["healed"] = {"eval/loss": loss, "eval/accuracy": None}
    text = page(tmp_path, found)
    for shown in ("1.625", "not finite", "50 steps", "its zeros stay zero"):
        assert shown in text, shown

"""The page of an ensemble: every member and what was made of them, whatever their names are."""

import pytest

from bigmodel_jax.report.ensemble_page import build_ensemble_page


def record(how, **more):
    members = [{"name": f"runs/<{i}>", "scalars": {"eval/loss": 0.5 + i, "eval/accuracy": 0.9}} for i in range(3)]
    scalars = {"eval/loss": 0.4375, "eval/accuracy": 0.95}
    return {"how": how, "metric": "eval/loss", "better": "less", "members": members, "scalars": scalars} | more


def page(tmp_path, found):
    return build_ensemble_page(found, tmp_path / "ensemble.html").read_text()


@pytest.mark.parametrize(("how", "says"), [("predictions", "sum of their memory"), ("weights", "as large and as fast")])
def test_members_and_the_ensemble_are_there(tmp_path, how, says):
    text = page(tmp_path, record(how, recomputed=["norm/mean"] if how == "weights" else []))
    for shown in ("0.4375", "runs/&lt;0&gt;", "Best member", says):
        assert shown in text, shown
    assert ("recomputed over training batches (arXiv:1803.05407): 1." in text) == (how == "weights")
    assert "Turns" not in text


def test_a_soups_turns_are_there_and_that_it_was_chosen_on_the_validation_split(tmp_path):
    order = [
        {"number": 0, "name": "runs/<0>", "alone": 0.5, "value": 0.5, "kept": True},
        {"number": 1, "name": "runs/<1>", "alone": 1.5, "value": 0.4375, "kept": True},
        {"number": 2, "name": "runs/<2>", "alone": 2.5, "value": None, "kept": False},
    ]
    text = page(tmp_path, record("soup", order=order, recomputed=[]))
    for shown in ("2 of 3", "stays out", "not finite", "optimistic for other data", "turns of the soup"):
        assert shown in text, shown


def test_figures_that_are_not_finite_leave_a_page(tmp_path):
    found = record("logits")
    found["scalars"] = {"eval/loss": None}
    for member in found["members"]:
        member["scalars"]["eval/loss"] = None
    assert "not finite" in page(tmp_path, found)

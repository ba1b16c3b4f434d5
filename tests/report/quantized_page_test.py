"""The plots of quantize.html."""

from bigmodel_jax.report import quantized_page


def test_kinds_of_one_size_and_value_are_all_seen(tmp_path, monkeypatch):
    """The two int8 kinds lie closer than the width of a point, so the page draws the second as a
    ring around the first."""
    kinds = {"float32": (1.0, 1.7), "int8": (0.27, 1.7003), "int8_static": (0.27, 1.7002), "int4": (0.15, 1.76)}
    rows = [{"name": name, "share": share, "value": value} for name, (share, value) in kinds.items()]
    record = {
        "run": "r",
        "step": 1,
        "eval_rows": 1,
        "calibration_rows": 1,
        "device": "cpu",
        "metric": "loss",
        "rows": rows,
    }
    drawn, render = [], quantized_page.render

    def rendered(figures, record, theme):
        drawn.append(figures["size_and_quality"](record, theme).axes[0].lines)
        return render(figures, record, theme)

    monkeypatch.setattr(quantized_page, "render", rendered)
    quantized_page.build_quantized_page(record, (["kind"], [[name] for name in kinds]), tmp_path / "quantize.html")
    assert {p.get_label(): (p.get_markersize(), p.get_fillstyle()) for p in drawn[0]} == {
        "float32": (8, "full"),
        "int8": (8, "full"),
        "int8_static": (14, "none"),
        "int4": (8, "full"),
    }

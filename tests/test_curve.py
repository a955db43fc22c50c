"""The curve of stability against held-out error: its arms, its record and its figure. Its runs are not tests."""

from __future__ import annotations

import argparse
import json

import pytest

from experiments import cli
from experiments.benchmarks import curve
from experiments.configs import check


def rows(arm, amount, error, median, **others):
    about = {"arm": arm, "amount": amount}
    first = {"metric": "median_first_passage_ps", "value": median, "low": median / 2, "high": 2 * median}
    return [
        {"metric": "force_mae_eV_per_A", "value": error} | about,
        first | {"censored": False, "horizon_ps": 20.0} | others | about,
    ]


@pytest.mark.parametrize("arm", curve.ARMS)
def test_fields_of_every_arm_are_those_of_the_config(arm):
    config = cli.load_config(str(cli.CONFIGS / "aspirin.py"))
    config.update_from_flattened_dict(curve.ARMS[arm])
    config.data.path = "somewhere"
    check.check(config)


def test_the_record_keeps_the_arms_that_are_not_run(tmp_path, monkeypatch):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({"rows": rows("pretraining", 4, 0.15, 3.0) + rows("paper", 4, 0.16, 2.0)}))
    new = rows("pretraining", 8, 0.17, 5.0)
    given = argparse.Namespace(seed=0, horizon_ps=20.0, arms=["pretraining"], cycles=1, json=path)
    monkeypatch.setattr(curve, "LENGTHS", ())
    monkeypatch.setattr(curve, "pretrained", lambda *_: curve.Point("pretraining", 8, None))
    monkeypatch.setattr(curve, "rows_of", lambda *_: new)
    curve.run(given)
    assert json.loads(path.read_text())["rows"] == rows("paper", 4, 0.16, 2.0) + new


def test_the_figure_has_a_line_for_each_arm_and_marks_lower_bounds(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append((self, path)))
    beyond = rows("natural", 8, 0.16, 20.0, censored=True, high=None)
    curve.draw(rows("natural", 4, 0.15, 3.0) + beyond + rows("paper", 4, 0.15, 2.0), tmp_path / "curve.png")
    ((figure, path),) = drawn
    assert path == tmp_path / "curve.png"
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["natural", "paper"]
    triangles = [line for line in axis.lines if line.get_markersize() == 14]
    assert [list(line.get_xydata()[:, 0]) for line in triangles] == [[160.0], []]
    first = next(line for line in axis.lines if len(line.get_xydata()) == 2)
    assert first.get_xydata().tolist() == [[150.0, 3.0], [160.0, 20.0]]

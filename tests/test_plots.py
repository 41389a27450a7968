"""The pictures of docs/loss.md show the package's losses, and what the page says of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import trl_distill

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def plots():
    """The script, loaded as a module."""
    spec = importlib.util.spec_from_file_location("plots", DOCS / "plots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plots"] = module
    spec.loader.exec_module(module)
    return module


def lowest(line):
    """Return where a line is lowest."""
    return min(line, key=lambda point: point[1])[0]


def test_the_pictures_are_what_the_script_draws(plots):
    for name, plot in plots.PLOTS.items():
        kept, drawn = (DOCS / f"{name}.svg").read_text("utf-8"), plots.svg(plot())
        number = re.compile(r"-?\d+\.\d")
        assert number.sub("#", kept) == number.sub("#", drawn), f"run `python docs/plots.py`: {name} differs"
        both = zip(number.findall(kept), number.findall(drawn), strict=True)
        assert all(abs(float(a) - float(b)) < 0.15 for a, b in both), name  # another machine may round otherwise


def test_the_curves_are_those_of_the_packages_losses(plots, monkeypatch):
    before = {name: plot().lines for name, plot in plots.PLOTS.items()}
    assert plots.distillation_loss_from_logits is trl_distill.distillation_loss_from_logits

    def doubled(*args, **settings):
        result = trl_distill.distillation_loss_from_logits(*args, **settings)
        return result._replace(loss=2 * result.loss, kl=2 * result.kl)

    monkeypatch.setattr(plots, "distillation_loss_from_logits", doubled)
    for name in before.keys() - {"loss_softened"}:  # which shows no loss
        for label, line in plots.PLOTS[name]().lines.items():
            assert line == [(x, pytest.approx(2 * y)) for x, y in before[name][label]], (name, label)


def test_alpha_moves_the_best_probability_from_the_answers_to_the_teachers(plots):
    lines = plots.alphas().lines
    best = {label: lowest(line) for label, line in lines.items()}
    assert best == {"alpha 0": 0.99, "alpha 0.5": 0.85, "alpha 0.7": 0.79, "alpha 1": 0.70}


def test_the_temperature_moves_weight_to_unlikely_tokens(plots):
    likely, unlikely, alone = ([y for _, y in line] for line in plots.temperatures().lines.values())
    assert likely[0] > 5 * unlikely[0]
    assert unlikely[-1] > likely[-1]
    assert alone == [pytest.approx(y / (1 + k / 10) ** 2) for k, y in enumerate(likely)]
    first = [line[0][1] for line in plots.softened().lines.values()]
    assert [round(100 * share) for share in first] == [45, 26, 14]


def test_forward_kl_covers_and_reverse_kl_chooses(plots):
    forward, reverse, jsd = plots.divergences().lines.values()
    assert lowest(forward) == 0
    assert abs(lowest(reverse)) == abs(lowest(jsd)) == plots.MODES[1]

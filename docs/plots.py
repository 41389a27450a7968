"""Draws the curves of docs/loss.md with the package's own losses, as SVG: `python docs/plots.py`.

tests/test_plots.py fails if a file differs from what this draws, or if a curve is not computed by the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from trl_distill import distillation_loss_from_logits

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 34, 48  # room around the curves; the names of the lines are on the right
COLOURS = ("#b45309", "#00796b", "#6d28d9", "#475569")
SHARE = 0.7  # what the teacher gives to the token of the answer
MODES = (-3.0, 3.0)  # where the teacher's two peaks are


@dataclass(frozen=True)
class Plot:
    """Lines over one axis.

    Attributes:
        title: What it shows, for those who do not see it.
        across: Name of the horizontal axis.
        up: Name of the vertical axis.
        lines: The points (x, y) of each line, by its name.
        top: Where the vertical axis ends; values above it are not drawn.
        ticks: Values that the horizontal axis names.
    """

    title: str
    across: str
    up: str
    lines: dict[str, list[tuple[float, float]]]
    top: float
    ticks: tuple[float, ...]


def loss(ours: torch.Tensor, theirs: torch.Tensor, *, token: int = 0, **settings: object) -> tuple[float, float]:
    """Return the loss and the divergence of one token, from the logarithms of both sides' probabilities [V]."""
    result = distillation_loss_from_logits(ours[None], theirs[None], torch.tensor([token]), **settings)
    return float(result.loss), float(result.kl)


def alphas() -> Plot:
    """Return the loss over the student's probability of the answer's token, for four alphas."""
    teacher = torch.tensor([SHARE, 1 - SHARE], dtype=torch.float64).log()
    shares = [k / 100 for k in range(30, 100)]

    def at(share: float, alpha: float) -> float:
        student = torch.tensor([share, 1 - share], dtype=torch.float64).log()
        return loss(student, teacher, alpha=alpha, temperature=1.0)[0]

    lines = {f"alpha {alpha:g}": [(x, at(x, alpha)) for x in shares] for alpha in (0.0, 0.5, 0.7, 1.0)}
    return Plot(
        "The loss over the student's probability of the answer's token, for an alpha of 0, 0.5, 0.7 and 1",
        "the student's probability of the answer's token", "loss, nats", lines, 1.2, (0.3, 0.5, 0.7, 0.9),
    )  # fmt: skip


def teacher() -> torch.Tensor:
    """Return a teacher's logits over 50 tokens, the likeliest first."""
    return -0.6 * torch.arange(50, dtype=torch.float64)


def temperatures() -> Plot:
    """Return the loss over the temperature, for a student that is wrong about likely tokens and one about unlikely."""
    wrong = 0.8 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(25)
    likely = torch.arange(50) < 4
    students = {"on likely tokens": teacher() + wrong * likely, "on unlikely tokens": teacher() + wrong * ~likely}
    steps = [1 + k / 10 for k in range(41)]
    at = {
        name: [(t, loss(student, teacher(), alpha=1.0, temperature=t)) for t in steps]
        for name, student in students.items()
    }
    lines = {f"wrong {name}": [(t, value) for t, (value, _) in points] for name, points in at.items()}
    lines["likely, without T²"] = [(t, kl) for t, (_, kl) in at["on likely tokens"]]
    return Plot(
        "T squared times the divergence over the temperature: a student that is wrong about likely tokens has less of "
        "it at higher temperatures, and one that is wrong about unlikely tokens more",
        "temperature T", "T² times the divergence, nats", lines, 0.24, (1, 2, 3, 4, 5),
    )  # fmt: skip


def softened() -> Plot:
    """Return the teacher's probabilities of its ten likeliest tokens at three temperatures."""
    lines = {
        f"T = {t:g}": [(k + 1, float(p)) for k, p in enumerate(torch.softmax(teacher() / t, 0)[:10])]
        for t in (1.0, 2.0, 4.0)
    }
    return Plot(
        "A teacher's probabilities of its ten likeliest tokens at the temperatures 1, 2 and 4",
        "tokens, from the likeliest on", "probability", lines, 0.6, (1, 4, 7, 10),
    )  # fmt: skip


def hill(centre: float) -> torch.Tensor:
    """Return the logarithms of a bell of probabilities around a place on the axis from -8 to 8."""
    places = torch.linspace(-8, 8, 65, dtype=torch.float64)
    return torch.log_softmax(-((places - centre) ** 2) / 2, 0)


def divergences() -> Plot:
    """Return the three divergences from a teacher with two peaks over the place of a student with one."""
    teacher = torch.logsumexp(torch.stack([hill(mode) for mode in MODES]), 0)
    places = [k / 8 for k in range(-48, 49)]
    names = {"forward_kl": "forward KL", "reverse_kl": "reverse KL", "jsd": "JSD, beta 0.5"}
    lines = {
        label: [(x, loss(hill(x), teacher, alpha=1.0, temperature=1.0, divergence=kind)[0]) for x in places]
        for kind, label in names.items()
    }
    return Plot(
        "Three divergences over the place of the student's one peak; the teacher has peaks at -3 and 3",
        "where the student's peak is", "divergence, nats", lines, 8.0, (-6, -3, 0, 3, 6),
    )  # fmt: skip


PLOTS = {
    "loss_alpha": alphas,
    "loss_temperature": temperatures,
    "loss_softened": softened,
    "loss_divergence": divergences,
}


def svg(plot: Plot) -> str:
    """Return a plot as an SVG file that is readable on any background."""
    xs = [x for line in plot.lines.values() for x, _ in line]
    low, high = min(xs), max(xs)

    def across(x: float) -> float:
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - y / plot.top * (HEIGHT - TOP - BOTTOM)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#f8fafc"/>']
    parts += [_text(across(x), HEIGHT - BOTTOM + 18, f"{x:g}") for x in plot.ticks]
    for y in (plot.top * k / 4 for k in range(5)):
        parts.append(f'<path d="M{LEFT} {up(y):.1f}H{WIDTH - RIGHT}" stroke="#cbd5e1"/>')
        parts.append(_text(LEFT - 8, up(y) + 4, f"{y:.3g}", "end"))
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, plot.across), _text(12, TOP - 14, plot.up, "start")]
    for k, (name, points) in enumerate(plot.lines.items()):
        parts.append(
            f'<path d="{_path(points, across, up, plot.top)}" fill="none" stroke="{COLOURS[k]}" stroke-width="2"/>'
        )
        y = TOP + 20 + 22 * k
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {y - 4}h16" stroke="{COLOURS[k]}" stroke-width="3"/>')
        parts.append(_text(WIDTH - RIGHT + 36, y, name, "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#1f2933">\n'
        f"<title>{escape(plot.title)}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(points: Sequence[tuple[float, float]], across, up, top: float) -> str:
    """Return the path of the points that are on the plot."""
    shown = [(across(x), up(y)) for x, y in points if y <= top]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shown)


if __name__ == "__main__":
    for name, plot in PLOTS.items():
        (FOLDER / f"{name}.svg").write_text(svg(plot()), encoding="utf-8")

"""Draw overview.jpg, idea.png, thresholds.png, in the top folder: python3 .github/…"""

import os
import sys
from pathlib import Path

sys.path.insert(0, "tests")
os.environ["MPLBACKEND"] = "agg"

import matplotlib.pyplot as plt
import numpy as np
from evaluate_localization import BUNDLED, run_notebook

FRAME = {"boxstyle": "round", "facecolor": "#dde8f4", "edgecolor": "#35618f"}


def draw_overview(n):
    """Four photos, each with the heat of its most probable class, on one scale."""
    panels = []
    for name in ("german_shepherd", "koala", "bison", "scarlet_macaw"):
        photo = n.load(f"images/{name}.jpg")
        r = n.localize(photo)
        panels += [(photo, None, ""), (photo, r.cam, f"{r.label}: {r.probability:.0%}")]
    n.draw(panels)
    plt.savefig(".github/overview.jpg", dpi=110, bbox_inches="tight")


def draw_idea(n):
    """Feature maps -> means -> logit, and the same weights on whole maps."""
    features, weights = n.features, n.W[:, n.winner]
    figure = plt.figure(figsize=(11, 5.2))

    def picture(x, y, size, pixels, title="", **options):
        ax = figure.add_axes([x, y, size * 5.2 / 11, size])
        ax.imshow(pixels, **options)
        ax.set(xticks=[], yticks=[], title=title)

    def text(x, y, words, **options):
        figure.text(x, y, words, ha="center", va="center", fontsize=12, **options)

    def arrow(start, end, **style):
        style = {"arrowprops": {"arrowstyle": "-|>", **style}}
        figure.axes[0].annotate(
            "", end, start, "figure fraction", textcoords="figure fraction", **style
        )

    picture(0.005, 0.37, 0.29, n.view, "photo")
    text(0.285, 0.96, "feature maps")
    text(0.42, 0.95, "mean\n(GAP)")
    text(0.50, 0.95, "class\nweight")
    for row, k in enumerate(np.argsort(features.mean((0, 1)) * weights)[[-1, -2, 0]]):
        y = 0.70 - 0.27 * row
        arrow((0.148, 0.51), (0.228, y + 0.1))
        picture(0.235, y, 0.20, features[..., k], cmap="gray")
        arrow((0.335, y + 0.1), (0.387, y + 0.1))
        text(0.42, y + 0.1, f"{features[..., k].mean():.2f}", bbox=FRAME)
        text(0.50, y + 0.1, f"× {weights[k]:+.2f}")
        arrow((0.54, y + 0.1), (0.665, 0.80))
        arrow((0.335, y + 0.06), (0.672, 0.25), color="#b5482a", linestyle="--")
    text(0.285, 0.09, "… and all others")
    logit = f"{n.logits[n.winner]:.1f}"
    text(0.735, 0.80, f"sum + bias\n= logit {logit}", bbox=FRAME)
    arrow((0.805, 0.80), (0.855, 0.80))
    text(0.93, 0.80, n.labels[n.winner].replace(" ", "\n"), bbox=FRAME)
    text(0.56, 0.06, "the same weights,\nwhole maps", color="#b5482a")
    picture(0.68, 0.05, 0.38, n.cam, cmap="inferno")
    text(0.77, 0.475, "class activation map")
    arrow((0.735, 0.51), (0.735, 0.71), color="#b5482a")
    text(0.84, 0.60, "its mean + bias", color="#b5482a")
    figure.savefig(".github/idea.png", dpi=90)


def draw_thresholds():
    """Accuracy of the paper's rule over its threshold, from the evaluator's output."""
    lines = [x.split() for x in Path("tests/evaluation.txt").read_text().splitlines()]
    at = [x[:1] for x in lines].index(["threshold"])
    thresholds, coarse, finer = (np.float64(x[1:]) for x in lines[at : at + 3])
    [centered] = [float(x[1]) for x in lines if x[:1] == ["centered"]]
    figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
    ax.plot(thresholds, finer, "o-", color="#0072b2", label="paper's rule, finer map")
    ax.plot(thresholds, coarse, "s--", color="#d55e00", label="paper's rule, 7 × 7")
    ax.axhline(centered, color="0.4", label="centered box")
    ax.set(xlabel="threshold, as a share of the maximum", ylabel="share with IoU ≥ 0.5")
    ax.legend()
    figure.savefig(".github/thresholds.png", dpi=90)


if __name__ == "__main__":
    lesson = run_notebook(BUNDLED)
    draw_overview(lesson)
    draw_idea(lesson)
    draw_thresholds()

"""Draw overview.jpg and idea.png: python3 .github/pictures.py, in the top folder."""

import os

os.environ |= {"CAM_NETWORK": "models/efficientnet_lite0.keras", "MPLBACKEND": "Agg"}

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from IPython.core.interactiveshell import InteractiveShell

FRAME = {"boxstyle": "round", "facecolor": "#dde8f4", "edgecolor": "#35618f"}


def run_part_one():
    """Globals of the notebook after its part I."""
    shell = InteractiveShell.instance()
    for cell in nbformat.read("cam_localization.ipynb", 4).cells:
        if "# Part II: " in cell.source and cell.cell_type == "markdown":
            return shell.user_ns
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


def draw_overview(ns):
    """Four photos with the heat of their most probable classes, on one scale."""
    panels = []
    for name in ("german_shepherd", "koala", "bison", "scarlet_macaw"):
        image = ns["load"](f"images/{name}.jpg")
        result = ns["localize"](image)
        panels.append((image, result.cam, f"{result.label}: {result.probability:.0%}"))
    ns["draw_maps"](panels)
    plt.savefig(".github/overview.jpg", dpi=110, bbox_inches="tight")


def draw_idea(ns):
    """Feature maps -> means -> logit, and the same weights on whole maps."""
    features, weights = ns["features"], ns["weights"][:, ns["winner"]]
    figure = plt.figure(figsize=(11, 4.6))

    def picture(x, y, size, pixels, title="", **options):
        ax = figure.add_axes([x, y, size * 4.6 / 11, size])
        ax.imshow(pixels, **options)
        ax.set(xticks=[], yticks=[], title=title)

    def text(x, y, words, **options):
        figure.text(x, y, words, ha="center", va="center", fontsize=12, **options)

    def arrow(start, end):
        style = {"arrowprops": {"arrowstyle": "-|>"}, "textcoords": "figure fraction"}
        figure.axes[0].annotate("", end, start, "figure fraction", **style)

    picture(0.005, 0.36, 0.32, ns["view"], "photo")
    arrow((0.145, 0.52), (0.225, 0.52))
    for row, k in enumerate(np.argsort(features.mean((0, 1)) * weights)[[-1, -2, 0]]):
        y = 0.68 - 0.285 * row
        picture(0.235, y, 0.22, features[..., k], cmap="gray")
        arrow((0.335, y + 0.11), (0.385, y + 0.11))
        text(0.415, y + 0.11, f"{features[..., k].mean():.2f}", bbox=FRAME)
        text(0.49, y + 0.11, f"× {weights[k]:+.2f}")
        arrow((0.53, y + 0.11), (0.60, 0.72))
    text(0.455, 0.94, "mean   class\n(GAP)  weight")
    text(0.285, 0.05, f"… {len(weights):,} feature maps in all")
    logit = f"{ns['logits'][ns['winner']]:.1f}"
    text(0.672, 0.72, f"sum + bias\n= logit {logit}", bbox=FRAME)
    arrow((0.745, 0.72), (0.80, 0.72))
    text(0.885, 0.72, ns["imagenet_names"][ns["winner"]], bbox=FRAME)
    arrow((0.335, 0.13), (0.66, 0.17))
    text(0.592, 0.07, "same weights,\nwhole maps")
    picture(0.675, 0.06, 0.40, ns["cam"], "class activation map", cmap="inferno")
    arrow((0.885, 0.36), (0.885, 0.64))
    text(0.925, 0.27, f"its mean + bias\n= {logit}")
    figure.savefig(".github/idea.png", dpi=90)


if __name__ == "__main__":
    draw_overview(run_part_one())
    draw_idea(InteractiveShell.instance().user_ns)

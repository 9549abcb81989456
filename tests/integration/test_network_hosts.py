"""The helper that gives tests several hosts keeps its word."""

import subprocess
import sys
from pathlib import Path

from network_hosts import needs_hosts, network_hosts

pytestmark = needs_hosts

SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 4000))
print("listening", flush=True)
while True:
    server.accept()[0].sendall(socket.gethostname().encode())
"""
CLIENT = "import socket; print(socket.create_connection(('host0', 4000), 3).recv(100).decode())"


def test_hosts_reach_each_other_by_name_until_one_is_killed_and_nothing_is_left():
    with network_hosts(2) as (first, second):
        server = first.popen([sys.executable, "-c", SERVER, first.address], stdout=subprocess.PIPE)
        assert server.stdout.readline() == "listening\n"
        child = first.popen(["sh", "-c", "sleep 1000 & wait"])
        assert second.run([sys.executable, "-c", CLIENT]).stdout == "host0\n"
        assert not second.run([sys.executable, "-c", CLIENT.replace("host0", "127.0.0.1")]).stdout
        first.kill()
        assert server.poll() == child.poll() == -9
        assert second.run([sys.executable, "-c", CLIENT]).returncode != 0
        survivor = second.popen(["sleep", "1000"])
        assert survivor.poll() is None
    assert survivor.poll() == -9


def test_hosts_share_files_but_not_memory_and_two_sets_of_them_don_t_meet(tmp_path):
    with network_hosts(1) as (one,), network_hosts(1) as (other,):
        assert one.address == other.address
        assert (
            one.run(["sh", "-c", f"echo $WORD > {tmp_path}/file; touch /dev/shm/ours; pwd"], {"WORD": "hello"}).returncode == 0
        )
        assert (tmp_path / "file").read_text() == "hello\n"
        assert other.run(["ls", "/dev/shm"]).stdout == ""
        assert other.run(["sh", "-c", "echo $$; exit 7"]).returncode == 7
        assert other.run(["pwd"]).stdout.strip() == str(Path.cwd())

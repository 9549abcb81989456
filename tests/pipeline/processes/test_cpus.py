"""The number of usable processors is the smaller of CPU affinity and control group quota."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.processes.cpus import cpu_quota, usable_cpus

V2 = "30 23 0:26 {group} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {group} {point} rw,nosuid - cgroup cgroup rw,{controllers}"


def tree(root, mounts, groups, files):
    """Writes a fake `/proc/self` and control groups below `root`."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "\n".join(mounts) + "\n")
    (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(192)))


V2_MOUNT = V2.format(group="/", point="/sys/fs/cgroup")


@pytest.mark.usefixtures("affinity")
@pytest.mark.parametrize(
    ("mounts", "groups", "files", "wanted"),
    [
        pytest.param([V2_MOUNT], ["0::/"], {"cpu.max": "1200000 100000"}, 12, id="a pod with a namespace of its own"),
        pytest.param([V2_MOUNT], ["0::/a/b"], {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2, id="above"),
        pytest.param([V2_MOUNT], ["0::/a/b"], {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 1, id="half"),
        pytest.param([V2_MOUNT], ["0::/a"], {"a/cpu.max": "max 100000"}, 192, id="no limit"),
        pytest.param([V2_MOUNT], ["0::/../../x"], {"cpu.max": "300000 100000"}, 3, id="path out of the namespace"),
        pytest.param(
            [V1.format(group="/docker/ab", point="/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct")],
            ["4:cpu,cpuacct:/docker/ab", "3:memory:/docker/ab"],
            {"cpu,cpuacct/cpu.cfs_quota_us": "800000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            8,
            id="version 1, the host's path",
        ),
        pytest.param(
            [V1.format(group="/", point="/sys/fs/cgroup/cpu", controllers="cpu"), V2_MOUNT],
            ["4:cpu:/job/step", "0::/job"],
            {
                "cpu/job/cpu.cfs_quota_us": "600000",
                "cpu/job/cpu.cfs_period_us": "100000",
                "cpu/job/step/cpu.cfs_quota_us": "-1",
                "cpu/job/step/cpu.cfs_period_us": "100000",
            },
            6,
            id="both versions, the limit of the job",
        ),
        pytest.param(
            [V1.format(group="/", point="/sys/fs/cgroup/memory", controllers="memory")],
            ["3:memory:/a"],
            {"memory/a/cpu.cfs_quota_us": "100000", "memory/a/cpu.cfs_period_us": "100000"},
            192,
            id="a hierarchy of other controllers",
        ),
        pytest.param([V2_MOUNT], ["0::/a"], {"a/cpu.max": "nonsense"}, 192, id="a file that says nothing"),
        pytest.param([], [], {}, 192, id="no control groups"),
    ],
)
def test_the_smallest_limit_counts(tmp_path, mounts, groups, files, wanted):
    assert usable_cpus(tree(tmp_path, mounts, groups, files)) == wanted


def test_affinity_counts_if_it_is_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3})
    assert usable_cpus(tree(tmp_path, [V2_MOUNT], ["0::/"], {"cpu.max": "1200000 100000"})) == 2


@given(st.lists(st.one_of(st.none(), st.integers(1, 10**7)), min_size=1, max_size=5), st.integers(1000, 10**6))
def test_a_quota_limits_all_groups_below_it(tmp_path_factory, quotas, period):
    names = ["/".join("abcde"[: depth + 1]) for depth in range(len(quotas))]
    files = {f"{name}/cpu.max": f"{quota or 'max'} {period}" for name, quota in zip(names, quotas, strict=True)}
    root = tree(tmp_path_factory.mktemp("root"), [V2_MOUNT], [f"0::/{names[-1]}"], files)
    limits = [quota / period for quota in quotas if quota]
    assert cpu_quota(root) == (min(limits) if limits else None)


def test_this_machine_has_processors():
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))

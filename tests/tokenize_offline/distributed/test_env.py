"""Places of processes from what launchers say, and fixed shares where nothing is shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from tokenize_offline.distributed.env import environment_number, first_host, slurm_variables, tasks_per_node, worker_share

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[007-009,12]",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
}


def test_a_task_of_srun_gets_the_place_that_torchrun_would_give_it():
    made = slurm_variables(STEP)
    port = int(made.pop("MASTER_PORT"))
    assert made == {"RANK": "6", "WORLD_SIZE": "7", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "gpu007"}
    assert 1024 < port < 32768 and port == int(slurm_variables(STEP | {"SLURM_PROCID": "0"})["MASTER_PORT"])
    assert port != int(slurm_variables(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"])
    meeting = {"MASTER_ADDR": "ib0.gpu007", "MASTER_PORT": "29500"}
    assert slurm_variables(STEP | meeting).items() >= meeting.items()


WORDS = st.sampled_from(["", "a", "1_0", "٣", " 2", "-1", "1e3", "0x1", "9" * 30, "0", "1", "7"]) | st.text(max_size=4)


@given(text=WORDS, least=st.integers(0, 1))
def test_a_number_of_the_environment_is_read_or_refused_by_name_and_value(text, least):
    try:
        number = environment_number({"WORLD_SIZE": text}, "WORLD_SIZE", least=least)
    except ConfigError as error:
        assert "WORLD_SIZE" in str(error) and (not text.strip() or repr(text.strip()) in str(error))
    else:
        assert number == int(text) >= least


@given(name=st.sampled_from(sorted(STEP)), text=WORDS)
def test_what_slurm_says_gives_a_place_or_is_refused_by_name(name, text):
    changed = STEP | {name: text}
    try:
        made = slurm_variables(changed)
    except ConfigError as error:
        assert "SLURM_" in str(error)
    else:
        assert made == {} or all(made.values())


@pytest.mark.parametrize("name", sorted(STEP))
def test_what_slurm_leaves_out_is_refused_by_name_or_not_needed(name):
    try:
        slurm_variables({key: value for key, value in STEP.items() if key != name})
    except ConfigError as error:
        assert name in str(error)


@pytest.mark.parametrize("change", [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_processes_of_torchrun_and_single_tasks_keep_their_place(change):
    assert slurm_variables(STEP | change) == {}


def test_a_batch_script_that_starts_no_step_is_alone():
    assert slurm_variables({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[007-010,12],login", "gpu007"), ("a-[3,5]-ib,b", "a-3-ib"), ("x.y.z,w[1-2]", "x.y.z")],
)
def test_the_first_host_of_a_list_of_nodes(nodes, first):
    assert first_host(nodes) == first


def test_tasks_per_node_are_spelled_out():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1] and tasks_per_node("8") == [8]


@given(st.integers(0, 60), st.integers(1, 9))
def test_shares_are_all_tasks_each_once_and_even(tasks, count):
    shares = [worker_share(range(tasks), index, count, {}) for index in range(count)]
    assert sorted(task for share in shares for task in share) == list(range(tasks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_index_comes_from_an_array_job_only_when_it_is_one_of_several():
    assert worker_share("abcd", None, 2, {"SLURM_ARRAY_TASK_ID": "1"}) == ["b", "d"]
    assert worker_share("abcd", None, 4, {"JOB_COMPLETION_INDEX": "0"}) == ["a"]
    assert worker_share("abcd", 0, 2, {"SLURM_ARRAY_TASK_ID": "1"}) == ["a", "c"]
    assert worker_share("abcd", None, 1, {"SLURM_ARRAY_TASK_ID": "1"}) == list("abcd")


@pytest.mark.parametrize(
    ("index", "count", "said"), [(None, 2, "SLURM_ARRAY_TASK_ID"), (2, 2, "0 to 1"), (0, 0, "worker_count")]
)
def test_impossible_shares_say_what_to_do(index, count, said):
    with pytest.raises(ConfigError, match=said):
        worker_share("abcd", index, count, {})

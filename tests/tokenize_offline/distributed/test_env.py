"""Ranks of processes follow from the launcher's environment variables, and array jobs get fixed shares."""

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


def test_an_srun_task_gets_the_same_variables_as_under_torchrun():
    made = slurm_variables(STEP)
    port = int(made.pop("MASTER_PORT"))
    assert made == {"RANK": "6", "WORLD_SIZE": "7", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "gpu007"}
    assert 1024 < port < 32768 and port == int(slurm_variables(STEP | {"SLURM_PROCID": "0"})["MASTER_PORT"])
    assert port != int(slurm_variables(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"])
    address = {"MASTER_ADDR": "ib0.gpu007", "MASTER_PORT": "29500"}
    assert slurm_variables(STEP | address).items() >= address.items()


WORDS = st.sampled_from(["", "a", "1_0", "٣", " 2", "-1", "1e3", "0x1", "9" * 30, "0", "1", "7"]) | st.text(max_size=4)


@given(text=WORDS, least=st.integers(0, 1))
def test_an_integer_variable_is_read_or_the_error_names_it_and_its_value(text, least):
    try:
        number = environment_number({"WORLD_SIZE": text}, "WORLD_SIZE", least=least)
    except ConfigError as error:
        assert "WORLD_SIZE" in str(error) and (not text.strip() or repr(text.strip()) in str(error))
    else:
        assert number == int(text) >= least


@given(name=st.sampled_from(sorted(STEP)), text=WORDS)
def test_a_changed_slurm_variable_gives_a_rank_or_an_error_that_names_it(name, text):
    changed = STEP | {name: text}
    try:
        made = slurm_variables(changed)
    except ConfigError as error:
        assert "SLURM_" in str(error)
    else:
        assert made == {} or all(made.values())


@pytest.mark.parametrize("name", sorted(STEP))
def test_a_missing_slurm_variable_is_not_needed_or_the_error_names_it(name):
    try:
        slurm_variables({key: value for key, value in STEP.items() if key != name})
    except ConfigError as error:
        assert name in str(error)


@pytest.mark.parametrize("change", [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_torchrun_processes_and_single_tasks_are_not_changed(change):
    assert slurm_variables(STEP | change) == {}


def test_a_batch_script_without_srun_runs_alone():
    assert slurm_variables({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[007-010,12],login", "gpu007"), ("a-[3,5]-ib,b", "a-3-ib"), ("x.y.z,w[1-2]", "x.y.z")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_tasks_per_node_are_expanded():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1] and tasks_per_node("8") == [8]


@given(st.integers(0, 60), st.integers(1, 9))
def test_shares_are_even_and_cover_every_task_once(tasks, count):
    shares = [worker_share(range(tasks), index, count, {}) for index in range(count)]
    assert sorted(task for share in shares for task in share) == list(range(tasks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_index_of_an_array_job_counts_only_with_several_workers():
    assert worker_share("abcd", None, 2, {"SLURM_ARRAY_TASK_ID": "1"}) == ["b", "d"]
    assert worker_share("abcd", None, 4, {"JOB_COMPLETION_INDEX": "0"}) == ["a"]
    assert worker_share("abcd", 0, 2, {"SLURM_ARRAY_TASK_ID": "1"}) == ["a", "c"]
    assert worker_share("abcd", None, 1, {"SLURM_ARRAY_TASK_ID": "1"}) == list("abcd")


@pytest.mark.parametrize(
    ("index", "count", "said"), [(None, 2, "SLURM_ARRAY_TASK_ID"), (2, 2, "0 to 1"), (0, 0, "worker_count")]
)
def test_an_invalid_share_is_an_error_that_says_what_to_do(index, count, said):
    with pytest.raises(ConfigError, match=said):
        worker_share("abcd", index, count, {})

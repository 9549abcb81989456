"""A process reads its ranks from any launcher's environment."""

import pytest
import torch
from synthetic_tokens import LAYOUT

from pipeline.common.errors import ConfigError
from pipeline.config.model import ModelConfig, TrainingConfig
from training.distributed import Processes, find_rank_info
from training.model.world_model import build_network
from training.trainer.deepspeed_engine import close_engine, start_engine

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def _numbers(environment):
    place = find_rank_info(environment)
    return place.rank, place.world_size, place.local_rank, place.local_world_size


def test_without_a_launcher_a_process_is_alone():
    assert _numbers({}) == (0, 1, 0, 1)


def test_torchrun_and_accelerate():
    assert _numbers(TORCHRUN) == (5, 8, 1, 4)


def test_the_deepspeed_launcher_names_the_local_size_differently():
    environment = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"}
    assert _numbers({**environment, "LOCAL_SIZE": "4"}) == (5, 8, 1, 4)


def test_srun():
    assert _numbers(SRUN) == (5, 8, 1, 4)
    variables = find_rank_info(SRUN).variables
    assert variables["MASTER_ADDR"] == "gpu07"
    assert 1024 < int(variables["MASTER_PORT"]) < 65536
    assert (
        find_rank_info({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).variables["MASTER_PORT"] == variables["MASTER_PORT"]
    )


def test_a_command_in_a_batch_script_without_srun_is_alone():
    batch = {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert _numbers(batch) == (0, 1, 0, 1)


def test_a_shell_of_salloc_is_alone_whatever_its_job_may_start():
    shell = {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}
    assert _numbers({**SRUN, **shell}) == (0, 1, 0, 1)


def test_half_of_a_launcher_is_refused_with_what_is_missing():
    with pytest.raises(ConfigError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        find_rank_info({"RANK": "0"})
    with pytest.raises(ConfigError, match="contradict"):
        find_rank_info({**TORCHRUN, "RANK": "8"})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_PORT"])
def test_a_variable_that_is_not_a_number_is_named_with_its_value(name):
    with pytest.raises(ConfigError, match=f"{name} is 'a'"):
        find_rank_info({**TORCHRUN, name: "a"})


def test_an_engine_left_open_by_an_error_does_not_block_a_later_one():
    config = {"train_batch_size": 1, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}

    def start(fail: bool) -> None:
        network = build_network(ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64), LAYOUT, 0, seed=0)
        with Processes(find_rank_info({})) as processes:
            engine = start_engine(network, TrainingConfig(), config, processes)
            if fail:
                raise RuntimeError("after the engine's start")
            close_engine(engine)

    for _ in range(2):
        with pytest.raises(RuntimeError, match="after the engine"):
            start(fail=True)
    start(fail=False)


def test_zero_3_does_not_change_linear_layers_that_run_later():
    config = {"train_batch_size": 1, "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True}
    before = torch.nn.functional.linear
    network = build_network(ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64), LAYOUT, 0, seed=0)
    with Processes(find_rank_info({})) as processes:
        engine = start_engine(network, TrainingConfig(), config, processes)
        # If this is so no more, the repair can go.
        assert torch.nn.functional.linear is not before
        close_engine(engine)
    assert torch.nn.functional.linear is before

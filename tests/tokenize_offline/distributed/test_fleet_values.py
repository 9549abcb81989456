"""Processes of a fleet exchange plans and results of any size through the launcher's store."""

import base64
import dataclasses
import random

import pytest
import torch
import torch.distributed as dist
from synthetic_episodes import tokenize_job

from pipeline.common.errors import ConflictError
from pipeline.config.recipe import QualityConfig
from tokenize_offline.command import require_same_job
from tokenize_offline.distributed.worker_group import Fleet
from tokenize_offline.tasks import ShardTask


@pytest.fixture
def pair():
    """Two processes of a fleet, each with its own connection to a real store."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("localhost", server.port, is_master=False, wait_for_workers=False)
    return [Fleet(rank, 2, 2, torch.device("cpu"), store) for rank, store in enumerate((server, client))]


def test_plans_and_results_larger_than_the_store_allows_arrive_whole(pair):
    first, second = pair
    # torch 2.13's store takes at most 8 MiB per value; random bytes don't compress.
    noise = base64.b64encode(random.Random(0).randbytes(12 << 20)).decode()
    first.broadcast_plan({"tasks": noise})
    assert second.receive_plan() == {"tasks": noise}
    for fleet in pair:
        fleet.send_result({"failures": [noise, fleet.rank]})
    reports, orphans = first.collect_results([], lambda: None)
    assert [report["failures"] for report in reports] == [[noise, 0], [noise, 1]] and orphans == []


def test_a_plan_with_hundreds_of_thousands_of_excluded_episodes_arrives(pair):
    first, second = pair
    excluded = tuple(range(0, 800, 5))
    tasks = [
        ShardTask("bridge", "train", number, f"/{number}.tar", 1 << 28, "ab" * 32, 800, action_dims=(7,), excluded=excluded)
        for number in range(3000)
    ]
    first.broadcast_plan({"tasks": list(map(dataclasses.asdict, tasks))})
    assert list(map(ShardTask.from_json, second.receive_plan()["tasks"])) == tasks


def test_a_plan_may_be_none(pair):
    pair[0].broadcast_plan(None)
    assert pair[1].receive_plan() is None


def test_a_process_with_another_tokenizer_or_recipe_than_the_first_is_an_error(tmp_path):
    first = tokenize_job(tmp_path)
    require_same_job(tokenize_job(tmp_path), first.to_json(), 3)
    for other, said in (
        (tokenize_job(tmp_path, sha="cd" * 32), "layout.tokenizer_sha256"),
        (tokenize_job(tmp_path, per_episode=5), "clips.per_episode: 4 -> 5"),
        (tokenize_job(tmp_path / "elsewhere"), "output"),
        (dataclasses.replace(first, quality=QualityConfig(max_static=0.5)), "quality.max_static: null -> 0.5"),
    ):
        with pytest.raises(ConflictError, match=said) as caught:
            require_same_job(other, first.to_json(), 3)
        assert "process 3 on" in str(caught.value)

"""The job that the Dataflow script submits is complete: what it stages in a bucket runs here and does the work.

Dataflow itself is asked for nothing: `--template_location` ends where the job would be sent to the service. Needs
`apache-beam[gcp]`, which no extra installs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.core import url_to_fs
from object_stores import environment, gcs_server, upload
from rlds_data import write_set

from pipeline.common import storage
from pipeline.config.catalog import dataset
from pipeline.episodes.frames import FrameForm
from pipeline.episodes.index import read_manifests
from pipeline.ingest.job import ingest
from pipeline.ingest.plan import make_plan
from pipeline.sources.locate import open_source

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "dataflow" / "ingest.sh"
BUCKET = "gs://some-bucket"
IMAGE = "registry.example/ingest:latest"


def submit(folder: Path) -> subprocess.CompletedProcess:
    """Run the script with a command that makes Beam write a template, without credentials."""
    command = folder / "ivideogpt-ingest"
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@" --no_auth --template_location={BUCKET}/template.json\n'
    )
    command.chmod(0o755)
    named = {"PROJECT": "some-project", "REGION": "europe-west4", "BUCKET": BUCKET, "IMAGE": IMAGE, "NO_GCE_CHECK": "true"}
    options = ["--dataset", "bridge", "--source", f"{BUCKET}/oxe", "--output", f"{BUCKET}/out", "--data.frames", "source"]
    return subprocess.run(
        [SCRIPT, *options],
        env={**os.environ, **named, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.soak
def test_the_staged_job_has_the_options_of_the_script_and_gives_the_result_of_one_process(tmp_path):
    pytest.importorskip("google.cloud.dataflow")
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.portability import common_urns, python_urns
    from apache_beam.portability.api import beam_runner_api_pb2
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    write_set(tmp_path / "oxe", episodes=4, per_shard=1, name="bridge")
    source = open_source(dataset("bridge"), str(tmp_path / "oxe"), FrameForm("source"))
    units = make_plan(source, None, None, 512 << 20)
    ingest(units, source, "bridge", str(tmp_path / "out"), ["--direct_running_mode=in_memory"], overwrite=False)
    with gcs_server() as variables, environment(variables):
        fs = url_to_fs(BUCKET)[0]
        upload(tmp_path / "oxe", f"{BUCKET}/oxe")
        done = submit(tmp_path)
        # Nobody did the work, and the command says so.
        assert done.returncode == 1 and "left neither a manifest nor a reason" in done.stderr, done.stderr
        pool = json.loads(fs.cat_file("some-bucket/template.json"))["environment"]["workerPools"][0]
        assert pool["machineType"] == "n2-standard-4" and pool["autoscalingSettings"] == {"maxNumWorkers": 64}
        assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]
        (graph,) = (name for name in fs.find("some-bucket/dataflow") if name.endswith("pipeline.pb"))
        pipeline = beam_runner_api_pb2.Pipeline.FromString(fs.cat_file(graph))
        for place in pipeline.components.environments.values():
            if place.urn == common_urns.environments.DOCKER.urn:
                place.urn, place.payload = python_urns.EMBEDDED_PYTHON, b""
        FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
        for unit in units:
            for name in (unit.shard, unit.shard.replace(".tar", ".json")):
                staged = storage.read_bytes(f"{BUCKET}/out/bridge/{name}")
                assert staged == (tmp_path / "out" / name).read_bytes()
        assert sum(record.samples for record in read_manifests(f"{BUCKET}/out/bridge")) == 5

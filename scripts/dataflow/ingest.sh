#!/usr/bin/env bash
# Ingests on Google Cloud Dataflow with Beam. Needs `pip install "apache-beam[gcp]==2.77.0"` here, and the image of
# scripts/Dockerfile.ingest in a registry that Dataflow's workers can reach:
#
#   PROJECT=my-project REGION=europe-west4 BUCKET=gs://my-bucket IMAGE=REGISTRY/ivideogpt-ingest:latest \
#     scripts/dataflow/ingest.sh --dataset kuka --source gs://my-bucket/oxe --output gs://my-bucket/episodes
#
# Tested: the staged job, run on one machine (tests/integration/ingest/test_dataflow_job.py). Not tested: the service itself and the
# image.
#
# With very many files the job may exceed Dataflow's limit of 10 MB; upload_graph makes Dataflow read it from the bucket.
set -euo pipefail

: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?gs:// URL for what Dataflow stages}" "${IMAGE:?image of the workers}"
exec ivideogpt-ingest "$@" -- \
  --runner=DataflowRunner --project="$PROJECT" --region="$REGION" --temp_location="$BUCKET/dataflow" \
  --staging_location="$BUCKET/dataflow" --sdk_container_image="$IMAGE" --sdk_location=container \
  --experiments=upload_graph --max_num_workers="${WORKERS:-64}" --machine_type="${MACHINE:-n2-standard-4}"

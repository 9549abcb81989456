#!/usr/bin/env bash
# Ingest on Google Cloud Dataflow by Beam. Needs `pip install "apache-beam[gcp]==2.77.0"` here, and the image of
# scripts/Dockerfile.ingest in a registry that Dataflow's workers reach:
#
#   PROJECT=my-project REGION=europe-west4 BUCKET=gs://my-bucket IMAGE=REGISTRY/ivideogpt-ingest:latest \
#     scripts/dataflow/ingest.sh --dataset kuka --source gs://my-bucket/oxe --output gs://my-bucket/episodes
#
# What this stages in the bucket was run and compared on one machine (tests/integration/ingest/test_dataflow_job.py); the service itself
# and its image have not been tried.
#
# A plan of very many files may exceed the 10 MB that Dataflow takes as a job: upload_graph has it read from the bucket.
set -euo pipefail

: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?gs:// URL for what Dataflow stages}" "${IMAGE:?image of the workers}"
exec ivideogpt-ingest "$@" -- \
  --runner=DataflowRunner --project="$PROJECT" --region="$REGION" --temp_location="$BUCKET/dataflow" \
  --staging_location="$BUCKET/dataflow" --sdk_container_image="$IMAGE" --sdk_location=container \
  --experiments=upload_graph --max_num_workers="${WORKERS:-64}" --machine_type="${MACHINE:-n2-standard-4}"

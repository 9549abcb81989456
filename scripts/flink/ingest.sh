#!/usr/bin/env bash
# Ingest on a Flink session cluster (1.19 or 1.20) by Beam. scripts/flink/kubernetes.yaml makes such a cluster: beside every task
# manager runs Beam's worker pool from the image of scripts/Dockerfile.ingest.
#
#   FLINK_MASTER=flink-jobmanager:8081 PARALLELISM=64 scripts/flink/ingest.sh --dataset kuka --source s3://b/oxe --output s3://b/out
#
# Tried: the way through a job service to an external worker pool, with Beam's own job service in place of Flink's, on one
# machine. Not tried: a Flink cluster, the Java job server, the manifest.
#
# Beam's job server for Flink, a Java archive, is downloaded from Maven at first use; FLINK_JOB_SERVER_JAR names a copy instead.
set -euo pipefail

: "${FLINK_MASTER:?host:port of the job manager}" "${PARALLELISM:?task slots to use}"
exec ivideogpt-ingest "$@" -- \
  --runner=FlinkRunner --flink_master="$FLINK_MASTER" --parallelism="$PARALLELISM" \
  --environment_type=EXTERNAL --environment_config=localhost:50000 \
  ${FLINK_JOB_SERVER_JAR:+--flink_job_server_jar="$FLINK_JOB_SERVER_JAR"}

#!/usr/bin/env bash
# Ingests on a Flink session cluster (1.19 or 1.20) with Beam. scripts/flink/kubernetes.yaml creates such a cluster, with Beam's
# worker pool (image: scripts/Dockerfile.ingest) next to every task manager.
#
#   FLINK_MASTER=flink-jobmanager:8081 PARALLELISM=64 scripts/flink/ingest.sh --dataset kuka --source s3://b/oxe --output s3://b/out
#
# Tested: a job service with an external worker pool on one machine, with Beam's own job service instead of Flink's. Not tested: a
# Flink cluster, the Java job server, the Kubernetes manifest.
#
# Beam downloads its job server for Flink (a Java archive) from Maven at first use; set FLINK_JOB_SERVER_JAR to use a local copy.
set -euo pipefail

: "${FLINK_MASTER:?host:port of the job manager}" "${PARALLELISM:?task slots to use}"
exec ivideogpt-ingest "$@" -- \
  --runner=FlinkRunner --flink_master="$FLINK_MASTER" --parallelism="$PARALLELISM" \
  --environment_type=EXTERNAL --environment_config=localhost:50000 \
  ${FLINK_JOB_SERVER_JAR:+--flink_job_server_jar="$FLINK_JOB_SERVER_JAR"}

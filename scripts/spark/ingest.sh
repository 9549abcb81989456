#!/usr/bin/env bash
# Ingest on a Spark cluster (4.x). Executors need a Python 3.11 with the `ingest` extra (scripts/Dockerfile.ingest, or the same
# environment on every host) and the same paths or URLs:
#
#   MASTER=spark://head:7077 scripts/spark/ingest.sh --dataset kuka --source /data/oxe --output /data/episodes
#
# WORKER_PYTHON is that Python on the executors. Further settings of Spark go into SPARK_CONF_DIR/spark-defaults.conf, as for any
# job; one core a task is right.
set -euo pipefail

: "${MASTER:?the master, e.g. spark://head:7077, yarn or k8s://...}"
export PYSPARK_PYTHON=${WORKER_PYTHON:-$(command -v python)} OMP_NUM_THREADS=1
exec ivideogpt-ingest --spark "$MASTER" "$@"

#!/usr/bin/env bash
# Ingest on a Spark cluster (4.x). Executors need the `ingest` extra in a Python of the same minor version as here
# (scripts/Dockerfile.ingest, or the same environment on every host) and the same paths or URLs:
#
#   MASTER=spark://head:7077 scripts/spark/ingest.sh --dataset kuka --source /data/oxe --output /data/episodes
#
# PYSPARK_PYTHON is that Python on the executors, by default the path of the one here. Further settings of Spark go into
# SPARK_CONF_DIR/spark-defaults.conf, as for any job. One core a task is right. Python's memory comes on top of
# spark.executor.memory (512m is enough); YARN and Kubernetes must be told of it (spark.executor.memoryOverhead). A host
# that falls silent is taken for lost after spark.network.timeout, 120 s; spark.speculation is safe, and helps where one hangs.
# Where no worker has the cores and memory that are asked for, Spark waits and warns: "Initial job has not accepted any
# resources".
set -euo pipefail

: "${MASTER:?the master, e.g. spark://head:7077, yarn or k8s://...}"
OMP_NUM_THREADS=1 exec ivideogpt-ingest --spark "$MASTER" "$@"

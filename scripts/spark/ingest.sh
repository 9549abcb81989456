#!/usr/bin/env bash
# Ingests on a Spark cluster (4.x). Executors need the `ingest` extra in a Python of the same minor version as here
# (scripts/Dockerfile.ingest, or the same environment on every host) and the same paths or URLs:
#
#   MASTER=spark://head:7077 scripts/spark/ingest.sh --dataset kuka --source /data/oxe --output /data/episodes
#
# PYSPARK_PYTHON is the path of that Python on the executors (default: the path of the Python here). Put other Spark settings into
# SPARK_CONF_DIR/spark-defaults.conf. Use one core per task. Python's memory is in addition to spark.executor.memory (512m is enough);
# on YARN and Kubernetes set spark.executor.memoryOverhead. Spark considers a silent host lost after spark.network.timeout, 120 s;
# spark.speculation is safe and helps if a host hangs. If no worker has the requested cores and memory, Spark waits and warns:
# "Initial job has not accepted any resources".
set -euo pipefail

: "${MASTER:?the master, e.g. spark://head:7077, yarn or k8s://...}"
OMP_NUM_THREADS=1 exec ivideogpt-ingest --spark "$MASTER" "$@"

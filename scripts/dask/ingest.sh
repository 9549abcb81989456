#!/usr/bin/env bash
# Ingests on several hosts with Dask. ssh must reach all hosts, and they must share the project's environment and a file system:
#
#   HOSTS="node1 node2 node3" scripts/dask/ingest.sh --dataset kuka --source /data/oxe --output /data/episodes
#
# It starts a scheduler on this host and a worker process per core on the others, ingests, and stops them. HOME_ADDRESS is the address
# of this host for the others. On Kubernetes use scripts/dask/kubernetes.yaml. On Slurm or elsewhere, start `dask scheduler` and `dask
# worker tcp://SCHEDULER:8786 --nworkers auto --nthreads 1` yourself and pass `--dask tcp://SCHEDULER:8786`.
set -euo pipefail

: "${HOSTS:?names of the hosts}"
address=tcp://${HOME_ADDRESS:-$(hostname -I | cut -d' ' -f1)}:${PORT:-8786}
export OMP_NUM_THREADS=1
started=()
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT

dask scheduler --port "${PORT:-8786}" --no-dashboard &
started+=($!)
for host in $HOSTS; do
  # -tt: the worker ends with this script.
  ssh -tt -o BatchMode=yes "$host" \
    "OMP_NUM_THREADS=1 '$(command -v dask)' worker $address --nworkers auto --nthreads 1 --no-dashboard" \
    </dev/null >"dask-$host.log" 2>&1 &
  started+=($!)
done
ivideogpt-ingest --dask "$address" "$@"

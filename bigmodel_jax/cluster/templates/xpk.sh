#!/bin/bash
# This file starts the run on {{slices}} slice(s) of {{accelerator}} in the GKE cluster
# {{gke_cluster}}, through xpk (https://github.com/AI-Hypercomputer/xpk).
set -euo pipefail
xpk workload create --cluster {{gke_cluster}} --workload {{name}} --zone {{zone}} --project {{project}} \
    --tpu-type {{accelerator}} --num-slices {{slices}} --docker-image {{image}} --max-restarts {{restarts}} \
    --command {{command}}

#!/bin/bash
# This file asks for {{slices}} slice(s) of {{accelerator}} as a queued resource, and starts the run
# on all of its hosts. Each host learns its place from the metadata server, and starts again by
# itself when a process of the job was lost. When the slices themselves were taken away, run this
# file again: the run resumes.
set -euo pipefail
NAME={{name}}
WHERE=(--zone {{zone}} --project {{project}})

gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" >/dev/null 2>&1 ||
    gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --accelerator-type {{accelerator}} \
        --runtime-version {{runtime}} {{nodes}}{{options}}

until [ "$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format 'value(state.state)')" = ACTIVE ]; do
    sleep 30
done

gcloud alpha compute tpus queued-resources ssh "$NAME" "${WHERE[@]}" --node all --worker all --command "$(
    cat <<'HOST'
{{command}}
HOST
)"

#!/usr/bin/env bash
# Deletes the TPU and its queued resource, running or not, without asking. What is in the bucket stays.
#
#   tpu_scripts/delete.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

read_pod "$@"
if ! $dry_run && [[ $(pod_state) == none ]]; then
  say "there is no ${setting[name]} in ${setting[zone]}"
  exit
fi
delete_pod

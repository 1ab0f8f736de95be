#!/usr/bin/env bash
# Deletes the TPU and its queued resource without confirmation, even during a run. The bucket is kept.
#
#   tpu_scripts/delete.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

read_pod "$@"
if ! $dry_run && [[ $(pod_state) == none ]]; then
  say "${setting[name]} does not exist in ${setting[zone]}"
  exit
fi
delete_pod

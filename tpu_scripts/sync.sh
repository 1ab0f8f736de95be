#!/usr/bin/env bash
# Sends the code to all workers: what git tracks, with its changes; GIT_STATE beside it says which commit. Files that git
# does not know are named, and stay. A run that is going keeps its code: stop.sh first.
#
#   tpu_scripts/sync.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

read_pod "$@"
sync_code

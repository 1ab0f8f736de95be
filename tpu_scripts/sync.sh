#!/usr/bin/env bash
# Sends the tracked files with their changes to all workers; GIT_STATE names the commit. Untracked files are listed and not
# sent. The code of an active run is not replaced: run stop.sh first.
#
#   tpu_scripts/sync.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

read_pod "$@"
sync_code

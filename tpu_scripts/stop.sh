#!/usr/bin/env bash
# Asks the run to save and stop; a run.sh that watches it ends too. run.sh with the same arguments resumes the run.
#
#   tpu_scripts/stop.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

ask_stop() { ask "$1" stop for_good; }

read_pod "$@"
must_answer ask_stop
for n in "${!answer[@]}"; do echo "worker $n: ${answer[n]}"; done

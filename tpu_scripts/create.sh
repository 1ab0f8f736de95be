#!/usr/bin/env bash
# Requests a TPU through the queue and waits until it is ready: minutes to days. Ctrl-C ends the wait, not the request; the
# same command waits again.
#
#   tpu_scripts/create.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

read_pod "$@"
create_pod || exit 1

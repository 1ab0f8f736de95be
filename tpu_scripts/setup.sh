#!/usr/bin/env bash
# Sends the code to all workers (sync.sh), installs Python and packages there, and checks that JAX sees all devices of the
# pod. It can be repeated.
#
#   tpu_scripts/setup.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

read_pod "$@"
set_up_pod

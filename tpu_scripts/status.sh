#!/usr/bin/env bash
# Shows the state of the queued resource and the TPU, and each worker's state with the last line of its log.
#
#   tpu_scripts/status.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

ask_poll() { ask "$1" poll; }

read_pod "$@"
if $dry_run; then
  wait_for_pod | grep -v '^#'
  ask_poll all
  exit
fi
state=$(pod_state)
echo "${setting[name]}: $state (${setting[accelerator_type]}, $chips chips on $hosts hosts, ${setting[zone]})"
[[ $state != unknown ]] || fail 1 "gcloud failed: $(last_error)"
[[ $state == ready ]] || exit 0
ask_workers ask_poll || true
for ((n = 0; n < hosts; n++)); do echo "worker $n: ${answer[n]-does not answer}"; done
[[ -z $(unanswered) ]] || fail_unreachable

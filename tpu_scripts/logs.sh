#!/usr/bin/env bash
# Shows the log of a worker: the output of `r1jax run` there, over all its starts on this TPU.
#
#   tpu_scripts/logs.sh [--worker 0] [--lines 100] [--follow true]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

setting[worker]=0 setting[lines]=100 setting[follow]=false
read_pod "$@"
check worker '[0-9]+' "a number"
check lines '[0-9]+' "a number"
check follow 'true|false' "true or false"
((setting[worker] < hosts)) ||
  fail 2 "worker is ${setting[worker]}: ${setting[accelerator_type]} has workers 0 to $((hosts - 1))"
options="-n ${setting[lines]}"
[[ ${setting[follow]} == false ]] || options+=" -F"
tpu_ssh "${setting[worker]}" "tail $options r1jax_job/log"

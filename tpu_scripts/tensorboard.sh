#!/usr/bin/env bash
# Runs TensorBoard on worker 0 for all stages of a run, at http://localhost:6006 of this machine, until Ctrl-C.
#
#   tpu_scripts/tensorboard.sh --workdir gs://BUCKET/RUN [--port 6006]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

setting[workdir]="" setting[port]=6006
read_pod "$@"
need workdir
check workdir 'gs://.+' "a run's gs://…"
check port '[0-9]+' "a number"
say "starting at http://localhost:${setting[port]}"
tpu_ssh 0 "bash $worker $(show tensorboard "${setting[workdir]}")" -- -t -L "${setting[port]}:localhost:6006"

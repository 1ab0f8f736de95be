#!/usr/bin/env bash
# TensorBoard on worker 0, seen at http://localhost:6006 here, until Ctrl-C. It reads all stages of a run.
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
say "http://localhost:${setting[port]}, in a moment"
tpu_ssh 0 "bash $worker $(show tensorboard "${setting[workdir]}")" -- -t -L "${setting[port]}:localhost:6006"

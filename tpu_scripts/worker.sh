#!/usr/bin/env bash
# Runs on every worker of a pod, where the other scripts call it over ssh.
#
#   worker.sh install | setup | devices | start ARGUMENT… | poll | stop | kill | tensorboard LOGDIR
#
# A run is started with setsid and nohup, and writes its pid, log and exit status to ~/r1jax_job, so that it survives a
# lost ssh connection and later connections can read them. (tmux would lose the exit status.) Each verb but the last
# prints its answer as one line: @worker NUMBER STATUS WORDS.
set -euo pipefail

cd ~
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
job=$HOME/r1jax_job
python=$HOME/r1jax_venv/bin/python

answer() {
  local number
  number=$(curl -sf -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  printf '@worker %s %s\n' "$number" "$*"
}

last_line() { tail -n 1 "$1" | tr -cd '[:print:]' | cut -c 1-160; }

alive() {
  local pid
  [[ -r $job/pid ]] || return 1
  pid=$(<"$job/pid")
  grep -q worker.sh "/proc/$pid/cmdline" 2>/dev/null # after a reboot the pid may belong to another process
}

# Replaces the old code by the new code, of which this file is a part.
install() {
  if alive; then answer 3 "a run is active, and its code is not replaced: run stop.sh first"; return; fi
  rm -rf r1jax
  mv "$(dirname "$here")" r1jax
  answer 0 "$(<r1jax/GIT_STATE)"
}

# The images have Python 3.10: uv installs 3.11, which the tests use.
setup() {
  local log=$HOME/r1jax_setup.log
  if install_packages >"$log" 2>&1; then
    answer 0 installed
  else
    answer 1 "setup failed, see ~/r1jax_setup.log: $(last_line "$log")"
  fi
}

install_packages() {
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user uv==0.13.9 &&
    python3 -m uv venv --allow-existing --python 3.11 r1jax_venv &&
    bash r1jax/tpu_scripts/requirements.sh >r1jax_requirements.txt &&
    python3 -m uv pip install --python "$python" -r r1jax_requirements.txt tensorboard==2.21.0
}

devices() {
  local log=$HOME/r1jax_devices.log
  if timeout 300 "$python" -c 'import jax; jax.distributed.initialize(); print(
    f"{jax.device_count()} devices, {jax.local_device_count()} here, jax {jax.__version__}")' >"$log" 2>&1; then
    answer 0 "$(last_line "$log")"
  else
    answer 1 "JAX does not find its devices (does another process use the TPU?), see ~/r1jax_devices.log: $(last_line "$log")"
  fi
}

start() {
  if alive; then
    if [[ $* == "$(<"$job/command")" ]]; then answer 0 "is running already"; else answer 3 "runs another command: $(<"$job/command")"; fi
    return
  fi
  [[ -x $python ]] || { answer 3 "is not set up: run setup.sh first"; return; }
  mkdir -p "$job"
  rm -f "$job/exit" "$job/stopped"
  printf '%s\n' "$*" >"$job/command"
  setsid nohup bash "$here/worker.sh" job "$@" >>"$job/log" 2>&1 </dev/null &
  echo $! >"$job/pid"
  answer 0 started
}

# The process that survives ssh: it ignores signals, waits for the run and records its exit status.
job() {
  local code=0
  trap : TERM INT HUP
  echo "--- $(date -u +%FT%TZ) python -m r1jax run $*"
  cd r1jax
  PYTHONUNBUFFERED=1 "$python" -m r1jax run "$@" || code=$?
  echo "$code" >"$job/exit.new"
  mv "$job/exit.new" "$job/exit"
}

poll() {
  local words=none
  if [[ -r $job/exit ]]; then
    words="exited $(<"$job/exit")"
    if [[ -e $job/stopped && $words != "exited 0" ]]; then words=stopped; fi
  elif alive; then
    words=running
  elif [[ -r $job/pid ]]; then
    words=gone # without an exit status: the host was restarted
  fi
  if [[ -r $job/log ]]; then words+=" $(last_line "$job/log")"; fi
  answer 0 "$words"
}

# Sends SIGTERM, on which the run saves and exits with 75.
stop() {
  if [[ ${1-} == for_good && -d $job ]]; then touch "$job/stopped"; fi
  if ! alive; then answer 0 "no run is active"; return; fi
  pkill -TERM -P "$(<"$job/pid")" || true
  answer 0 "asked to save and stop"
}

kill_job() {
  if ! alive; then answer 0 "no run is active"; return; fi
  echo 137 >"$job/exit"
  kill -KILL -- "-$(<"$job/pid")" || true
  answer 0 killed
}

tensorboard() { exec "$python" -m tensorboard.main --logdir "$1" --port 6006; }

case ${1-} in
  install | setup | devices | start | job | poll | stop | tensorboard) "$@" ;;
  kill) kill_job ;;
  *) echo "worker.sh: unknown verb '${1-}'" >&2; exit 2 ;;
esac

# shellcheck shell=bash
# Controls a TPU pod through gcloud: state, workers, creation, deletion, setup. Sourced by the scripts.
# shellcheck source-path=SCRIPTDIR source=settings.bash
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

TRIES=5 # to reach a silent worker, with pauses of 10, 20, 40, 80, 160 s
worker=r1jax/tpu_scripts/worker.sh # where sync.sh puts it

# read_pod FLAGS…: reads the settings of a script that needs a TPU.
read_pod() {
  read_settings "$@"
  need name project zone accelerator_type
  check_name
  check zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "such as us-west4-a"
  check spot 'true|false' "true or false"
  check valid_until '[0-9]+[smhd]' "a time such as 30m or 6h"
  read_accelerator_type
  where=(--zone="${setting[zone]}" --project="${setting[project]}")
  $dry_run && return
  mkdir -p "$root/.cache/tpu"
  errors=$(mktemp "$root/.cache/tpu/errors.XXXXXX") # stderr of the last gcloud command
  trap 'rm -f "$errors"' EXIT
}

# Prints the settings as flags for another script.
pod_flags() {
  local key
  for key in "${pod_settings[@]}"; do
    [[ -z ${setting[$key]} ]] || printf '%s\0' "--$key" "${setting[$key]}"
  done
}

queued_resource() { act gcloud compute tpus queued-resources "$1" "${setting[name]}" "${where[@]}" "${@:2}"; }

# One line of stderr of the last gcloud command: the last one that matches PATTERN, else an error, else the last line.
last_error() {
  local pattern
  for pattern in "${1:-^ERROR}" '^ERROR' '.'; do
    grep -i -e "$pattern" "$errors" | tail -n 1 | cut -c 1-300 | grep . && return
  done
  echo "no message"
}

# pod_state: none, queued, ready, unready (such as being repaired), lost (preempted, suspended, failed), or unknown where
# gcloud failed.
pod_state() {
  local state
  if ! state=$(queued_resource describe --format='value(state.state)' 2>"$errors"); then
    if grep -q NOT_FOUND "$errors"; then echo none; else echo unknown; fi
    return
  fi
  case $state in
    ACTIVE) node_state ;;
    SUSPENDING | SUSPENDED | FAILED) echo lost ;;
    *) echo queued ;;
  esac
}

node_state() {
  local state
  if ! state=$(gcloud compute tpus tpu-vm describe "${setting[name]}" "${where[@]}" --format='value(state)' 2>"$errors"); then
    if grep -q NOT_FOUND "$errors"; then echo lost; else echo unknown; fi
    return
  fi
  case $state in
    READY) echo ready ;;
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | UNHIDING) echo unready ;;
    *) echo lost ;;
  esac
}

# tpu_ssh WORKER COMMAND [SSH_FLAG…]: runs a command on one worker, or on all at once.
tpu_ssh() {
  act gcloud compute tpus tpu-vm ssh "${setting[name]}" "${where[@]}" --quiet --worker="$1" --command="$2" "${@:3}"
}

# ask WORKER VERB [ARGUMENT…]: calls worker.sh on a worker, and prints its answer.
ask() { tpu_ssh "$1" "bash $worker $(show "${@:2}")"; }

# Every worker answers with a line `@worker NUMBER STATUS WORDS` (worker.sh): gcloud mixes the output of all workers, and
# does not name those that it could not reach.
read_answers() {
  local mark number code words
  while read -r mark number code words; do
    [[ $mark == @worker && $number =~ ^[0-9]+$ && $code =~ ^[0-9]+$ ]] || continue
    status[number]=$code
    answer[number]=$words
  done
}

unanswered() {
  local n
  for ((n = 0; n < hosts; n++)); do [[ -v "status[$n]" ]] || echo "$n"; done
}

# ask_workers COMMAND…: calls `COMMAND all`, then with back-off `COMMAND N` for each worker N without an answer, into
# $status and $answer. Returns 1 where a worker stays silent, and 2 where the pod is gone.
ask_workers() {
  local try n silent
  status=() answer=()
  if $dry_run; then "$@" all; return; fi
  read_answers < <("$@" all 2>"$errors" </dev/null)
  for ((try = 1; try <= TRIES; try++)); do
    silent=$(unanswered)
    [[ -n $silent ]] || return 0
    [[ $(pod_state) != @(lost|none) ]] || return 2
    say "no answer from worker ${silent//$'\n'/, }; try $try of $TRIES"
    pause $((5 * 2 ** try))
    if [[ $(wc -l <<<"$silent") == "$hosts" ]]; then
      read_answers < <("$@" all 2>"$errors" </dev/null)
    else
      for n in $silent; do read_answers < <("$@" "$n" 2>"$errors" </dev/null); done
    fi
  done
  [[ -z $(unanswered) ]]
}

# must_answer COMMAND…: as ask_workers, but fails unless every worker answers with status 0.
must_answer() {
  local n result=0
  ask_workers "$@" || result=$?
  ((result != 2)) || fail 1 "${setting[name]} is gone: see status.sh; run.sh recreates a preempted TPU"
  ((result == 0)) || fail_unreachable
  for n in "${!status[@]}"; do
    ((status[n] == 0)) || fail 1 "worker $n: ${answer[n]}"
  done
}

fail_unreachable() {
  local silent
  silent=$(unanswered)
  fail 1 "worker ${silent//$'\n'/, } of ${setting[name]} can't be reached after $TRIES tries ($(last_error)): see" \
    "status.sh; to resume from the run's checkpoints on a new TPU: delete.sh, create.sh, setup.sh, run.sh"
}

# create_pod: requests the TPU unless it is requested already, and waits for it. Returns 1 with a line where that fails.
create_pod() {
  local flags=(--node-id="${setting[name]}" --accelerator-type="${setting[accelerator_type]}")
  flags+=(--runtime-version="$runtime")
  [[ ${setting[spot]} == false ]] || flags+=(--spot)
  [[ -z ${setting[valid_until]} ]] || flags+=(--valid-until-duration="${setting[valid_until]}")
  if $dry_run; then
    queued_resource create "${flags[@]}"
    wait_for_pod
    return
  fi
  case $(pod_state) in
    none)
      queued_resource create "${flags[@]}" 2>"$errors" || { refuse_creation; return 1; }
      say "requested ${setting[name]}: ${setting[accelerator_type]}, $chips chips on $hosts hosts, in ${setting[zone]}"
      ;;
    lost)
      say "${setting[name]} is preempted, suspended or failed: run delete.sh first (run.sh does so by itself)"
      return 1
      ;;
    unknown) say "gcloud failed: $(last_error)"; return 1 ;;
  esac
  wait_for_pod
}

# Missing quota ends the script, since a second request would fail too.
refuse_creation() {
  if grep -qi 'quota' "$errors"; then
    fail 1 "$(last_error quota) ${setting[accelerator_type]} needs quota for $chips chips in ${setting[zone]}" \
      "(spot=${setting[spot]}; spot and on demand have quotas of their own): try another --zone, the other --spot," \
      "a smaller type, or ask for more quota"
  fi
  say "can't create ${setting[name]}: $(last_error)"
}

wait_for_pod() {
  local state before="" silent=0
  if $dry_run; then
    echo '# until the first prints ACTIVE and the second READY:'
    queued_resource describe --format='value(state.state)'
    show gcloud compute tpus tpu-vm describe "${setting[name]}" "${where[@]}" --format='value(state)'
    return
  fi
  while true; do
    state=$(pod_state)
    [[ $state == "$before" ]] || say "${setting[name]}: $state"
    before=$state
    case $state in
      ready) return ;;
      none) say "${setting[name]} was deleted during the wait"; return 1 ;;
      lost) explain_failure; return 1 ;;
      unknown) ((++silent < TRIES)) || { say "gcloud failed: $(last_error)"; return 1; } ;;
      *) silent=0 ;;
    esac
    pause 30
  done
}

# A queued resource can also fail later: for quota, or when --valid_until has passed.
explain_failure() {
  queued_resource describe --format='value(state.state,state.failedData.error.message)' >"$errors" 2>&1 || true
  refuse_creation
}

delete_pod() { queued_resource delete --force --quiet; }

# copy_code WORKER: sends the tarball and installs it unless a run is active. A truncated tarball fails to unpack.
copy_code() {
  act gcloud compute tpus tpu-vm scp "$tarball" "${setting[name]}:r1jax.tar.gz" "${where[@]}" --quiet --worker="$1" || true
  tpu_ssh "$1" "rm -rf r1jax.new && mkdir r1jax.new && tar -xzf r1jax.tar.gz -C r1jax.new && rm r1jax.tar.gz &&\
 bash r1jax.new/tpu_scripts/worker.sh install"
}

sync_code() {
  local n
  pack_code
  must_answer copy_code
  for n in "${!answer[@]}"; do
    [[ ${answer[n]} == "$git_state" ]] || fail 1 "worker $n has code ${answer[n]}, expected $git_state: repeat sync.sh"
  done
}

# Installs Python and packages, and checks the devices of the whole pod, which all workers have to do at the same time.
set_up_pod() {
  local n wrong=()
  sync_code
  say "installing on $hosts workers, which takes minutes"
  must_answer ask_setup
  must_see_devices
  for n in "${!answer[@]}"; do
    say "worker $n: ${answer[n]}"
    [[ ${answer[n]} == "$chips devices, $chips_per_host here, "* ]] || wrong+=("worker $n has ${answer[n]}")
  done
  ((${#wrong[@]} == 0)) ||
    fail 1 "$(printf '%s; ' "${wrong[@]}")expected $chips devices, $chips_per_host here: recreate the TPU with delete.sh and create.sh"
}

# Workers see the devices only together: if one was not reached, all have to try again.
must_see_devices() {
  local try
  $dry_run || for ((try = 1; try < 3; try++)); do
    status=() answer=()
    read_answers < <(ask_devices all 2>"$errors" </dev/null)
    [[ -n $(unanswered) || ${status[*]} == *[1-9]* ]] || return 0
    [[ $(pod_state) == ready ]] || break
    say "not all workers see the devices; try $try of 3"
    pause $((5 * 2 ** try))
  done
  must_answer ask_devices
}

ask_setup() { ask "$1" setup; }
ask_devices() { ask "$1" devices; }

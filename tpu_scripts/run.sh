#!/usr/bin/env bash
# Runs `python -m r1jax run …` on all workers and watches it. After a preemption it recreates the TPU, sets it up and
# repeats the command, which resumes from the checkpoints in its workdir. Ctrl-C ends the watching, not the run; the same
# command watches again.
#
#   tpu_scripts/run.sh [--max_restarts 10] -- r1_zero_math --gin … --workdir gs://BUCKET/RUN
#
# --max_restarts: consecutive restarts that each ran for less than half an hour. Exit status: 0 when the run is done, 2
# when its config is wrong, 1 when it failed or the TPU is not available, 75 when stop.sh stopped it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=pod.bash
source "$(dirname "$0")/pod.bash"

# After a worker has failed, the others may run for this many polls (of 30 s), then as long again after SIGTERM. For three
# times as many polls gcloud may fail, or the TPU may be under repair.
PATIENCE=${POD_PATIENCE:-20} # tests set it lower

ask_start() { ask "$1" start "${arguments[@]}"; }
ask_poll() { ask "$1" poll; }
ask_stop() { ask "$1" stop; }
ask_kill() { ask "$1" kill; }

main() {
  setting[max_restarts]=10
  read_pod "$@"
  check max_restarts '[0-9]+' "a number"
  need_run_arguments
  if $dry_run; then show_all; return; fi

  trap 'say "no longer watching; the run continues, and the same command watches it again"; exit 130' INT
  local outcome restarts=0 began
  case $(pod_state) in
    none) fail 1 "${setting[name]} does not exist in ${setting[zone]}: run create.sh and setup.sh first" ;;
    unknown) fail 1 "gcloud failed: $(last_error)" ;;
    lost) outcome=preempted ;;
    *)
      wait_for_pod || exit 1
      outcome=new
      ;;
  esac
  while true; do
    if [[ $outcome != preempted ]] || recreate; then
      began=$SECONDS
      watch_run
      conclude
      ((SECONDS - began < 1800)) || restarts=0
    fi
    ((restarts < setting[max_restarts])) || fail 1 "gave up after $restarts restarts in a row: $outcome"
    restarts=$((restarts + 1))
    say "$outcome: restart $restarts of at most ${setting[max_restarts]} in a row"
    pause $((restarts < 6 ? 15 * 2 ** restarts : 900))
    [[ $outcome != again ]] || ! stopped_meanwhile || outcome='stopped' conclude
  done
}

# Ends the script unless $outcome is a reason to restart the run.
conclude() {
  case $outcome in
    'done') say "done: ${arguments[*]}"; exit 0 ;;
    stopped) say "stopped by stop.sh; the same command resumes"; exit 75 ;;
    config) show_log; fail 2 "worker $culprit: the config is wrong (exit status 2), see above" ;;
    failed)
      show_log
      fail 1 "worker $culprit: the run failed (exit status $culprit_code), see above and logs.sh --worker $culprit"
      ;;
  esac
}

# Whether stop.sh was called during the pause before a restart.
stopped_meanwhile() { ask_workers ask_poll && read_polls && blame stopped stopped; }

show_log() { tpu_ssh "$culprit" "tail -n 30 r1jax_job/log" 2>"$errors" </dev/null >&2 || true; }

# Deletes the rest of the TPU, creates it and sets it up; a TPU that is ready, since only its setup failed, is only set up.
# Returns 1 for another try; missing quota ends the script.
recreate() {
  local flags
  mapfile -d '' flags < <(pod_flags)
  case $(pod_state) in
    ready) ;;
    none) create_pod || return 1 ;;
    *)
      delete_pod 2>"$errors" || { say "can't delete: $(last_error)"; return 1; }
      create_pod || return 1
      ;;
  esac
  "$scripts/setup.sh" "${flags[@]}"
}

# Starts the run unless it is active, and returns with $outcome when it has ended or its TPU is gone.
watch_run() {
  local result verdict waited=0 silent=0 unready=0
  outcome=preempted
  must_start || return 0
  while true; do
    pause 30
    case $(pod_state) in
      lost | none) return ;;
      unknown)
        ((++silent < 3 * PATIENCE)) || fail 1 "gcloud failed ($(last_error)): the run continues; repeat the command to watch it"
        continue
        ;;
      unready | queued)
        ((++unready < 3 * PATIENCE)) || return 0
        say "${setting[name]} is being repaired"
        continue
        ;;
    esac
    silent=0 unready=0 result=0
    ask_workers ask_poll || result=$?
    ((result != 2)) || return 0
    ((result == 0)) || fail_unreachable
    read_polls
    # How workers end after they were told to stop does not count.
    ((waited >= PATIENCE)) || judge
    say "$running of $hosts workers running: ${answer[0]#* }"
    ((running > 0)) || break
    [[ $verdict != going ]] || continue
    waited=$((waited + 1))
    ((waited != PATIENCE)) || ask_workers ask_stop || true
    ((waited != 2 * PATIENCE)) || ask_workers ask_kill || true
  done
  if [[ $verdict == failed ]]; then
    pause 30 # a preempted worker fails the others, and gcloud may report the preemption late
    [[ $(pod_state) != @(lost|none) ]] || return 0
  fi
  outcome=$verdict
}

must_start() {
  local result=0 n
  ask_workers ask_start || result=$?
  ((result != 2)) || return 1
  ((result == 0)) || fail_unreachable
  for n in "${!status[@]}"; do ((status[n] == 0)) || fail 1 "worker $n ${answer[n]}"; done
  say "on $hosts workers: python -m r1jax run ${arguments[*]}"
}

# Sets $running, the number of running workers, and $codes, the exit codes of the others.
read_polls() {
  local n words
  running=0 codes=()
  for n in "${!answer[@]}"; do
    read -ra words <<<"${answer[n]}"
    case ${words[0]} in
      running) running=$((running + 1)) ;;
      exited) codes[n]=${words[1]} ;;
      stopped) codes[n]=stopped ;;
      *) codes[n]=gone ;;
    esac
  done
}

# Sets $verdict by $codes, and the $culprit. A wrong config comes first, since it fails on every start; then SIGTERM (75:
# saved), since it makes other workers fail.
judge() {
  verdict=going culprit="" culprit_code=""
  blame config 2 || blame stopped stopped || blame again 75 || blame again 143 || blame again gone || blame failed '[!0]*' ||
    ((running > 0)) || verdict='done'
}

# blame VERDICT PATTERN: sets the verdict if a worker's code matches.
blame() {
  local n
  for n in "${!codes[@]}"; do
    # shellcheck disable=SC2053 # a pattern
    if [[ ${codes[n]} == $2 ]]; then
      verdict=$1 culprit=$n culprit_code=${codes[n]}
      return 0
    fi
  done
  return 1
}

show_all() {
  ask_start all
  echo '# every 30 s, until all workers have exited:'
  wait_for_pod | grep -v '^#'
  ask_poll all
  echo '# when the TPU is preempted or suspended:'
  delete_pod
  create_pod
  set_up_pod
  ask_start all
}

main "$@"

# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this use what it sets
# Settings (from pod.env and flags), accelerator types and dry runs. Sourced by every script.

script=${0##*/}
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$scripts")
dry_run=false

# Every key is a flag (--zone us-west4-a) and a key of pod.env (zone=us-west4-a); scripts add flags of their own.
declare -A setting=([name]="" [project]="" [zone]="" [accelerator_type]="" [runtime_version]="" [spot]=false
  [valid_until]="")
pod_settings=("${!setting[@]}")
arguments=() # the words after --

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

# fail STATUS WORDS: prints one line and exits. 2: the command or a setting is wrong; 1: something else failed.
fail() {
  printf '%s: %s\n' "$script" "${*:2}" >&2
  exit "$1"
}

# POD_PAUSE replaces every pause, in seconds, for tests.
pause() { sleep "${POD_PAUSE:-$1}"; }

# Prints the comment at the top of the script, and the settings.
show_help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  cat <<'HELP'

Settings, as flags or as lines of tpu_scripts/pod.env (pod.env.example); --pod FILE reads another file:
  --name NAME                name of the TPU and of its queued resource
  --project PROJECT          --zone ZONE
  --accelerator_type TYPE    v5litepod-16, v6e-64, v5p-256, …
  --runtime_version VERSION  default: by the TPU's generation
  --spot true                cheaper, may be preempted; default false
  --valid_until 6h           cancel the request after this time; default: never
  --dry_run                  print the commands instead of executing them
HELP
}

# read_settings FLAGS…: flags override pod.env, and pod.env overrides defaults.
read_settings() {
  local file="" key
  local -A given=()
  while (($#)); do
    key=${1#--}
    case $1 in
      --help | -h) show_help; exit 0 ;;
      --dry_run) dry_run=true; shift; continue ;;
      --) arguments=("${@:2}"); break ;;
      --pod) ;;
      --*) [[ -v "setting[$key]" ]] || fail 2 "unknown flag $1: --help lists them" ;;
      *) fail 2 "unexpected '$1': expected flags, then -- and the arguments of r1jax" ;;
    esac
    [[ $# -ge 2 && $2 != --* ]] || fail 2 "$1 needs a value"
    if [[ $1 == --pod ]]; then file=$2; else given[$key]=$2; fi
    shift 2
  done
  [[ -z $file || -r $file ]] || fail 2 "--pod is $file, which can't be read"
  read_file "${file:-$scripts/pod.env}"
  for key in "${!given[@]}"; do setting[$key]=${given[$key]}; done
}

# The file is parsed, not sourced: an unknown key is an error, and nothing in it is executed.
read_file() {
  local line key
  [[ -r $1 ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
    key=${line%%=*}
    [[ $line == *=* && " ${pod_settings[*]} " == *" $key "* ]] ||
      fail 2 "$1 has the line '$line': expected SETTING=VALUE with one of ${pod_settings[*]}"
    setting[$key]=${line#*=}
  done <"$1"
}

# need KEY…: fails unless these are set.
need() {
  local key place
  for key in "$@"; do
    place=""
    [[ " ${pod_settings[*]} " != *" $key "* ]] || place=", or add $key=… to $scripts/pod.env"
    [[ -n ${setting[$key]} ]] || fail 2 "$key is not set: add --$key$place"
  done
}

# check KEY PATTERN EXPECTED: fails where a setting is set and does not match the pattern.
check() {
  [[ -z ${setting[$1]} || ${setting[$1]} =~ ^($2)$ ]] || fail 2 "$1 is '${setting[$1]}': expected $3"
}

check_name() { check name '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "at most 40 lower-case letters, digits and -, a letter first"; }

# Sets by the accelerator type: $chips, $hosts, $chips_per_host, $topology, $gke_accelerator, $runtime.
read_accelerator_type() {
  local type=${setting[accelerator_type]} known
  need accelerator_type
  case $type in
    v5litepod-*) known="1 4 8 16 32 64 128 256" gke_accelerator=tpu-v5-lite-podslice runtime=v2-alpha-tpuv5-lite ;;
    v6e-*) known="1 4 8 16 32 64 128 256" gke_accelerator=tpu-v6e-slice runtime=v2-alpha-tpuv6e ;;
    v5p-*) known="8 16 32 64 128 256 512 1024 2048 4096 8192 12288" gke_accelerator=tpu-v5p-slice runtime=v2-alpha-tpuv5 ;;
    *) fail 2 "accelerator_type is '$type': expected v5litepod-N, v6e-N or v5p-N" ;;
  esac
  [[ " $known " == *" ${type##*-} "* ]] || fail 2 "accelerator_type is '$type': expected ${type%-*}-N with N one of $known"
  chips=${type##*-}
  if [[ $type == v5p-* ]]; then
    chips=$((chips / 2)) # the name counts TensorCores, two per chip
    topology=$(topology_3d "$chips")
    chips_per_host=4
  else
    topology=$(topology_2d "$chips")
    chips_per_host=$((chips <= 8 ? chips : 4))
  fi
  hosts=$((chips / chips_per_host))
  runtime=${setting[runtime_version]:-$runtime}
}

topology_2d() {
  case $1 in
    1) echo 1x1 ;; 4) echo 2x2 ;; 8) echo 2x4 ;; 16) echo 4x4 ;; 32) echo 4x8 ;; 64) echo 8x8 ;; 128) echo 8x16 ;;
    256) echo 16x16 ;;
  esac
}

topology_3d() {
  case $1 in
    4) echo 2x2x1 ;; 8) echo 2x2x2 ;; 16) echo 2x2x4 ;; 32) echo 2x4x4 ;; 64) echo 4x4x4 ;; 128) echo 4x4x8 ;;
    256) echo 4x8x8 ;; 512) echo 8x8x8 ;; 1024) echo 8x8x16 ;; 2048) echo 8x16x16 ;; 4096) echo 16x16x16 ;;
    6144) echo 16x16x24 ;;
  esac
}

# show WORDS…: prints a command, quoted for pasting.
show() {
  local word line=""
  for word in "$@"; do
    if [[ $word == *\'* && $word != *[\"\$\`\\!]* ]]; then
      word="\"$word\""
    elif [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      word=${word@Q}
    fi
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# act WORDS…: executes a command, or prints it in a dry run.
act() { if $dry_run; then show "$@"; else "$@"; fi; }

# Fails unless there are arguments of `r1jax run` with a workdir that survives a preemption.
need_run_arguments() {
  local words=" ${arguments[*]} "
  ((${#arguments[@]})) || fail 2 "expected the arguments of \`r1jax run\` after --"
  [[ $words == *" --workdir gs://"* || $words == *" --workdir=gs://"* ]] ||
    fail 2 "expected --workdir gs://… after --: a worker's own disk is lost when it is preempted"
}

# Packs the tracked files with their changes as $tarball, with $git_state in GIT_STATE, which the run records.
tarball=$root/.cache/tpu/r1jax.tar.gz
pack_code() {
  local commit
  if $dry_run; then
    show mkdir -p "${tarball%/*}"
    echo "$(show git -C "$root" describe --always --dirty) > $(show "${tarball%/*}/GIT_STATE")"
    echo '# HEAD or, with uncommitted changes, the commit that "git stash create" prints:'
    show git -C "$root" archive --format=tar.gz --add-file="${tarball%/*}/GIT_STATE" -o "$tarball" HEAD
    return
  fi
  mkdir -p "${tarball%/*}"
  git_state=$(git -C "$root" describe --always --dirty) || fail 1 "$root is not a git checkout, expected one to pack"
  echo "$git_state" >"${tarball%/*}/GIT_STATE"
  commit=$(git -C "$root" -c user.name=r1jax -c user.email=r1jax@localhost stash create) # empty without changes
  git -C "$root" archive --format=tar.gz --add-file="${tarball%/*}/GIT_STATE" -o "$tarball" "${commit:-HEAD}"
  say "code: $git_state"
  git -C "$root" ls-files --others --exclude-standard -- '*.py' '*.gin' |
    while read -r path; do say "not sent, because git does not track it (git add): $path"; done
}

#!/usr/bin/env bash
# Runs an experiment on GKE, as a JobSet on node pools with one TPU slice of the accelerator type each.
#
#   tpu_scripts/gke.sh build    --image IMAGE           builds the image from the tracked files and pushes it
#   tpu_scripts/gke.sh manifest --image IMAGE -- …      prints the JobSet of `r1jax run …`
#   tpu_scripts/gke.sh apply    --image IMAGE -- …      starts it; it resumes by itself after a preemption
#   tpu_scripts/gke.sh logs | status | delete           by --name; logs --worker 0
#   tpu_scripts/gke.sh xpk      --image IMAGE --cluster CLUSTER -- …   the same through XPK: prints its command
#
# --max_restarts 10: restarts of all pods, for any reason but a wrong config. --slices 1: number of slices of the run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.bash
source "$(dirname "$0")/settings.bash"

main() {
  local verb=${1-}
  setting[image]="" setting[cluster]="" setting[max_restarts]=10 setting[slices]=1 setting[worker]=0
  case $verb in
    build | manifest | apply | logs | status | delete | xpk) read_settings "${@:2}" ;;
    --help | -h) show_help; return ;;
    *) fail 2 "verb is '$verb': expected build, manifest, apply, logs, status, delete or xpk" ;;
  esac
  check_name
  check spot 'true|false' "true or false"
  check max_restarts '[0-9]+' "a number"
  check slices '[1-9][0-9]*' "a number, 1 or more"
  check worker '[0-9]+' "a number"
  "$verb"
}

build() {
  need image
  pack_code
  if $dry_run; then
    echo "$(show docker build -f tpu_scripts/Dockerfile -t "${setting[image]}" -) < $(show "$tarball")"
  else
    docker build -f tpu_scripts/Dockerfile -t "${setting[image]}" - <"$tarball"
  fi
  act docker push "${setting[image]}"
}

manifest() {
  local text key args spot=${setting[spot]}
  need name image
  need_run_arguments
  read_accelerator_type
  args=$(json_list run "${arguments[@]}") || exit
  text=$(<"$scripts/jobset.yaml")
  [[ $spot == true ]] || text=$(grep -v gke-spot <<<"$text") # on-demand nodes have no such label
  local -A value=([name]=${setting[name]} [image]=${setting[image]} [max_restarts]=${setting[max_restarts]} [spot]=$spot
    [slices]=${setting[slices]} [hosts]=$hosts [chips_per_host]=$chips_per_host [gke_accelerator]=$gke_accelerator [topology]=$topology
    [args]=$args)
  for key in "${!value[@]}"; do text=${text//"\${$key}"/"${value[$key]}"}; done
  printf '%s\n' "$text"
}

# A list of strings as JSON, which is also YAML.
json_list() {
  local word list=""
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] || fail 2 "an argument has a line break or another control character: $(show "$word")"
    word=${word//\\/\\\\}
    list+="\"${word//\"/\\\"}\", "
  done
  printf '[%s]' "${list%, }"
}

apply() {
  local text
  text=$(manifest) || exit
  if $dry_run; then
    printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$text"
  else
    kubectl apply -f - <<<"$text"
  fi
}

logs() {
  need name
  act kubectl logs --tail=100 --follow \
    --selector="jobset.sigs.k8s.io/jobset-name=${setting[name]},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=${setting[worker]}"
}

status() {
  need name
  act kubectl get jobset "${setting[name]}"
  act kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=${setting[name]}" --output=wide
}

delete() {
  need name
  act kubectl delete jobset "${setting[name]}"
}

# XPK restarts only after signals (exit status 127 to 255) and after 75.
xpk() {
  need name project zone cluster image
  need_run_arguments
  read_accelerator_type
  show xpk workload create --workload="${setting[name]}" --cluster="${setting[cluster]}" --project="${setting[project]}" \
    --zone="${setting[zone]}" --tpu-type="${setting[accelerator_type]}" --num-slices="${setting[slices]}" --docker-image="${setting[image]}" \
    --max-restarts="${setting[max_restarts]}" --restart-on-exit-codes=75 \
    --command="python -m r1jax run $(show "${arguments[@]}")"
}

main "$@"

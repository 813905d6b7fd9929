#!/bin/bash
# Runs as root on every VM of a slice, at every boot (docs.cloud.google.com/compute/docs/instances/startup-scripts).
#
# Reads what it is told from the metadata server, pulls the image by digest, and keeps `deploy.provisioners.vm.watch`
# going, which says what to run. Everything is in the run directory; what this machine has to remember until it is
# rebooted is in $state. Where no watcher has run for as long as a slice may be unattended, the slice is deleted too: an
# image that cannot be pulled must not cost money for ever.
set -u

metadata="http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance"
tpu_api="${TPU_API:-https://tpu.googleapis.com}"
state="${VM_STATE:-/run/nanocode}"
export DOCKER_CONFIG="$state/docker" # credentials of the registry stay in memory

ask() { # PATH: what the metadata server says
  curl --silent --fail --max-time 10 --retry 10 --retry-delay 2 --retry-connrefused \
    --header 'Metadata-Flavor: Google' "$metadata/$1"
}

token() { # of the VM's service account
  ask service-accounts/default/token | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p'
}

pull() { # IMAGE
  docker image inspect "$1" > /dev/null 2>&1 && return
  local registry="${1%%/*}"
  case "$registry" in
    *.pkg.dev | gcr.io | *.gcr.io)
      token | docker login --username oauth2accesstoken --password-stdin "https://$registry" > /dev/null 2>&1
      ;;
  esac
  docker pull --quiet "$1" > /dev/null
}

contained() { # NAME IMAGE COMMAND...: the container sees the TPU, its network and $state, under the same names as here
  local name="$1" image="$2"
  shift 2
  docker run --rm --name "$name" --user 0:0 --privileged --network host --shm-size 16g --ulimit memlock=-1 \
    --volume "$state:$state" --label "$label" --env GCE_METADATA_HOST="${metadata_host}" "$image" "$@"
}

start() { # NAME IMAGE STAGE ATTEMPT [HOSTS]: an image that is older than this script says no HOSTS, and takes less
  local name="$1" image="$2" stage="$3" attempt="$4" of="${5:-}" host=()
  [ -z "$of" ] || host=(
    --run-dir "$run_dir" --slice "$slice" --worker "$worker" --of "$of" --vms "$hosts"
    --endpoints "$endpoints" --accelerator-type "$accelerator_type"
  )
  [ -e "$state/$name.said" ] && return
  : > "$state/$name.said"
  (
    label=nanocode-stage
    if pull "$image"; then
      contained "$name" "$image" python -m deploy.provisioners.vm.entry --secrets "$secrets" --said "$state/$name.said" \
        ${host[@]+"${host[@]}"} -- \
        python -m deploy.local.keeper --run-dir "$run_dir" --stage "$stage" --attempt "$attempt" \
        --worker "$worker" --of "${of:-$hosts}" --termination-log "$state/$name.said"
      code=$?
    else
      echo "image $image cannot be pulled: push it, and let the slices' service account and network reach it" > "$state/$name.said"
      code=1
    fi
    echo "$code" > "$state/$name.aside"
    mv "$state/$name.aside" "$state/$name.code"
  ) < /dev/null 3<&- 9<&- &
}

watch() { # until it ends, or says that we leave
  docker rm --force nanocode-watch > /dev/null 2>&1
  exec 3< <(
    label=nanocode-watch
    contained nanocode-watch "$image" python -m deploy.provisioners.vm.watch --run-dir "$run_dir" --slice "$slice" \
      --worker "$worker" --of "$hosts" --state "$state" --unattended "$unattended" \
      --seconds-between-looks "${SECONDS_BETWEEN_LOOKS:-5}" < /dev/null 9<&-
  )
  local verb rest status
  while true; do
    read -r -t 60 verb rest <&3
    status=$?
    if [ "$status" -gt 128 ]; then # nothing said for a minute
      docker kill nanocode-watch > /dev/null 2>&1
      return
    fi
    [ "$status" -ne 0 ] && return
    heard=$SECONDS
    # shellcheck disable=SC2086  # the words of a line are arguments
    case "$verb" in
      start) start $rest ;;
      stop) docker kill --signal TERM $rest > /dev/null 2>&1 & ;;
      kill) docker kill $rest > /dev/null 2>&1 & ;;
      leave) leaving=yes ;;
    esac
  done
}

delete_slice() { # the token goes by a pipe: command lines are for all to see
  printf 'header = "Authorization: Bearer %s"\n' "$(token)" |
    curl --silent --fail --max-time 30 --config - --request DELETE "$tpu_api/v2/$queued_resource?force=true" > /dev/null
}

mkdir -p "$state"
exec 9> "$state/lock"
flock --nonblock 9 || exit 0
metadata_host="${GCE_METADATA_HOST:-metadata.google.internal}"
run_dir="$(ask attributes/nanocode-run-dir)"
slice="$(ask attributes/nanocode-slice)"
queued_resource="$(ask attributes/nanocode-queued-resource)"
image="$(ask attributes/nanocode-image)"
secrets="$(ask attributes/nanocode-secrets)"
unattended="$(ask attributes/nanocode-unattended-seconds)"
# As JAX finds them (jax/_src/clusters/cloud_tpu_cluster.py).
worker="$(ask attributes/agent-worker-number)"
endpoints="$(ask attributes/worker-network-endpoints)"
hosts="$(tr ',' '\n' <<< "$endpoints" | grep --count .)"
accelerator_type="$(ask attributes/accelerator-type)"

heard=$SECONDS
leaving=no
until [ "$leaving" = yes ] || [ $((SECONDS - heard)) -gt "${unattended:-3600}" ]; do
  pull "$image" && watch
  [ "$leaving" = yes ] || sleep "${SECONDS_BETWEEN_WATCHERS:-10}"
done
until delete_slice; do sleep "${SECONDS_BETWEEN_WATCHERS:-10}"; done

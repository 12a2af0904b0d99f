#!/usr/bin/env bash
# One training over all hosts of a Cloud TPU slice.
#
#   TPU=my-v5e-256 ZONE=us-west4-a launch/tpu_pod.sh train configs/spatial_clap.py --size base \
#       --data /mnt/data/mine --workdir /mnt/runs/mine
#
# TPU      name of the slice
# ZONE     its zone
# PROJECT  its project; gcloud's own default where unset
# SOURCE   what pip installs on each host; default: the extra `tpu` of spatial-clap-jax
set -euo pipefail

if (($# < 1)) || [[ -z ${TPU:-} || -z ${ZONE:-} ]]; then
    echo "usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh COMMAND ARGUMENTS...   (of spatial-clap)" >&2
    exit 2
fi
source=${SOURCE:-spatial-clap-jax[tpu]}
printf -v install '%q' "$source"
printf -v arguments '%q ' "$@"

# Every host installs and starts the same command; JAX asks the TPU's metadata for the others.
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} \
    --worker all --command "
        set -e
        # The Python of some TPU images is older than ours; uv brings its own.
        python3 -m pip install --quiet --user uv
        test -x \$HOME/spatial-clap-env/bin/python ||
            python3 -m uv venv --quiet --clear --python 3.12 \$HOME/spatial-clap-env
        python3 -m uv pip install --quiet --python \$HOME/spatial-clap-env/bin/python $install
        SPATIAL_CLAP_PROCESSES=auto \$HOME/spatial-clap-env/bin/spatial-clap $arguments"

#!/bin/bash
# One stage as a job array, with no scheduler but Slurm's own:
#   sbatch --array=1-16 slurm-array.sh RECIPE STAGE [OPTIONS OF krepes run]
# STAGE is features, kernel or moments. Every task computes its part, in any order, once or more
# often; a plain "krepes run RECIPE" afterwards seals the stage and goes on.
#SBATCH --job-name=krepes-array
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=01:00:00
set -eu
recipe=$1 stage=$2
shift 2
exec ${KREPES:-krepes} run "$recipe" --only "$stage" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers 1 --memory 3GiB --quiet "$@"

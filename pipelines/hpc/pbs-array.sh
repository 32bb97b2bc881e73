#!/bin/bash
# One stage as a job array: qsub -J 1-16 -v RECIPE=digits,STAGE=kernel,COUNT=16 pbs-array.sh
# STAGE is features, kernel or moments; a plain "krepes run" afterwards seals it and goes on.
#PBS -N krepes-array
#PBS -l select=1:ncpus=1:mem=4gb
#PBS -l walltime=01:00:00
set -eu
cd "$PBS_O_WORKDIR"
exec ${KREPES:-krepes} run "$RECIPE" --only "$STAGE" --shard "$PBS_ARRAY_INDEX/$COUNT" \
    --workers 1 --memory 3GiB --quiet

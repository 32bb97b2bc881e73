#!/bin/bash
# A whole audit in jobs of an hour each: the run stops itself in time with exit code 75, and the job
# goes back into the queue until the audit is done.
#   sbatch slurm-requeue.sh RECIPE [OPTIONS OF krepes run]
#SBATCH --job-name=krepes
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
code=0
${KREPES:-krepes} run "$1" --max-time "${KREPES_MAX_TIME:-55m}" --workers 2 --memory 7GiB "${@:2}" \
    || code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"

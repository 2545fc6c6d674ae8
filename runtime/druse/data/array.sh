#!/bin/bash
#SBATCH --job-name=druse-dft
#SBATCH --array=0-LAST
#SBATCH --nodes=1
#SBATCH --time=24:00:00
# One task a structure, in the order of folders.txt. Submit it from the folder that it lies in; options of sbatch take
# the place of those above. POTCARs are joined from $POTCARS/Fe_pv/POTCAR where a folder has none.
set -euo pipefail
folder=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" folders.txt)
cd "$folder"
if [ -e vasprun.xml ] && tail -c 64 vasprun.xml | grep -q '</modeling>'; then
  echo "$folder is finished"
  exit 0
fi
if [ ! -e POTCAR ]; then
  : "${POTCARS:?there is no POTCAR in $folder; set POTCARS to your folder of potentials}"
  while read -r symbol; do
    cat "$POTCARS/$symbol/POTCAR"
  done < POTCAR.spec > POTCAR.part
  mv POTCAR.part POTCAR
fi
COMMAND

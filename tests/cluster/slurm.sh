#!/bin/bash
# A Slurm of three nodes on this machine, and tests/cluster/scenario.py on it. As root, with Debian's slurm-wlm and munge:
#   tests/cluster/slurm.sh FOLDER        (PYTHON=python of an environment with pixbench[slurm])
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$1 python=${PYTHON:-python}
shift
mkdir -p "$folder/state"
folder=$(cd "$folder" && pwd)
export SLURM_CONF=$folder/slurm.conf

cat > "$SLURM_CONF" <<CONF
ClusterName=trial
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdSpoolDir=$folder/%n
SlurmdPidFile=$folder/%n.pid
SlurmdLogFile=$folder/%n.log
SlurmctldPort=17817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# A node that does not answer for so long is lost; what ran on it is queued again.
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n[1-3] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[17821-17823] CPUs=1
PartitionName=main Nodes=ALL Default=YES MaxTime=60
CONF

stop() {
    scancel --user="$(id -un)" 2> /dev/null && sleep 2
    for file in "$folder"/n?.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
        [ -f "$file" ] && kill "$(cat "$file")" 2> /dev/null || true
    done
}
trap stop EXIT

(umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
for node in n1 n2 n3; do
    slurmd -N $node
done
until [ "$(sinfo --noheader --states=idle --format=%D)" = 3 ]; do sleep 1; done
"$python" "$here/scenario.py" slurm "$folder/studies" "$@"

#!/bin/bash
# A Slurm of one node on the loopback, without systemd; as root, Debian's slurm-wlm and munge.
#   cluster.sh start FOLDER    prints the path of slurm.conf, for SLURM_CONF
#   cluster.sh stop FOLDER
set -eu
action=$1 folder=$(readlink -f "$2")
host=$(hostname -s)

stop() {
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null || true)
        [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    done
}

if [ "$action" = stop ]; then
    stop
    exit 0
fi
mkdir -p "$folder"/{state,spool,log,munge} /run/munge
dd if=/dev/urandom of="$folder/munge/munge.key" bs=1 count=1024 status=none
chown -R munge:munge "$folder/munge" /run/munge
chmod 0700 "$folder/munge"
chmod 0755 /run/munge "$folder"
chmod 0400 "$folder/munge/munge.key"
cat > "$folder/slurm.conf" <<CONF
ClusterName=krepes
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits until its last credential has expired: 2 minutes by default.
AuthInfo=cred_expire=15
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
KillWait=5
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
runuser -u munge -- /usr/sbin/munged --key-file="$folder/munge/munge.key" \
    --socket=/run/munge/munge.socket.2 --pid-file="$folder/munge/munged.pid" \
    --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/munged.seed" --force
sleep 1
cp "$folder/munge/munged.pid" "$folder/munged.pid"
/usr/sbin/slurmctld -f "$SLURM_CONF"
sleep 2
/usr/sbin/slurmd -f "$SLURM_CONF" -N "$host"
for _ in $(seq 50); do
    [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && break
    sleep 0.2
done
sinfo -h -o %t | grep -qx idle
echo "$SLURM_CONF"

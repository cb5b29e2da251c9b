#!/usr/bin/env bash
# A Slurm cluster on this machine, to test the sbatch files: munge, one controller, and N nodes, all on this machine.
# All files are in DIR; no systemd, no database, no cgroups; every port is on 127.0.0.1.
#
#   scripts/dev/slurm_cluster.sh up   DIR [GPUS]    # start; print the line for the submitting shell
#   scripts/dev/slurm_cluster.sh down DIR           # stop every daemon of DIR
#
# GPUS (8): simulated GPUs per node. They are clones of /dev/null, which Slurm can allocate.
# NODES (2), CPUS (32, per node, simulated), PORT (16817, and one above it per node): from the environment.
# Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge. Needs root, as slurmd does.
set -Eeuo pipefail

# Print the comment above.
usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

die() {
    echo "slurm_cluster: $*" >&2
    exit 1
}

# Daemons must not keep inherited files (pipes read to their end, locks) open.
detached() {
    local fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        if ((fd > 2 && fd != 255)); then eval "exec $fd>&-" || true; fi
    done
    exec setsid "$@" </dev/null >>"$dir/log/start.log" 2>&1
}

write_conf() {
    local host=$1 memory=$2
    cat <<CONF
ClusterName=sandbox
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/run/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=5,requeue_setup_env_fail
MinJobAge=3600
KillWait=10
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
CONF
    for ((n = 0; n < nodes; n++)); do
        echo "NodeName=node$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1 + n)) CPUs=$cpus Sockets=1" \
            "CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory${gpus:+ Gres=gpu:$gpus} State=UNKNOWN"
    done
    echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60"
    echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF" # preempts the other
}

up() {
    local tool
    for tool in slurmctld slurmd munged sbatch; do
        command -v "$tool" >/dev/null ||
            die "there is no $tool: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
    done
    [[ $(id -u) == 0 ]] || die "slurmd has to be root"
    [[ ! -e $dir/slurmctld.pid ]] || die "$dir has a cluster already: $0 down $dir"
    local host memory
    host=$(hostname -s)
    getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    mkdir -p "$dir"/{state,spool,log,dev,munge/run}
    chmod 0755 "$dir" "$dir/munge/run"
    chmod 0700 "$dir/munge" && chmod 0711 "$dir/munge"
    [[ -f $dir/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
    write_conf "$host" "$memory" >"$dir/slurm.conf"
    : >"$dir/cgroup.conf"
    : >"$dir/gres.conf"
    for ((i = 0; i < ${gpus:-0}; i++)); do
        # A plain file can be allocated too, but then jobs get no CUDA_VISIBLE_DEVICES.
        [[ -e $dir/dev/nvidia$i ]] || mknod "$dir/dev/nvidia$i" c 1 3 2>/dev/null || : >"$dir/dev/nvidia$i"
    done
    [[ -z ${gpus:-} ]] || echo "Name=gpu Flags=nvidia_gpu_env File=$dir/dev/nvidia[0-$((gpus - 1))]" >"$dir/gres.conf"
    export SLURM_CONF=$dir/slurm.conf
    trap 'tail -n 5 "$dir"/log/*.log "$dir/munge/log" >&2; down; die "did not come up; the last lines of the logs are above"' ERR
    # --force: DIR may be in a folder that only root can enter; everything here belongs to root.
    (detached munged --force --key-file="$dir/munge/key" --socket="$dir/munge/run/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --num-threads=2)
    (detached slurmctld -c -f "$dir/slurm.conf")
    for ((n = 0; n < nodes; n++)); do
        mkdir -p "$dir/spool/node$n"
        (detached slurmd -c -f "$dir/slurm.conf" -N "node$n")
    done
    for ((i = 0; i < 80; i++)); do
        if [[ $(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l) == "$nodes" ]]; then
            sinfo -N -o "%N %t %c cpus %m MB %G" >&2
            echo "export SLURM_CONF=$dir/slurm.conf"
            trap - ERR
            return
        fi
        sleep 0.25
    done
    sinfo -N >&2
    false # not within 20 s
}

down() {
    local file pid
    for file in "$dir"/slurmd-*.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
        [[ -f $file ]] || continue
        pid=$(<"$file")
        kill "$pid" 2>/dev/null || true
        for ((i = 0; i < 40; i++)); do
            # A zombie counts as ended: a container may have no process that reaps it.
            [[ -d /proc/$pid && $(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null) != Z ]] || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
        rm -f "$file"
    done
}

[[ $# -ge 2 ]] || usage
action=$1 dir=$(realpath -m "$2") gpus=${3:-8}
[[ $gpus != 0 ]] || gpus=
nodes=${NODES:-2} cpus=${CPUS:-32} port=${PORT:-16817}
case $action in
up | down) "$action" ;;
*) usage ;;
esac
